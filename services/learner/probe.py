"""A probe group: generated and scored again at one weight version, so that engines can be compared.

During training the logprob gap mixes staleness with numerics. Every `probe_every` versions the
learner asks a replica for a few answers right after publishing and computes their log-probabilities
itself: what is left is the difference of the two forward passes.
"""

import logging

import httpx
import torch

from common.config import Shared, bearer
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
from services.learner.model.policy import Policy
from services.learner.parallel import Ranks

logger = logging.getLogger(__name__)

NUM_SAMPLES = 4
TIMEOUT_S = 120.0


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
def logprob_gap(policy: Policy, group: ScoredGroup, *, ranks: Ranks) -> float:
    """Largest |rollout - learner| over the group's tokens, in nats, on rank 0; a collective."""
    policy.assert_group_matches(group)
    batch = collate(
        [group],
        [[0.0] * len(group.samples)],
        micro_batch_groups=1,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    gaps: list[float] = []
    for micro_batch in batch.micro_batches:
        scores = policy(micro_batch)
        mask_GSR = micro_batch.answer_mask_GSR.to(scores.logprobs_GSR.device)
        rollout_GSR = micro_batch.rollout_logprobs_GSR.to(scores.logprobs_GSR.device)
        gaps.append(((rollout_GSR - scores.logprobs_GSR).abs() * mask_GSR).max().item())
    return max(gaps, default=0.0)
