"""Where is a policy good? Judged pairs → figures by span length, position and clip duration.

Used by `jobs.evaluation.scoring.score`. A query belongs to one group of each breakdown; annotations
without a duration are in none of the groups that need one, and are counted there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import numpy as np

from jobs.evaluation.scoring.matching import Pair, Question
from jobs.evaluation.scoring.protocols import Judgement

LENGTH_EDGES_S = (0, 2, 5, 10, 20, inf)
"""The groups of SPEC A2, by total length of the true spans."""
POSITION_EDGES = (0, 1 / 3, 2 / 3, inf)
"""Middle of the true spans over the duration of the clip."""
DURATION_EDGES_S = (0, 30, 60, 120, 300, inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Queries of one kind."""

    name: str
    queries: int
    miou: float | None
    """Percent; None without a query. Likewise R1 at 0.5."""
    recall_50: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """The same queries, grouped."""

    by: str
    groups: tuple[Group, ...]
    unknown: int
    """Queries whose annotation does not say."""


def breakdowns(pairs: Sequence[Pair], *, judgement: Judgement) -> tuple[Breakdown, ...]:
    """Figures of the scored queries by span length, position and duration."""
    questions = [question for _, question in pairs]
    kinds: tuple[tuple[str, tuple[float, ...], str, Callable[[Question], float | None]], ...] = (
        ("span length", LENGTH_EDGES_S, " s", _length_s),
        ("position", POSITION_EDGES, "", _position),
        ("duration", DURATION_EDGES_S, " s", lambda question: question.duration_s),
    )
    return tuple(
        _breakdown(by, edges, unit, [value(question) for question in questions], judgement)
        for by, edges, unit, value in kinds
    )


def _breakdown(
    by: str,
    edges: Sequence[float],
    unit: str,
    values: Sequence[float | None],
    judgement: Judgement,
) -> Breakdown:
    numbers = np.array([np.nan if value is None else value for value in values])[judgement.scored]
    hits = judgement.hits(0.5)
    groups = []
    for low, high in pairwise(edges):
        chosen = (numbers >= low) & (numbers < high)
        some = bool(chosen.any())
        groups.append(
            Group(
                name=_name(low, high, unit),
                queries=int(chosen.sum()),
                miou=float(judgement.scored_ious[chosen].mean() * 100) if some else None,
                recall_50=float(hits[chosen].mean() * 100) if some else None,
            )
        )
    return Breakdown(by=by, groups=tuple(groups), unknown=int(np.isnan(numbers).sum()))


def _name(low: float, high: float, unit: str) -> str:
    return f">= {low:.3g}{unit}" if high == inf else f"{low:.3g} to {high:.3g}{unit}"


def _length_s(question: Question) -> float:
    return sum(end - start for start, end in question.spans)


def _position(question: Question) -> float | None:
    if not question.duration_s:
        return None
    middle_s = (question.spans[0][0] + question.spans[-1][1]) / 2
    return middle_s / question.duration_s
