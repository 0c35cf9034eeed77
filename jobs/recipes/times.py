"""Seconds of a step: recipe and fleet → `StepTimes` (pure).

Estimates for the longest clips and answers: real data is shorter. FLOPs are counted, the shares of
peak that are reached are assumed, and nothing here knows of waiting, decoding or stragglers.
"""

import math
from dataclasses import dataclass

from common.config import Learner, Rollout
from common.model.adapters import trained
from common.model.architecture import Architecture
from common.model.flops import forward_flop, tower_flop
from common.model.memory import BF16, DELTA_SHARE
from jobs.recipes.tokens import GroupTokens

LEARNER_SHARE = 0.65
"""Of peak FLOP/s that training is assumed to reach on an H20, recomputation counted as work. The
card has few FLOP/s for its memory; on an H200 the share measured was about .35."""
PREFILL_SHARE = 0.5
"""Of peak FLOP/s, assumed."""
DECODE_SHARE = 0.6
"""Of memory bandwidth, assumed."""
PUBLISH_BYTES_A_S = 3.9e9
"""Of the network, assumed: a bare NCCL broadcast over loopback sockets of an H200's machine. What
comes before it is small (packing 8.9 GB took 18 ms on that card), and so is the pause behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What there is to run on; all GPUs are alike."""

    learner_gpus: int
    rollout_gpus: int
    gpu_memory_gb: float
    gpu_tflops: float
    """Peak in bfloat16, dense."""
    gpu_bandwidth_gbs: float

    @property
    def gpu_bytes(self) -> float:
        """Of one GPU."""
        return self.gpu_memory_gb * 1e9

    def replicas(self, rollout: Rollout) -> int:
        """How many replicas fit on the rollout GPUs."""
        return self.rollout_gpus // rollout.tensor_parallel


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Seconds."""

    group_tflop: float
    """Forward and backward of one group, without recomputation."""
    learner_s: float
    """Of a step, on the rank with most groups."""
    rollout_s: float
    """All replicas need for the groups of a step."""
    publish_s: float
    """Until replicas have a version's trained tensors, or their delta."""
    overlaps_publish: bool
    """The next step may train meanwhile (learner.overlap_publish)."""

    @property
    def step_s(self) -> float:
        """Learner and rollout overlap (max_staleness >= 1); publishing beside the step, or not."""
        work_s = max(self.learner_s, self.rollout_s)
        return max(work_s, self.publish_s) if self.overlaps_publish else work_s + self.publish_s


def step_times(
    *,
    learner: Learner,
    rollout: Rollout,
    architecture: Architecture,
    tokens: GroupTokens,
    fleet: Fleet,
    recomputed: float,
) -> StepTimes:
    """A step of the longest groups. Needs at least one learner GPU and one replica."""
    forward = forward_flop(
        architecture,
        prompt=tokens.prompt,
        answers=[tokens.answer] * tokens.answers,
        scored=tokens.answers * tokens.answer,
    )
    passes = learner.updates_per_batch * (3 + recomputed)
    work = passes * forward + tower_flop(architecture, visual=tokens.visual)
    groups = math.ceil(learner.groups_per_step / fleet.learner_gpus)
    travels = BF16 * trained(architecture, learner).changing
    share = DELTA_SHARE if learner.publish == "delta" else 1.0
    a_group = _rollout_s(rollout, architecture=architecture, tokens=tokens, fleet=fleet)
    return StepTimes(
        group_tflop=3 * forward / 1e12,
        learner_s=groups * work / (LEARNER_SHARE * fleet.gpu_tflops * 1e12),
        rollout_s=learner.groups_per_step * a_group / fleet.replicas(rollout),
        publish_s=share * travels / PUBLISH_BYTES_A_S,
        overlaps_publish=learner.overlaps_publish,
    )


def _rollout_s(
    rollout: Rollout, *, architecture: Architecture, tokens: GroupTokens, fleet: Fleet
) -> float:
    """Of one group on one replica: its prompt is read once, and `concurrent_prompts` groups decode
    together, a token of each answer a pass over the weights and over all keys and values."""
    flops = PREFILL_SHARE * rollout.tensor_parallel * fleet.gpu_tflops * 1e12
    prefill = forward_flop(architecture, prompt=tokens.prompt, answers=(), scored=1)
    prefill_s = (prefill + tower_flop(architecture, visual=tokens.visual)) / flops
    prompts = rollout.concurrent_prompts
    sequences = min(prompts * tokens.generated, rollout.max_num_seqs)
    keys = sequences * (tokens.prompt + tokens.answer / 2) * architecture.kv_bytes_a_token
    read = BF16 * architecture.language_parameters + keys
    pass_s = read / (DECODE_SHARE * rollout.tensor_parallel * fleet.gpu_bandwidth_gbs * 1e9)
    passes = tokens.answer * prompts * tokens.generated / sequences
    return prefill_s + passes * pass_s / prompts
