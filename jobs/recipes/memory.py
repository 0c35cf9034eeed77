"""Bytes of a learner rank and of a replica: recipe → `RankMemory`, `ReplicaMemory` (pure).

Estimates, with the formula of each part in its docstring; GB = 1e9 bytes throughout. A rank's
stand in `common.model.memory`, because the learner cuts its work by them.
"""

from dataclasses import dataclass

from common.config import Learner, Rollout, Shared
from common.model import memory
from common.model.architecture import Architecture
from common.model.memory import BF16, Load, RankMemory, staged_bytes
from jobs.recipes.tokens import GroupTokens

ENGINE_BYTES = 6e9
"""vLLM beside weights and KV cache: context, activations of max_num_batched_tokens, encoder, CUDA
graphs. Assumed."""


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
    recomputed: float,
) -> RankMemory:
    """One rank's share with one of the longest groups, or `learner.max_tokens_per_rank` of them."""
    times = (learner.max_tokens_per_rank or tokens.packed) / tokens.packed
    load = Load(
        packed=round(times * tokens.packed),
        prompt=round(times * tokens.prompt),
        answers=tokens.answers,
        scored=round(times * tokens.answers * tokens.answer),
    )
    return memory.rank_memory(
        shared,
        learner=learner,
        architecture=architecture,
        load=load,
        ranks=ranks,
        recomputed=recomputed,
    )


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
    staging = rollout.tensor_parallel * staged_bytes(
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
