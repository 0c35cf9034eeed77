"""Truncated sampling with its mask: what vLLM is asked for, and `KeptTokens` of its answers.

`engine.py` asks. vLLM 0.32 returns masks of a whole engine or of none: its log-probabilities are
then those over what was kept, each request needs a temperature and a `top_k` (it sizes the mask),
and a mask holds what was left of `top_k` and `top_p` for every token of an answer.
"""

from collections.abc import Collection
from typing import Any

from common.config import Rollout, Shared
from common.config.truncation import returns_masks
from common.errors import EngineError
from common.messages import KeptTokens, Sampling

GREEDY_BELOW = 1e-5
"""A temperature that vLLM takes for 0."""
REFUSAL = "sampling distribution replay"
"""What vLLM calls this when it refuses it."""


def engine_settings(shared: Shared, rollout: Rollout) -> dict[str, Any]:
    """More engine arguments for masks, if this replica returns any."""
    if not returns_masks(shared.sampling, rollout):
        return {}
    return {"return_sampling_mask": True, "logprobs_mode": "processed_logprobs"}


def explained(error: BaseException, *, shared: Shared) -> str:
    """Why vLLM did not load, and which knob asked for it if it was a mask."""
    if REFUSAL not in str(error):
        return str(error)
    return (
        f"{error}; shared.sampling.top_k is {shared.sampling.top_k}, and truncated answers are "
        "trained on with the mask of their sampling, which needs vLLM's model runner V2 (Triton, "
        "and no VLLM_USE_V2_MODEL_RUNNER=0); set top_k = 0 and top_p = 1.0 to do without"
    )


def parameters(sampling: Sampling, *, masked: bool) -> dict[str, Any]:
    """How vLLM is to sample, as keywords of its `SamplingParams`.

    With masks, a greedy answer is one of `top_k` 1: the same token, but that of several equally
    probable ones (in bfloat16 that happens) the seed chooses.

    Args:
        sampling: of the request.
        masked: whether the engine returns masks.

    Raises:
        EngineError: an engine with masks is asked to sample without a top_k.
    """
    asked = sampling.model_dump(include={"temperature", "top_p", "seed"})
    if not masked:
        return asked | {"top_k": sampling.top_k}
    if sampling.temperature < GREEDY_BELOW:
        seed = 0 if sampling.seed is None else sampling.seed
        return {"temperature": 1.0, "top_p": 1.0, "top_k": 1, "seed": seed}
    if sampling.top_k == 0:
        raise EngineError(
            "sampling.top_k: found 0, wanted at least 1, or temperature 0: this replica returns "
            "the mask of its sampling (its shared.sampling.top_k is set), which vLLM sizes by "
            'top_k; a replica with rollout.weights = "checkpoint" samples without'
        )
    return asked | {"top_k": sampling.top_k}


def kept_tokens(output: Any, *, forbidden: Collection[int]) -> KeptTokens:
    """What each token of an answer was chosen from.

    Args:
        output: vLLM's CompletionOutput of an engine with masks.
        forbidden: tokens whose logits were lowered until their probability was nothing: where top_k
            reaches that far they are in the mask, and have to go, as their true logits are not low.

    Raises:
        EngineError: vLLM returned no mask, or one of another length.
    """
    rows = [] if output.sampling_mask is None else output.sampling_mask.token_ids
    if len(rows) != len(output.token_ids):
        raise EngineError(
            f"vLLM returned masks of {len(rows)} tokens, wanted {len(output.token_ids)}: an answer "
            "without them cannot be trained on (shared.sampling.top_k)"
        )
    barred = frozenset(forbidden)
    kept = [
        [token for token in row if token == chosen or token not in barred]
        for chosen, row in zip(output.token_ids, rows, strict=True)
    ]
    return KeptTokens(ids=[token for row in kept for token in row], counts=[*map(len, kept)])
