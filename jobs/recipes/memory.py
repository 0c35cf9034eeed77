"""Bytes of a learner rank and of a replica: recipe → `RankMemory`, `ReplicaMemory` (pure).

Estimates, with the formula of each part in its docstring; GB = 1e9 bytes throughout. Held against
one measurement (Qwen3-VL-4B, one card, 16,002 + 8 x 256 tokens): a step with AdamW takes 82 GB
measured and 81 by these formulas; forward and backward without AdamW's states 39 measured and 52 by
these, because gradients and activations do not peak together. They err to the safe side. With
`[learner.lora]` nothing was measured.
"""

from dataclasses import dataclass
from typing import Literal

from common.config import Learner, Rollout, Shared
from common.model.architecture import Architecture
from jobs.recipes.adapters import trained
from jobs.recipes.tokens import GroupTokens

BF16, FP32 = 2, 4
Place = Literal["device", "host"]
NODE_GPUS = 8
"""Of a node, for learner.shard_within = "node". Assumed."""
GATHERED_LAYERS = 3
"""The layer in work, the next one prefetched, the last one being freed."""
REDUCED_LAYERS = 2
"""Gradients of a layer in float32 while they are summed over ranks, and those of the next one."""
MAX_LOGITS = 2**27
"""Held at once by the learner (`services.learner.model.policy`)."""
LOGITS_BYTES = 18
"""A logit: bfloat16, float32, log-softmax, its exponential, their product."""
CONTEXT_BYTES = 3e9
"""CUDA context and NCCL's buffers. Assumed."""
ENGINE_BYTES = 6e9
"""vLLM beside weights and KV cache: context, activations of max_num_batched_tokens, encoder, CUDA
graphs. Assumed."""
STREAMS = 2
"""Weights travel as two: frozen tensors and trained ones (`services.learner.publishing`)."""
LANDINGS = 2
"""Device buckets of each stream that is kept in host memory."""
DELTA_SHARE = 0.04
"""Of the trained stream that its delta takes: 2 % changed bfloat16 values of 4 bytes each (two for
the place, two for the value). Assumed; a larger learning rate changes more, at most all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """One learner rank, bytes."""

    states: float
    """Float32 masters, gradients and both AdamW states: 16 B a trained parameter over the ranks
    that share a copy (learner.shard_within). Below adapters, the frozen weights too, in the compute
    dtype."""
    temporaries: float
    """Of AdamW's step: 4 B a trained parameter over those ranks, as measured before it was fused;
    fused it should need none. Not beside activations."""
    replicated: float
    """In the compute dtype: the frozen tower, and this rank's share of a KL term's reference model,
    which has a whole tower of its own if the policy trains its; adapters need no reference."""
    root: float
    """Embedding and head stay gathered: weights and gradients in bfloat16, sums in float32. Below
    adapters, weights alone."""
    gathered: float
    """Layers gathered in bfloat16, gradients reduced in float32 (of adapters: left out)."""
    kept: float
    """Between forward and backward: each layer's input with checkpointing, everything without."""
    inside: float
    """Of the layer in work, with its gradients: MLP, attention, copies of the prompt's keys."""
    logits: float
    snapshot: float
    """Rank 0's copy of the model in shared.dtype, which travels to replicas; with
    learner.weight_staging = "host" its device buckets alone. Beside it the buckets in which ranks
    meet and, with learner.publish = "delta", a delta and the bucket that it is found in."""
    start: float
    """A single rank: the whole model in float32; several: a share and the largest tensor."""

    @property
    def backward(self) -> float:
        """While a micro-batch is in work."""
        activations = self.root + self.gathered + self.kept + self.inside + self.logits
        return self.states + self.replicated + activations + self.snapshot + CONTEXT_BYTES

    @property
    def step(self) -> float:
        """While AdamW steps."""
        return self.states + self.temporaries + self.replicated + self.snapshot + CONTEXT_BYTES

    @property
    def peak(self) -> float:
        """The largest of the three."""
        return max(self.backward, self.step, self.start + CONTEXT_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaMemory:
    """One replica, bytes over all its GPUs."""

    weights: float
    """In bfloat16."""
    staging: float
    """Where new weights land: the whole model in each of its GPUs, whatever share of the model that
    one computes; with rollout.weight_staging = "host" the device buckets alone."""
    cache: float
    """What is left for keys and values, or rollout.kv_cache_bytes."""
    longest_sequence: float
    """Of rollout.max_model_len tokens: vLLM does not start without room for one."""
    in_work: float
    """rollout.concurrent_prompts groups whose answers share their prompt's blocks."""
    unshared: float
    """The same without sharing."""


def rank_memory(
    shared: Shared,
    *,
    learner: Learner,
    architecture: Architecture,
    tokens: GroupTokens,
    ranks: int,
) -> RankMemory:
    """One rank's share with the longest groups, `micro_batch_groups` of them at a time."""
    parameters, changing = trained(architecture, learner)
    width = BF16 if shared.dtype == "bfloat16" else FP32
    sharing = _ranks_of_a_copy(learner, ranks)
    layer = architecture.decoder_parameters / architecture.layers
    groups = learner.micro_batch_groups
    kept = _kept_bytes(architecture, tokens, width)
    inside = 2 * kept + _backward_keys(architecture, tokens, width)
    boundary = tokens.packed * architecture.hidden * width
    logits = min(MAX_LOGITS, groups * tokens.answers * tokens.answer * architecture.vocabulary)
    reduced = learner.lora is None
    return RankMemory(
        states=(4 * FP32 * parameters + _below_adapters(architecture, learner, width)) / sharing,
        temporaries=FP32 * parameters / sharing,
        replicated=_replicated(architecture, learner, width, sharing),
        root=(2 * width + FP32 if reduced else width) * architecture.root_parameters,
        gathered=(GATHERED_LAYERS * width + REDUCED_LAYERS * FP32 * reduced) * layer,
        kept=groups
        * architecture.layers
        * (boundary if learner.gradient_checkpointing else boundary + kept),
        inside=groups * inside,
        logits=LOGITS_BYTES * logits,
        snapshot=_snapshot(architecture, learner, changing=changing, width=width, ranks=ranks),
        start=FP32 * architecture.parameters
        if ranks == 1
        else FP32 * (parameters / sharing + architecture.root_parameters),
    )


def _ranks_of_a_copy(learner: Learner, ranks: int) -> int:
    known = {"all": ranks, "node": min(ranks, NODE_GPUS)}
    within = learner.shard_within
    return within if isinstance(within, int) else known[within]


def _below_adapters(architecture: Architecture, learner: Learner, width: int) -> int:
    """Frozen weights that are spread over ranks."""
    if learner.lora is None:
        return 0
    tower = 0 if learner.freeze_vision else architecture.tower_parameters
    return width * (architecture.language_parameters + tower)


def _replicated(architecture: Architecture, learner: Learner, width: int, ranks: int) -> float:
    has_reference = learner.loss.kl_coef > 0 and learner.lora is None
    tower = architecture.tower_parameters if learner.freeze_vision or has_reference else 0
    reference = architecture.language_parameters / ranks if has_reference else 0
    return float(width * (tower + reference))


def _snapshot(
    architecture: Architecture, learner: Learner, *, changing: int, width: int, ranks: int
) -> float:
    kept = _staged(
        width * architecture.parameters, learner.weight_staging, bucket_bytes=learner.bucket_bytes
    )
    # Each stream has its own.
    messages = STREAMS * learner.bucket_bytes if ranks > 1 else 0
    deltas = 0.0
    if learner.publish == "delta":
        deltas = DELTA_SHARE * width * changing + learner.bucket_bytes
    return kept + messages + deltas


def _staged(size: int, place: Place, *, bucket_bytes: int) -> float:
    """Device memory of both streams of one receiver, or of rank 0."""
    return float(size if place == "device" else STREAMS * LANDINGS * bucket_bytes)


def _kept_bytes(architecture: Architecture, tokens: GroupTokens, width: int) -> float:
    """What the forward of one layer keeps: four MLP tensors, queries to outputs, four hidden ones.

    Keys and values of the prompt are copied once an answer, twice. A gated delta net keeps about 15
    tensors as wide as its values in float32 (counted without flash-linear-attention's savings).
    """
    packed = tokens.packed
    mlp = 4 * packed * architecture.intermediate * width
    hidden = 4 * packed * architecture.hidden * width
    query, key = architecture.query_width, architecture.key_width
    copies = 2 * tokens.answers * tokens.prompt * 2 * key * width
    attention = packed * (2 * query + 2 * key) * width + copies
    value = architecture.linear_value_heads * architecture.linear_head_dim
    return float(mlp + hidden + max(attention, 15 * packed * value * FP32))


def _backward_keys(architecture: Architecture, tokens: GroupTokens, width: int) -> float:
    """Gradients of keys and values, spread over all query heads before they are summed."""
    return float(2 * tokens.answers * tokens.prompt * architecture.query_width * width)


def replica_memory(
    rollout: Rollout,
    *,
    architecture: Architecture,
    tokens: GroupTokens,
    gpu_bytes: float,
    bucket_bytes: int,
) -> ReplicaMemory:
    """One replica of rollout.tensor_parallel GPUs of `gpu_bytes` each."""
    weights = float(BF16 * architecture.parameters)
    claimed = rollout.gpu_memory_utilization * gpu_bytes - ENGINE_BYTES
    staging = rollout.tensor_parallel * _staged(
        BF16 * architecture.parameters, rollout.weight_staging, bucket_bytes=bucket_bytes
    )
    left = rollout.tensor_parallel * claimed - weights - staging
    a_token, a_sequence = architecture.kv_bytes_a_token, architecture.state_bytes_a_sequence
    prompts, answers = rollout.concurrent_prompts, tokens.generated
    states = prompts * answers * a_sequence
    return ReplicaMemory(
        weights=weights,
        staging=staging,
        cache=max(0.0, left) if rollout.kv_cache_bytes is None else float(rollout.kv_cache_bytes),
        longest_sequence=float(rollout.max_model_len * a_token + a_sequence),
        in_work=float(prompts * (tokens.prompt + answers * tokens.answer) * a_token + states),
        unshared=float(prompts * answers * tokens.sequence * a_token + states),
    )
