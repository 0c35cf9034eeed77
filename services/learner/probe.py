"""A probe group: generated and scored again at one weight version, so that engines can be compared.

During training the logprob gap mixes staleness with numerics. At the first version and every
`probe_every` ones the learner asks a replica for a few answers right after publishing and computes
their log-probabilities itself: what is left is the difference of the two forward passes. A gap
beyond the bounds (`disagreement`) stops the run: what it trains is not what the engine samples.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import torch

from common.config import Run, Shared, bearer
from common.errors import ParityError
from common.messages import (
    GenerateRequest,
    GenerateResponse,
    PromptRequest,
    Scored,
    ScoredGroup,
    Timings,
)
from common.rest import direct
from services.learner.batching.batch import collate
from services.learner.batching.plan import Limits
from services.learner.model.policy import Policy
from services.learner.parallel import Ranks

logger = logging.getLogger(__name__)

NUM_SAMPLES = 4
TIMEOUT_S = 120.0
BOUNDS = {"float32": (1e-2, 1e-3), "bfloat16": (1.0, 0.1)}
"""shared.dtype → (max, mean) nats. In float32 equal weights differ by 1.5e-5 at most, in bfloat16
by .1 to .6 (Qwen3.5, the worst); other positions differ by 1.7 nats, other timestamps by 5, keys
and features of old weights by 7.5 to 8.6."""


@dataclass(frozen=True)
class Gap:
    """Distance of the engine's and the learner's log-probabilities over a probe's tokens."""

    max_nats: float
    mean_nats: float
    num_tokens: int
    share_beyond: float
    """Of the tokens, those beyond the bound on the largest."""

    @property
    def figures(self) -> dict[str, float]:
        """As a step line has them."""
        return {
            "learner/probe_logprob_gap_nats": self.max_nats,
            "learner/probe_logprob_gap_mean_nats": self.mean_nats,
        }


def bounds_of(run: Run) -> tuple[float, float]:
    """(max, mean) nats that a gap may have."""
    by_dtype = BOUNDS[run.shared.dtype]
    given = (run.learner.probe_max_gap_nats, run.learner.probe_mean_gap_nats)
    max_nats, mean_nats = (
        default if value is None else value for value, default in zip(given, by_dtype, strict=True)
    )
    return max_nats, mean_nats


def disagreement(gap: Gap, *, run: Run, version: int, replica: str) -> ParityError | None:
    """What ends the run; None: the two agree. A gap that is not a number is beyond all bounds."""
    max_nats, mean_nats = bounds_of(run)
    if gap.max_nats <= max_nats and gap.mean_nats <= mean_nats:
        return None
    return ParityError(
        f"version {version}: the log-probabilities of replica {replica} and of this learner differ "
        f"by {gap.mean_nats:.3g} nats in the mean and {gap.max_nats:.3g} at most over "
        f"{gap.num_tokens} tokens ({gap.share_beyond:.0%} of them beyond {max_nats:g}), wanted at "
        f"most {mean_nats:g} (learner.probe_mean_gap_nats) and {max_nats:g} "
        f"(learner.probe_max_gap_nats) in {run.shared.dtype}: what is trained is not what is "
        f"sampled. Likely causes: {'; '.join(_causes(run))}"
    )


def _causes(run: Run) -> Sequence[str]:
    sampling = run.shared.sampling
    return (
        "(1) the engine serves other weights than the version it names (a tensor that was not "
        "transferred, tied or merged)",
        f"(2) another compute type than shared.dtype = {run.shared.dtype} on one side",
        f"(3) log-probabilities after temperature or truncation instead of the raw ones "
        f"(temperature {sampling.temperature:g}, top_p {sampling.top_p:g})",
        "(4) another image processor, chat template or position rule (versions of transformers and "
        "vllm in the two images, shared.model)",
        "(5) another attention or linear-attention kernel (flash-attn, flash-linear-attention on "
        "one side alone)",
    )


def generate_probe(
    request: PromptRequest, *, url: str, version: int, shared: Shared
) -> ScoredGroup | None:
    """Rank 0: ask one replica; None (logged) when it does not answer at exactly `version`."""
    body = GenerateRequest(
        clip=request.clip,
        messages=request.messages,
        num_samples=NUM_SAMPLES,
        sampling=request.sampling,
    )
    try:
        headers = {"Content-Type": "application/json", **bearer(shared.tokens.of("generate"))}
        with direct.client(timeout=TIMEOUT_S) as client:
            answer = client.post(
                f"{url}/v1/generate",
                content=body.model_dump_json(),
                headers=headers,
            ).raise_for_status()
    except httpx.HTTPError as error:
        logger.warning("no probe", extra={"policy_version": version, "error": f"{error!r}"})
        return None
    made = GenerateResponse.model_validate_json(answer.content)
    samples = tuple(item.sample for item in made.answers)
    versions = {span.version for sample in samples for span in sample.version_spans}
    if versions != {version}:
        logger.warning("no probe", extra={"policy_version": version, "found": sorted(versions)})
        return None
    return ScoredGroup(
        prompt_id=f"probe-{version}",
        row_id=request.row_id,
        epoch=request.epoch,
        mode=request.mode,
        clip=request.clip,
        prompt_token_ids=made.prompt_token_ids,
        num_visual_tokens=made.num_visual_tokens,
        grid_thw=made.grid_thw,
        samples=samples,
        verdicts=tuple(Scored(reward=0.0, parts={}) for _ in samples),
        replica=url,
        timings=Timings(decode_s=0.0, generate_s=0.0, score_s=0.0),
    )


@torch.no_grad()
def logprob_gap(policy: Policy, group: ScoredGroup, *, ranks: Ranks, max_nats: float) -> Gap:
    """|rollout - learner| over the group's tokens, the same on all ranks; a collective.

    Args:
        policy: at the version that wrote the group.
        group: a probe's.
        ranks: all of them.
        max_nats: what `share_beyond` counts from.
    """
    policy.assert_group_matches(group)
    whole = Limits(sys.maxsize, cost=lambda prompt, _, answers: prompt + sum(answers), splits=False)
    batch = collate(
        [group],
        [[0.0] * len(group.samples)],
        limits=whole,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    largest, sums = torch.zeros(1, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for micro_batch in batch.micro_batches:
        scores = policy(micro_batch)
        mask_GSR = micro_batch.answer_mask_GSR.to(scores.logprobs_GSR.device)
        rollout_GSR = micro_batch.rollout_logprobs_GSR.to(scores.logprobs_GSR.device)
        gap_T = (rollout_GSR - scores.logprobs_GSR).abs()[mask_GSR].double().cpu()
        # Not a number would lose every comparison.
        gap_T = gap_T.nan_to_num(nan=torch.inf, posinf=torch.inf)
        if len(gap_T):
            largest = torch.maximum(largest, gap_T.max())
        beyond = (gap_T > max_nats).sum()
        sums += torch.stack([gap_T.sum(), torch.tensor(float(len(gap_T))), beyond])
    total, num_tokens, num_beyond = ranks.all_reduce_sum(sums).tolist()
    return Gap(
        max_nats=ranks.all_reduce_max(largest).item(),
        mean_nats=total / max(num_tokens, 1.0),
        num_tokens=int(num_tokens),
        share_beyond=num_beyond / max(num_tokens, 1.0),
    )
