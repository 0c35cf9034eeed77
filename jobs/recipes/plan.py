"""A run file on a fleet: figures, and what does not fit (pure).

    Run + Fleet -> Plan: tokens, memory, times -> rows() for the table, misfits() one line each

`command` prints it. A misfit names the value found, the value wanted and the knob.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from common.config import Run
from common.model.architecture import Architecture
from common.model.memory import (
    BF16,
    USABLE,
    Card,
    Place,
    RankMemory,
    room_on_card,
)
from jobs.recipes.memory import ReplicaMemory, rank_memory, replica_memory
from jobs.recipes.times import Fleet, StepTimes, step_times
from jobs.recipes.tokens import GroupTokens, group_tokens


class Figure(NamedTuple):
    """A line of the table."""

    part: str
    name: str
    value: str
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe's arithmetic."""

    run: Run
    fleet: Fleet
    architecture: Architecture
    tokens: GroupTokens
    replicas: int
    outstanding: int
    """Prompts that may be in flight."""
    slots: int
    """Prompts in work at once, over all replicas."""
    rank: RankMemory
    rank_tokens: int
    """Packed tokens that a rank forwards at once (learner.max_tokens_per_rank)."""
    recomputed: float
    """Share of the decoder layers (learner.gradient_checkpointing)."""
    replica: ReplicaMemory
    times: StepTimes | None
    """None without a replica."""


def plan(run: Run, *, architecture: Architecture, fleet: Fleet) -> Plan:
    """Do the arithmetic of a run."""
    tokens = group_tokens(run.shared, architecture=architecture)
    replicas = fleet.replicas(run.rollout)
    card = Card(fleet.gpu_bytes, ranks=fleet.learner_gpus)
    recomputed, room = room_on_card(
        run.shared, learner=run.learner, architecture=architecture, card=card
    )
    return Plan(
        run=run,
        fleet=fleet,
        architecture=architecture,
        tokens=tokens,
        replicas=replicas,
        outstanding=(run.learner.max_staleness + 1) * run.learner.groups_per_step,
        slots=replicas * run.rollout.concurrent_prompts,
        rank=rank_memory(
            run.shared,
            learner=run.learner,
            architecture=architecture,
            tokens=tokens,
            ranks=fleet.learner_gpus,
            recomputed=recomputed,
        ),
        rank_tokens=run.learner.max_tokens_per_rank or max(0, room),
        recomputed=recomputed,
        replica=replica_memory(
            run.rollout,
            architecture=architecture,
            tokens=tokens,
            gpu_bytes=fleet.gpu_bytes,
            bucket_bytes=run.learner.bucket_bytes,
        ),
        times=None
        if replicas == 0
        else step_times(
            learner=run.learner,
            rollout=run.rollout,
            architecture=architecture,
            tokens=tokens,
            fleet=fleet,
            recomputed=recomputed,
        ),
    )


def rows(plan: Plan) -> list[Figure]:
    """The table."""
    return [*_token_rows(plan), *_memory_rows(plan), *_ring_rows(plan)]


def _token_rows(plan: Plan) -> Iterator[Figure]:
    tokens, shared = plan.tokens, plan.run.shared
    clip = f"{tokens.frames} frames, factor {shared.video.factor}"
    yield Figure("tokens", "visual, longest clip", f"{tokens.visual:,}", clip)
    yield Figure("tokens", "prompt", f"{tokens.prompt:,}", f"+ {tokens.text:,} of text")
    yield Figure("tokens", "sequence", f"{tokens.sequence:,}", f"+ answer of {tokens.answer:,}")
    made = f"{tokens.generated} generated, {tokens.answers - tokens.generated} injected"
    yield Figure(
        "tokens", "packed group", f"{tokens.packed:,}", f"{tokens.answers} answers: {made}"
    )


def _memory_rows(plan: Plan) -> Iterator[Figure]:
    rank, replica, ranks = plan.rank, plan.replica, plan.fleet.learner_gpus
    billions = f"{plan.architecture.parameters / 1e9:.2f}e9 parameters"
    adapted = plan.run.learner.lora is not None
    how = f"16 B an adapter, 2 B below / {ranks}" if adapted else f"16 B / {ranks}"
    yield Figure("learner rank", "masters, gradients, AdamW", _gb(rank.states), how)
    how = "2 B each" if adapted else "8 B each"
    yield Figure("learner rank", "embedding and head, gathered", _gb(rank.root), how)
    kept = _gb(rank.kept + rank.inside + rank.gathered + rank.logits)
    yield Figure("learner rank", "activations", kept, "layers, boundaries, logits")
    yield Figure("learner rank", "tokens at once", f"{plan.rank_tokens:,}", "max_tokens_per_rank")
    share = f"{plan.recomputed:.0%} of the layers"
    yield Figure("learner rank", "recomputed in backward", share, "gradient_checkpointing")
    yield Figure("learner rank", "tower, reference", _gb(rank.replicated), "whole, on each rank")
    how = _where(plan.run.learner.weight_staging, plan.architecture)
    yield Figure("learner rank", "snapshot that travels", _gb(rank.snapshot), f"rank 0; {how}")
    yield Figure("learner rank", "peak: backward", _gb(rank.backward), "all of these")
    how = f"20 B{' an adapter' if adapted else ''}, no activations"
    yield Figure("learner rank", "peak: AdamW", _gb(rank.step), how)
    start = f"{billions} in float32, also in host memory"
    yield Figure("learner rank", "peak: start", _gb(rank.start), start)
    yield Figure("replica", "weights", _gb(replica.weights), "bfloat16")
    how = _where(plan.run.rollout.weight_staging, plan.architecture)
    yield Figure("replica", "staging of new weights", _gb(replica.staging), f"each GPU; {how}")
    yield Figure("replica", "room for keys and values", _gb(replica.cache), "what is left")
    yield Figure("replica", "one longest sequence", _gb(replica.longest_sequence), "max_model_len")
    yield Figure("replica", "prompts in work", _gb(replica.in_work), "prompt shared by its answers")
    yield Figure("replica", "prompts in work, unshared", _gb(replica.unshared), "beyond: they wait")


def _ring_rows(plan: Plan) -> Iterator[Figure]:
    learner, rollout = plan.run.learner, plan.run.rollout
    how = f"({learner.max_staleness} + 1) x {learner.groups_per_step}"
    yield Figure("ring", "outstanding prompts", str(plan.outstanding), how)
    how = f"{plan.replicas} replicas x {rollout.concurrent_prompts}"
    yield Figure("ring", "prompts in work at once", str(plan.slots), how)
    if (times := plan.times) is None:
        return
    work = f"{times.group_tflop:,.0f} TFLOP a group, without recomputation"
    yield Figure("estimate", "learner", f"{times.learner_s:.0f} s a step", work)
    yield Figure("estimate", "rollout", f"{times.rollout_s:.0f} s a step", "all replicas")
    how = "beside the next step" if times.overlaps_publish else "between steps"
    yield Figure("estimate", "publish", f"{times.publish_s:.1f} s a step", f"3.9 GB/s, {how}")
    total = f"{learner.steps * times.step_s / 3600:.1f} h for {learner.steps:,} steps"
    yield Figure("estimate", "step", f"{times.step_s:.0f} s, longest clips", total)


def misfits(plan: Plan) -> list[str]:
    """What does not fit, one line each; empty when everything does."""
    return [*_device_misfits(plan), *length_misfits(plan), *memory_misfits(plan), *_ring(plan)]


def _device_misfits(plan: Plan) -> Iterator[str]:
    shared, learner, rollout = plan.run.shared, plan.run.learner, plan.run.rollout
    for knob, device in (("learner", learner.device), ("rollout", rollout.device)):
        if device != "cuda":
            yield f"{knob}.device: found {device!r}, wanted 'cuda' for this plan's GPUs"
    if shared.dtype != "bfloat16":
        yield (
            f"shared.dtype: found {shared.dtype!r}, wanted 'bfloat16': float32 has no fused "
            "attention on a GPU"
        )
    if shared.video.factor != plan.architecture.factor:
        yield (
            f"shared.video.factor: found {shared.video.factor}, wanted {plan.architecture.factor} "
            f"for {shared.model}"
        )
    if left := plan.fleet.rollout_gpus % rollout.tensor_parallel:
        yield (
            f"rollout.tensor_parallel: found {rollout.tensor_parallel}, which leaves {left} of "
            f"{plan.fleet.rollout_gpus} rollout GPUs idle, wanted a divisor"
        )
    if plan.architecture.heads % rollout.tensor_parallel:
        yield (
            f"rollout.tensor_parallel: found {rollout.tensor_parallel}, wanted a divisor of the "
            f"{plan.architecture.heads} attention heads: vLLM does not start otherwise"
        )
    if isinstance(learner.shard_within, int) and plan.fleet.learner_gpus % learner.shard_within:
        yield (
            f"learner.shard_within: found {learner.shard_within}, wanted a divisor of the "
            f"{plan.fleet.learner_gpus} --learner-gpus: the learner does not start otherwise"
        )


def length_misfits(plan: Plan) -> Iterator[str]:
    shared, rollout, tokens = plan.run.shared, plan.run.rollout, plan.tokens
    if tokens.prompt > shared.max_prompt_tokens:
        yield (
            f"shared.max_prompt_tokens: found {shared.max_prompt_tokens:,}, wanted "
            f"{tokens.prompt:,}: {tokens.visual:,} visual tokens of {tokens.frames} frames and "
            f"{tokens.text:,} of text; raise it, or lower shared.video.total_pixels"
        )
    if (wanted := shared.max_prompt_tokens + tokens.answer) > rollout.max_model_len:
        yield (
            f"rollout.max_model_len: found {rollout.max_model_len:,}, wanted {wanted:,}: "
            "shared.max_prompt_tokens + shared.sampling.max_tokens"
        )


def memory_misfits(plan: Plan) -> Iterator[str]:
    rank, replica = plan.rank, plan.replica
    if rank.peak > (usable := USABLE * plan.fleet.gpu_bytes):
        when = {rank.backward: "backward", rank.step: "AdamW's step"}.get(rank.peak, "the start")
        yield (
            f"learner memory: found {_gb(rank.peak)} a rank in {when}, wanted {_gb(usable)} "
            f"({USABLE:.0%} of {plan.fleet.gpu_memory_gb:g} GB): more --learner-gpus, "
            "learner.gradient_checkpointing = 'on', fewer learner.max_tokens_per_rank, "
            f"learner.weight_staging = 'host' ({_gb(rank.snapshot)} on rank 0), shorter clips"
        )
    if replica.cache < (most := max(replica.longest_sequence, replica.in_work)):
        yield (
            f"replica memory: found room for {_gb(replica.cache)} of keys and values, wanted "
            f"{_gb(most)}: lower rollout.max_model_len or rollout.concurrent_prompts, raise "
            "rollout.gpu_memory_utilization or rollout.tensor_parallel, or keep new weights "
            f"({_gb(replica.staging)}) in rollout.weight_staging = 'host'"
        )


def _ring(plan: Plan) -> Iterator[str]:
    learner, rollout, ranks = plan.run.learner, plan.run.rollout, plan.fleet.learner_gpus
    if plan.replicas == 0:
        yield (
            f"--rollout-gpus: found {plan.fleet.rollout_gpus}, wanted at least one replica's "
            f"{rollout.tensor_parallel} (rollout.tensor_parallel)"
        )
    if plan.replicas < learner.min_replicas:
        yield (
            f"learner.min_replicas: found {learner.min_replicas}, wanted at most the "
            f"{plan.replicas} replicas there are: training would wait for ever"
        )
    if plan.slots > plan.outstanding:
        yield (
            f"rollout.concurrent_prompts: found {rollout.concurrent_prompts} x {plan.replicas} "
            f"replicas = {plan.slots}, wanted at most the {plan.outstanding} outstanding prompts: "
            "the rest of the fleet stays idle; lower it, or raise learner.groups_per_step or "
            "learner.max_staleness"
        )
    if learner.groups_per_step < ranks:
        yield (
            f"learner.groups_per_step: found {learner.groups_per_step}, wanted at least {ranks}, "
            "one a rank: the others would only keep step"
        )
    if rollout.max_num_seqs < plan.tokens.generated:
        yield (
            f"rollout.max_num_seqs: found {rollout.max_num_seqs}, wanted at least "
            f"{plan.tokens.generated}, the answers of one prompt"
        )


def _where(place: Place, architecture: Architecture) -> str:
    if place == "device":
        return "shared.dtype, on the device"
    return f"buckets; {_gb(BF16 * architecture.parameters)} pinned on the host"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
