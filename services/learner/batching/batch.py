"""Scored groups and their advantages → `TrainBatch`: padded tensors for one prompt pass a group.

`advantage.py` and `intake.py` give the input, `policy.py` and `loss.py` read the output. Pure:
every rank is given all groups of the step and computes the same plan, so that ranks agree on the
number of micro-batches and on the loss denominator without talking.

Shapes: G groups of a micro-batch, S samples a group, P prompt tokens, R answer tokens (the stop
token included), padded with zeros on the right; `answer_mask_GSR` says what is real.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from common.messages import ClipRef, Float32Array, Int32Array, Sample, ScoredGroup


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Groups of equal prompt length and patch grid, forwarded together."""

    prompt_ids_GP: Tensor
    """[G, P] int64."""
    answer_ids_GSR: Tensor
    """[G, S, R] int64."""
    answer_mask_GSR: Tensor
    """[G, S, R] bool, True where a token is trained on; all False in a row that only pads S."""
    advantages_GS: Tensor
    """[G, S] float32."""
    rollout_logprobs_GSR: Tensor
    """[G, S, R] float32, nats, <= 0, by the engine that sampled; 0 in injected rows and padding."""
    is_policy_GS: Tensor
    """[G, S] bool, False for injected rows and padding."""
    clips: tuple[ClipRef, ...]
    """[G] what the prompts' visual placeholders stand for."""

    def to(self, device: torch.device) -> Self:
        """The same micro-batch on another device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in self.__slots__
            if name != "clips"
        }
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """One step's work of one rank; the counts are those of the whole step, over all ranks."""

    micro_batches: tuple[MicroBatch, ...]
    """Equally many on every rank: one with less work fills up with nothing to train on."""
    num_tokens: int
    num_sequences: int


NO_WORK = TrainBatch(micro_batches=(), num_tokens=0, num_sequences=0)
"""A step in which nothing is left to train on."""


class _Row(NamedTuple):
    sample: Sample
    advantage: float


@dataclass(frozen=True, slots=True)
class _Group:
    """A group reduced to the rows that are trained on."""

    group: ScoredGroup
    rows: tuple[_Row, ...]

    @property
    def shape(self) -> tuple[int, tuple[int, int, int]]:
        return len(self.group.prompt_token_ids), self.group.grid_thw

    @property
    def num_tokens(self) -> int:
        return sum(len(row.sample.token_ids) for row in self.rows)

    @property
    def cost(self) -> int:
        """Tokens forwarded: the prompt once, each answer once."""
        return len(self.group.prompt_token_ids) + self.num_tokens


def collate(
    groups: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float | None]],
    *,
    micro_batch_groups: int,
    rank: int = 0,
    world_size: int = 1,
) -> TrainBatch:
    """This rank's part of a step.

    Args:
        groups: all groups of the step, the same on every rank.
        advantages: one number a sample of each group (`advantage.sample_advantages`); a sample with
            None is left out, and so is a group without any number.
        micro_batch_groups: at most so many groups are forwarded together.
        rank: this rank.
        world_size: number of ranks.

    Raises:
        ValueError: no sample at all is left to train on.
    """
    trained = _trained(groups, advantages)
    if not trained:
        raise ValueError(
            f"found no sample to train on in {len(groups)} group(s), wanted one with verdicts: "
            "is the reward service (shared.reward_url) up?"
        )
    plans = [_micro_batches(share, micro_batch_groups) for share in _shares(trained, world_size)]
    num_micro_batches = max(len(plan) for plan in plans)
    num_idle = num_micro_batches - len(plans[rank])
    cheapest = _cheapest(trained)
    return TrainBatch(
        micro_batches=(
            *(_tensors(groups) for groups in plans[rank]),
            *(_without_work(cheapest) for _ in range(num_idle)),
        ),
        num_tokens=sum(group.num_tokens for group in trained),
        num_sequences=sum(len(group.rows) for group in trained),
    )


def groups_of_rank(
    groups: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float | None]],
    *,
    rank: int,
    world_size: int,
) -> list[ScoredGroup]:
    """The groups whose clips a rank needs for `collate`'s batch.

    The cheapest one of the step stands in where a rank has less to do than the others.
    """
    trained = _trained(groups, advantages)
    if not trained:
        return []
    share = _shares(trained, world_size)[rank]
    cheapest = _cheapest(trained)
    if world_size > 1 and all(item is not cheapest for item in share):
        share = [*share, cheapest]
    return [item.group for item in share]


def _trained(
    groups: Sequence[ScoredGroup], advantages: Sequence[Sequence[float | None]]
) -> list[_Group]:
    return [
        _Group(group, rows)
        for group, numbers in zip(groups, advantages, strict=True)
        if (rows := tuple(_rows(group, numbers)))
    ]


def _cheapest(groups: Sequence[_Group]) -> _Group:
    return min(groups, key=lambda group: group.cost)


def _rows(group: ScoredGroup, advantages: Sequence[float | None]) -> Iterable[_Row]:
    for sample, advantage in zip(group.samples, advantages, strict=True):
        if advantage is not None:
            yield _Row(sample, advantage)


def _shares(groups: Sequence[_Group], world_size: int) -> list[list[_Group]]:
    """Groups of each rank: dearest first, to the least loaded; ties go by position everywhere."""
    shares: list[list[_Group]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for group in sorted(groups, key=lambda group: -group.cost):
        rank = loads.index(min(loads))
        shares[rank].append(group)
        loads[rank] += group.cost
    return shares


def _micro_batches(groups: Sequence[_Group], micro_batch_groups: int) -> list[list[_Group]]:
    ordered = sorted(groups, key=lambda group: group.shape)
    return [
        list(chunk)
        for _, same_shape in itertools.groupby(ordered, key=lambda group: group.shape)
        for chunk in _chunks(list(same_shape), micro_batch_groups)
    ]


def _chunks(groups: Sequence[_Group], size: int) -> Iterable[Sequence[_Group]]:
    for start in range(0, len(groups), size):
        yield groups[start : start + size]


def _tensors(groups: Sequence[_Group]) -> MicroBatch:
    shape = (
        len(groups),
        max(len(group.rows) for group in groups),
        max(len(row.sample.token_ids) for group in groups for row in group.rows),
    )
    answer_ids_GSR = torch.zeros(shape, dtype=torch.int64)
    answer_mask_GSR = torch.zeros(shape, dtype=torch.bool)
    rollout_logprobs_GSR = torch.zeros(shape, dtype=torch.float32)
    advantages_GS = torch.zeros(shape[:2], dtype=torch.float32)
    is_policy_GS = torch.zeros(shape[:2], dtype=torch.bool)
    for g, group in enumerate(groups):
        for s, (sample, advantage) in enumerate(group.rows):
            length = len(sample.token_ids)
            answer_ids_GSR[g, s, :length] = _tensor(sample.token_ids)
            answer_mask_GSR[g, s, :length] = True
            advantages_GS[g, s] = advantage
            if sample.provenance == "policy":
                is_policy_GS[g, s] = True
                rollout_logprobs_GSR[g, s, :length] = _tensor(sample.logprobs)
    return MicroBatch(
        prompt_ids_GP=torch.stack(
            [_tensor(group.group.prompt_token_ids) for group in groups]
        ).long(),
        answer_ids_GSR=answer_ids_GSR,
        answer_mask_GSR=answer_mask_GSR,
        advantages_GS=advantages_GS,
        rollout_logprobs_GSR=rollout_logprobs_GSR,
        is_policy_GS=is_policy_GS,
        clips=tuple(group.group.clip for group in groups),
    )


def _tensor(numbers: Int32Array | Float32Array) -> Tensor:
    """[len(numbers)] int32 or float32, a copy."""
    dtype = torch.int32 if isinstance(numbers, Int32Array) else torch.float32
    return torch.frombuffer(numbers.to_buffer(), dtype=dtype)


def _without_work(group: _Group) -> MicroBatch:
    """A real prompt with nothing to train on: it runs every collective and adds zero."""
    micro_batch = _tensors([group])
    return replace(
        micro_batch,
        answer_mask_GSR=torch.zeros_like(micro_batch.answer_mask_GSR),
        advantages_GS=torch.zeros_like(micro_batch.advantages_GS),
        is_policy_GS=torch.zeros_like(micro_batch.is_policy_GS),
    )
