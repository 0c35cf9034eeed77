"""Who forwards what, and when: groups of a step → micro-batches of every rank (pure).

FSDP keeps ranks in step: a micro-batch takes as long as its dearest rank, so a step takes
Σ_micro-batches max_ranks cost. Cost is FLOPs, in which attention is quadratic. Groups of unequal
prompts share a micro-batch while `max_tokens` holds; that alone evens ranks out, because the two
groups of a rank then add up instead of each waiting for its like. A group is split along its
answers where that pays although its prompt is then paid twice, and where it is too large for one
rank: gradients add up, so a split is exact.

Every rank computes the same plan from the same groups, whatever their order.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from common.model.architecture import Architecture
from common.model.flops import forward_flop, tower_flop
from services.learner.batching.layout import packed_lengths

MAX_SPLITS = 16
"""Tries to even ranks out; each plans the step anew (5 ms for 64 groups on 16 ranks)."""
KEPT_PLANS = 2
"""This step's, and the next one's."""
WORTH_IT = 0.99
"""A split has to save a hundredth of the step: it also costs a decoded clip on a second rank."""

Cost = Callable[[int, int, Sequence[int]], float]
"""Prompt tokens, visual tokens among them, forwarded tokens of each answer → FLOPs."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan goes by."""

    max_tokens: int
    """`learner.max_tokens_per_rank`: packed tokens, padding included, forwarded at once."""
    cost: Cost
    splits: bool = True
    """Whether groups that would fit may be split to even ranks out."""


@dataclass(frozen=True, slots=True, order=True)
class Work:
    """A group as a plan sees it."""

    key: str
    """Its prompt id: breaks ties, so that the order of groups says nothing."""
    prompt: int
    visual: int
    answers: tuple[int, ...]
    """Tokens of each row that is trained on."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one group that are forwarded together."""

    work: Work
    rows: tuple[int, ...]
    """Positions in `work.answers`, ascending."""
    tokens: int
    cost: float

    @property
    def order(self) -> tuple[float, str, tuple[int, ...]]:
        """Dearest first."""
        return -self.cost, self.work.key, self.rows


Bin = tuple[Part, ...]
"""What one rank forwards in one micro-batch."""
Plan = tuple[tuple[Bin, ...], ...]
"""[micro-batch][rank]; empty bins where a rank only keeps step."""


def flop_cost(architecture: Architecture, *, passes: float, trained_tower: bool) -> Cost:
    """Cost of a group that is trained on.

    Args:
        architecture: sizes.
        passes: forward passes that forward, backward and recomputation amount to, 3 to 4.
        trained_tower: whether the vision tower has a backward pass too.
    """
    tower_passes = passes if trained_tower else 1.0

    def cost(prompt: int, visual: int, answers: Sequence[int]) -> float:
        scored = sum(answers) + len(answers)
        forward = forward_flop(architecture, prompt=prompt, answers=answers, scored=scored)
        return passes * forward + tower_passes * tower_flop(architecture, visual=visual)

    return cost


def smallest(work: Work) -> int:
    """Tokens that this group needs at least: its prompt and its longest answer."""
    return work.prompt + sum(packed_lengths([max(work.answers)]))


def plan(works: Sequence[Work], *, world_size: int, limits: Limits) -> Plan:
    """The dearest group first to whoever has least, then splits while they pay.

    A step is planned when its clips are decoded ahead, when ranks look at it and when it is made
    tensors of: what was planned last is kept.

    Raises:
        ValueError: a group is too large whatever is split; names the number that would fit.
    """
    return _planned(tuple(works), world_size, limits)


@lru_cache(maxsize=KEPT_PLANS)
def _planned(works: tuple[Work, ...], world_size: int, limits: Limits) -> Plan:
    parts = [part for work in works for part in _fitting(work, limits)]
    best = _assigned(parts, world_size=world_size, limits=limits)
    for _ in range(MAX_SPLITS if limits.splits else 0):
        tried = _split_once(best, world_size=world_size, limits=limits)
        if tried is None:
            break
        best = tried
    return best


def time_of(plan: Plan) -> float:
    """FLOPs that a rank is kept busy for."""
    return sum(max(map(_cost, bins)) for bins in plan)


def useful_share(plan: Plan, works: Sequence[Work], *, cost: Cost) -> float:
    """Of all ranks' time: what goes into groups as such, without padding, splits and waiting."""
    useful = sum(
        cost(work.prompt, work.visual, [length - 1 for length in work.answers]) for work in works
    )
    return useful / (len(plan[0]) * time_of(plan))


def _cost(parts: Bin) -> float:
    return sum(part.cost for part in parts)


def _tokens(parts: Bin) -> int:
    return sum(part.tokens for part in parts)


def _part(work: Work, rows: Sequence[int], limits: Limits) -> Part:
    lengths = packed_lengths([work.answers[row] for row in rows])
    cost = limits.cost(work.prompt, work.visual, lengths)
    return Part(work, tuple(sorted(rows)), work.prompt + sum(lengths), cost)


def _fitting(work: Work, limits: Limits) -> Iterator[Part]:
    """The group, or as few parts of it as fit; answers of like length stay together."""
    if smallest(work) > limits.max_tokens:
        raise ValueError(too_large(work, limits.max_tokens))
    rows: list[int] = []
    for row in sorted(range(len(work.answers)), key=lambda row: (-work.answers[row], row)):
        if rows and _part(work, [*rows, row], limits).tokens > limits.max_tokens:
            yield _part(work, rows, limits)
            rows = []
        rows.append(row)
    yield _part(work, rows, limits)


def too_large(work: Work, max_tokens: int) -> str:
    """Why a group cannot be trained on."""
    longest = max(work.answers)
    return (
        f"prompt {work.key}: found {work.prompt:,} prompt tokens and an answer of {longest:,}, "
        f"wanted at most {max_tokens:,} together: set learner.max_tokens_per_rank to "
        f"{smallest(work):,} if memory allows, or lower shared.max_prompt_tokens"
    )


def _assigned(parts: Sequence[Part], *, world_size: int, limits: Limits) -> Plan:
    """The fastest of the three smallest numbers of micro-batches that hold everything."""
    ordered = sorted(parts, key=lambda part: part.order)
    count = -(-_tokens(tuple(parts)) // (world_size * limits.max_tokens))
    found: list[Plan] = []
    while len(found) < 3 and count <= len(parts):
        bins = _filled(ordered, count * world_size, max_tokens=limits.max_tokens)
        if bins is not None:
            found.append(_in_step(bins, world_size))
        count += 1
    return min(found, key=time_of)


def _filled(ordered: Sequence[Part], count: int, *, max_tokens: int) -> list[Bin] | None:
    bins: list[Bin] = [()] * count
    costs, rooms = [0.0] * count, [max_tokens] * count
    for part in ordered:
        fits = [index for index in range(count) if rooms[index] >= part.tokens]
        if not fits:
            return None
        index = min(fits, key=costs.__getitem__)
        bins[index] += (part,)
        costs[index] += part.cost
        rooms[index] -= part.tokens
    return bins


def _in_step(bins: Sequence[Bin], world_size: int) -> Plan:
    """Bins of like cost in one micro-batch; rank 0, which holds a snapshot too, has the least."""
    ordered = sorted(bins, key=_cost)
    rows = [ordered[start : start + world_size] for start in range(0, len(bins), world_size)]
    return tuple(tuple(row) for row in reversed(rows) if any(row))


def _split_once(before: Plan, *, world_size: int, limits: Limits) -> Plan | None:
    """A faster plan with one group split in halves, or None; the dearest ones are tried."""
    parts = [part for bins in before for parts in bins for part in parts]
    for bins in before:
        dearest = max(bins, key=_cost)
        divisible = [part for part in dearest if len(part.rows) > 1]
        for part in sorted(divisible, key=lambda part: part.order)[:2]:
            others = [other for other in parts if other is not part]
            halves = _halves(part, limits)
            after = _assigned([*others, *halves], world_size=world_size, limits=limits)
            if time_of(after) < WORTH_IT * time_of(before):
                return after
    return None


def _halves(part: Part, limits: Limits) -> list[Part]:
    """About as many answer tokens in both; like lengths stay together."""
    answers = part.work.answers
    rows = sorted(part.rows, key=lambda row: (-answers[row], row))
    total = sum(answers[row] for row in rows)
    taken, count = 0, 0
    while count < len(rows) - 1 and (count == 0 or 2 * taken < total):
        taken += answers[rows[count]]
        count += 1
    return [_part(part.work, rows[:count], limits), _part(part.work, rows[count:], limits)]
