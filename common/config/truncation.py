"""Truncated sampling (`top_p` < 1, `top_k`): where importance weights go together with it."""

from common.config.services import Rollout
from common.messages import MAX_TOP_K, Sampling


def returns_masks(sampling: Sampling, rollout: Rollout) -> bool:
    """Whether a replica says which tokens its sampler kept (`KeptTokens`).

    vLLM 0.32 does so in its GPU model runner V2 alone, for a whole engine, and sizes masks by
    `top_k`: its CPU engines cannot, and `top_p` by itself is sampled without one. A replica that
    serves a checkpoint outside a ring returns none: whoever asks it wants the raw log-probabilities
    and any sampling.
    """
    return rollout.device == "cuda" and rollout.weights == "learner" and sampling.top_k > 0


def refuse_inexact(sampling: Sampling, *, rollout: Rollout, correction: str) -> None:
    """Importance weights of truncated answers need the masks that they were sampled with.

    Raises:
        ValueError: they would be taken to another distribution; names the knobs.
    """
    in_ring = rollout.weights == "learner"
    if not in_ring or not sampling.truncates or correction == "off":
        return
    if returns_masks(sampling, rollout):
        return
    knob, off = ("top_k", "0") if sampling.top_p == 1 else ("top_p", "1.0")
    refused = (
        f"shared.sampling.{knob}: found {getattr(sampling, knob)}, wanted {off} while "
        f"learner.loss.correction is {correction!r} and rollout.device {rollout.device!r}: "
        "truncated sampling is not the distribution of its log-probabilities"
    )
    if rollout.device == "cpu":
        raise ValueError(
            f"{refused}, and vLLM's CPU engine returns no mask of what it kept (its GPU model "
            "runner V2 does: top_p < 1 is exact with rollout.device = 'cuda' and a top_k); set "
            f'shared.sampling.{knob} = {off}, or learner.loss.correction = "off"'
        )
    raise ValueError(
        f"{refused} unless a mask comes with it, which vLLM sizes by top_k; set "
        f"shared.sampling.top_k (1 to {MAX_TOP_K}), or top_p = {off}, or "
        'learner.loss.correction = "off"'
    )
