"""Bytes of a learner rank and of a replica: recipe → `RankMemory`, `ReplicaMemory` (pure).

Estimates, with the formula of each part in its docstring; GB = 1e9 bytes throughout. Held against
one measurement (Qwen3-VL-4B, one card, 16,002 + 8 x 256 tokens): a step with AdamW takes 82 GB
measured and 81 by these formulas; forward and backward without AdamW's states 39 measured and 52 by
these, because gradients and activations do not peak together. They err to the safe side.
"""

from dataclasses import dataclass

from common.config import Learner, Rollout, Shared
from jobs.recipes.architecture import Architecture
from jobs.recipes.tokens import GroupTokens

BF16, FP32 = 2, 4
GATHERED_LAYERS = 3
"""The layer in work, the next one prefetched, the last one being freed."""
REDUCED_LAYERS = 2
"""Gradients of a layer in float32 while they are summed over ranks, and those of the next one."""
MAX_LOGITS = 2**27
"""Held at once by the learner (`services.learner.policy`)."""
LOGITS_BYTES = 18
"""A logit: bfloat16, float32, log-softmax, its exponential, their product."""
CONTEXT_BYTES = 3e9
"""CUDA context and NCCL's buffers. Assumed."""
ENGINE_BYTES = 6e9
"""vLLM beside weights and KV cache: context, activations of max_num_batched_tokens, encoder, CUDA
graphs. Assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """One learner rank, bytes."""

    states: float
    """Float32 masters, gradients and both AdamW states: 16 B a trained parameter over all ranks."""
    temporaries: float
    """Of AdamW's foreach step: 4 B a trained parameter over all ranks. Not beside activations."""
    replicated: float
    """The frozen tower in the compute dtype, and the whole reference model of a KL term."""
    root: float
    """Embedding and head stay gathered: weights and gradients in bfloat16, sums in float32."""
    gathered: float
    """Layers gathered in bfloat16, gradients reduced in float32."""
    kept: float
    """Between forward and backward: each layer's input with checkpointing, everything without."""
    inside: float
    """Of the layer in work, with its gradients: MLP, attention, copies of the prompt's keys."""
    logits: float
    start: float
    """The whole model in float32, before it is sharded."""

    @property
    def backward(self) -> float:
        """While a micro-batch is in work."""
        activations = self.root + self.gathered + self.kept + self.inside + self.logits
        return self.states + self.replicated + activations + CONTEXT_BYTES

    @property
    def step(self) -> float:
        """While AdamW steps."""
        return self.states + self.temporaries + self.replicated + CONTEXT_BYTES

    @property
    def peak(self) -> float:
        """The largest of the three."""
        return max(self.backward, self.step, self.start + CONTEXT_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaMemory:
    """One replica, bytes over all its GPUs."""

    weights: float
    """In bfloat16."""
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
    trained = architecture.language_parameters
    if not learner.freeze_vision:
        trained += architecture.tower_parameters
    width = BF16 if shared.dtype == "bfloat16" else FP32
    layer = architecture.decoder_parameters / architecture.layers
    groups = learner.micro_batch_groups
    kept = _kept_bytes(architecture, tokens, width)
    inside = 2 * kept + _backward_keys(architecture, tokens, width)
    boundary = tokens.packed * architecture.hidden * width
    logits = min(MAX_LOGITS, groups * tokens.answers * tokens.answer * architecture.vocabulary)
    return RankMemory(
        states=4 * FP32 * trained / ranks,
        temporaries=FP32 * trained / ranks,
        replicated=_replicated(architecture, learner, width),
        root=(2 * width + FP32) * architecture.root_parameters,
        gathered=(GATHERED_LAYERS * width + REDUCED_LAYERS * FP32) * layer,
        kept=groups
        * architecture.layers
        * (boundary if learner.gradient_checkpointing else boundary + kept),
        inside=groups * inside,
        logits=LOGITS_BYTES * logits,
        start=FP32 * architecture.parameters,
    )


def _replicated(architecture: Architecture, learner: Learner, width: int) -> float:
    tower = architecture.tower_parameters if learner.freeze_vision else 0
    reference = architecture.parameters if learner.loss.kl_coef > 0 else 0
    return float(width * (tower + reference))


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
    rollout: Rollout, *, architecture: Architecture, tokens: GroupTokens, gpu_bytes: float
) -> ReplicaMemory:
    """One replica of rollout.tensor_parallel GPUs of `gpu_bytes` each."""
    weights = float(BF16 * architecture.parameters)
    claimed = rollout.gpu_memory_utilization * gpu_bytes - ENGINE_BYTES
    left = rollout.tensor_parallel * claimed - weights
    a_token, a_sequence = architecture.kv_bytes_a_token, architecture.state_bytes_a_sequence
    prompts, answers = rollout.concurrent_prompts, tokens.generated
    states = prompts * answers * a_sequence
    return ReplicaMemory(
        weights=weights,
        cache=max(0.0, left) if rollout.kv_cache_bytes is None else float(rollout.kv_cache_bytes),
        longest_sequence=float(rollout.max_model_len * a_token + a_sequence),
        in_work=float(prompts * (tokens.prompt + answers * tokens.answer) * a_token + states),
        unshared=float(prompts * answers * tokens.sequence * a_token + states),
    )
