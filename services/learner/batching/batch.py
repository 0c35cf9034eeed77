"""Scored groups and their advantages → `TrainBatch`: tensors for one prompt pass a group.

`advantage.py` and `intake.py` give the input, `policy.py` and `loss.py` read the output, `plan.py`
says who forwards what. Pure: every rank is given all groups of the step and computes the same plan,
so that ranks agree on the number of micro-batches and on the loss denominator without talking.

Shapes: G groups of a micro-batch, S samples a group, P prompt tokens, R answer tokens (the stop
token included), padded with zeros on the right; `answer_mask_GSR` says what is real. Padding costs
nothing here: `layout.py` packs what is real for the model. N ids that all tokens were chosen from.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from common.messages import ClipRef, Float32Array, Int32Array, Sample, ScoredGroup
from services.learner.batching.plan import (
    Bin,
    Limits,
    Part,
    Plan,
    Work,
    plan,
    smallest,
    too_large,
)

IDLE_TOKENS = 2
"""Of the text that a rank without work forwards to keep step."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Groups, or parts of them, that are forwarded together."""

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
    """[G] what the prompts' visual placeholders stand for; empty: a few tokens of text that keep
    step with the other ranks."""
    prompt_tokens: tuple[int, ...]
    """[G] real tokens of each prompt."""
    answer_tokens: tuple[tuple[int, ...], ...]
    """[G][S] tokens of each answer to forward, 0 in a row that only pads S."""
    kept_counts_GSR: Tensor | None = None
    """[G, S, R] int64, how many ids a token was chosen from; 0: from all, as tokens of injected
    rows count, and padding. None: so it is everywhere."""
    kept_ids_N: Tensor | None = None
    """[N] int32, these ids, those of the first token of all first; None with the counts."""

    def to(self, device: torch.device) -> Self:
        """The same micro-batch on another device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name in self.__slots__
            if isinstance(value := getattr(self, name), Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """One step's work of one rank; the counts are those of the whole step, over all ranks."""

    micro_batches: tuple[MicroBatch, ...]
    """Equally many on every rank: one with less work fills up with nothing to train on."""
    num_tokens: int
    num_sequences: int
    plan: Plan
    """Of all ranks."""


NO_WORK = TrainBatch(micro_batches=(), num_tokens=0, num_sequences=0, plan=())
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
    def work(self) -> Work:
        """What a plan needs to know."""
        return Work(
            key=self.group.prompt_id,
            prompt=len(self.group.prompt_token_ids),
            visual=self.group.num_visual_tokens,
            answers=tuple(len(row.sample.token_ids) for row in self.rows),
        )


def collate(
    groups: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float | None]],
    *,
    limits: Limits,
    rank: int = 0,
    world_size: int = 1,
) -> TrainBatch:
    """This rank's part of a step.

    Args:
        groups: all groups of the step, the same on every rank.
        advantages: one number a sample of each group (`advantage.sample_advantages`); a sample with
            None is left out, and so is a group without any number.
        limits: what is forwarded together, and what it costs.
        rank: this rank.
        world_size: number of ranks.

    Raises:
        ValueError: no sample at all is left to train on, or a group is too large (`faults`).
    """
    trained = _trained(groups, advantages)
    if not trained:
        raise ValueError(
            f"found no sample to train on in {len(groups)} group(s), wanted one with verdicts: "
            "is the reward service (shared.reward_url) up?"
        )
    works = [group.work for group in trained]
    whole = plan(works, world_size=world_size, limits=limits)
    by_key = {group.group.prompt_id: group for group in trained}
    return TrainBatch(
        micro_batches=tuple(_tensors(bins[rank], by_key) if bins[rank] else IDLE for bins in whole),
        num_tokens=sum(sum(work.answers) for work in works),
        num_sequences=sum(len(group.rows) for group in trained),
        plan=whole,
    )


def faults(
    groups: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float | None]],
    *,
    max_tokens: int,
) -> dict[str, str]:
    """Groups that no rank has room for, by prompt id: the prompt and its longest answer."""
    works = [group.work for group in _trained(groups, advantages)]
    return {work.key: too_large(work, max_tokens) for work in works if smallest(work) > max_tokens}


def shares(
    groups: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float | None]],
    *,
    limits: Limits,
    world_size: int,
) -> list[list[ScoredGroup]]:
    """For each rank, the groups whose clips it needs for `collate`'s batch, in order of use."""
    works = [group.work for group in _trained(groups, advantages)]
    if not works:
        return [[] for _ in range(world_size)]
    whole = plan(works, world_size=world_size, limits=limits)
    by_key = {group.prompt_id: group for group in groups}
    keys = [
        dict.fromkeys(part.work.key for bins in whole for part in bins[rank])
        for rank in range(world_size)
    ]
    return [[by_key[key] for key in own] for own in keys]


def _trained(
    groups: Sequence[ScoredGroup], advantages: Sequence[Sequence[float | None]]
) -> list[_Group]:
    return [
        _Group(group, rows)
        for group, numbers in zip(groups, advantages, strict=True)
        if (rows := tuple(_rows(group, numbers)))
    ]


def _rows(group: ScoredGroup, advantages: Sequence[float | None]) -> Iterable[_Row]:
    for sample, advantage in zip(group.samples, advantages, strict=True):
        if advantage is not None:
            yield _Row(sample, advantage)


def _tensors(parts: Bin, groups: dict[str, _Group]) -> MicroBatch:
    """Parts of equally long prompts stand together: they are forwarded as one segment."""
    ordered = sorted(parts, key=lambda part: (part.work.prompt, part.order))
    rows = [_rows_of(part, groups) for part in ordered]
    answers = [[len(row.sample.token_ids) for row in group] for group in rows]
    shape = (len(rows), max(map(len, rows)), max(map(max, answers)))
    answer_ids_GSR = torch.zeros(shape, dtype=torch.int64)
    answer_mask_GSR = torch.zeros(shape, dtype=torch.bool)
    rollout_logprobs_GSR = torch.zeros(shape, dtype=torch.float32)
    advantages_GS = torch.zeros(shape[:2], dtype=torch.float32)
    is_policy_GS = torch.zeros(shape[:2], dtype=torch.bool)
    prompt_ids_GP = torch.zeros(
        len(rows), max(part.work.prompt for part in ordered), dtype=torch.int64
    )
    for g, part in enumerate(ordered):
        prompt = groups[part.work.key].group.prompt_token_ids
        prompt_ids_GP[g, : len(prompt)] = _tensor(prompt)
        for s, (sample, advantage) in enumerate(rows[g]):
            length = len(sample.token_ids)
            answer_ids_GSR[g, s, :length] = _tensor(sample.token_ids)
            answer_mask_GSR[g, s, :length] = True
            advantages_GS[g, s] = advantage
            if sample.provenance == "policy":
                is_policy_GS[g, s] = True
                rollout_logprobs_GSR[g, s, :length] = _tensor(sample.logprobs)
    kept_counts_GSR, kept_ids_N = _kept(rows, shape)
    return MicroBatch(
        prompt_ids_GP=prompt_ids_GP,
        answer_ids_GSR=answer_ids_GSR,
        answer_mask_GSR=answer_mask_GSR,
        advantages_GS=advantages_GS,
        rollout_logprobs_GSR=rollout_logprobs_GSR,
        is_policy_GS=is_policy_GS,
        clips=tuple(groups[part.work.key].group.clip for part in ordered),
        prompt_tokens=tuple(part.work.prompt for part in ordered),
        answer_tokens=tuple((*row, *[0] * (shape[1] - len(row))) for row in answers),
        kept_counts_GSR=kept_counts_GSR,
        kept_ids_N=kept_ids_N,
    )


def _kept(
    rows: Sequence[Sequence[_Row]], shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Counts and ids of a micro-batch; None without any, and then nothing is masked."""
    counts_GSR = torch.zeros(shape, dtype=torch.int64)
    ids = []
    for g, group in enumerate(rows):
        for s, (sample, _) in enumerate(group):
            if sample.kept is not None:
                counts_GSR[g, s, : len(sample.kept.counts)] = _tensor(sample.kept.counts)
                ids.append(_tensor(sample.kept.ids))
    return (counts_GSR, torch.cat(ids)) if ids else (None, None)


def _rows_of(part: Part, groups: dict[str, _Group]) -> list[_Row]:
    rows = groups[part.work.key].rows
    return [rows[row] for row in part.rows]


def _tensor(numbers: Int32Array | Float32Array) -> Tensor:
    """[len(numbers)] int32 or float32, a copy."""
    dtype = torch.int32 if isinstance(numbers, Int32Array) else torch.float32
    return torch.frombuffer(numbers.to_buffer(), dtype=dtype)


def _idle() -> MicroBatch:
    """Nothing to train on: it enters every collective, adds zero, and needs no clip."""
    ids = torch.zeros(1, 1, IDLE_TOKENS, dtype=torch.int64)
    return MicroBatch(
        prompt_ids_GP=ids[0],
        answer_ids_GSR=ids,
        answer_mask_GSR=torch.zeros_like(ids, dtype=torch.bool),
        advantages_GS=torch.zeros(1, 1),
        rollout_logprobs_GSR=torch.zeros(1, 1, IDLE_TOKENS),
        is_policy_GS=torch.zeros(1, 1, dtype=torch.bool),
        clips=(),
        prompt_tokens=(IDLE_TOKENS,),
        answer_tokens=((IDLE_TOKENS,),),
    )


IDLE = _idle()
"""Of a rank with less work than the others."""
