"""Two runs' answers to the same queries → differences, flips, changes: `difference(a, b, …)`.

Everything is paired by query and judged by one protocol. `jobs.evaluation.comparing.command` finds
the pairs and prints.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from common.answers.spans import Span
from jobs.evaluation.scoring.intervals import Interval, paired_difference
from jobs.evaluation.scoring.matching import Pair
from jobs.evaluation.scoring.protocols import PROTOCOLS, THRESHOLDS, Judgement, judge, read_answer

MIN_QUERIES = 10
"""Resampling fewer shows no more than that they are few; no run is called better."""
MOST_CHANGED = 10

Values = npt.NDArray[np.float64] | npt.NDArray[np.bool_]
Verdict = Literal["A is better", "B is better", "tie", "too few queries"]


class Record(BaseModel):
    """Base of what is written with --json."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Difference(Record):
    """One figure of both runs."""

    figure: str
    a: float
    """Percent; likewise b."""
    b: float
    b_minus_a: Interval
    """Points, with the 95 % interval of the paired bootstrap."""
    verdict: Verdict
    """A tie where the interval holds 0."""


class Flips(Record):
    """Queries whose answer reaches a threshold in one run only, by id."""

    threshold: float
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


class Change(Record):
    """A query that the runs answer differently."""

    id: str
    video: str
    query: str
    truth: tuple[Span, ...]
    """Seconds; likewise below."""
    answer_a: tuple[Span, ...]
    """Empty when it could not be read."""
    answer_b: tuple[Span, ...]
    iou_a: float
    iou_b: float


class Differences(Record):
    """Everything in which two runs differ."""

    queries: int
    """Compared."""
    failed: int
    """Not scored in one of the runs: the clip or engine failed, or an equal key replaced it."""
    figures: tuple[Difference, ...]
    """mIoU and R1."""
    flips: tuple[Flips, ...]
    most_changed: tuple[Change, ...]
    """By absolute difference of IoU."""


def differences(pairs_a: Sequence[Pair], *, pairs_b: Sequence[Pair], protocol: str) -> Differences:
    """Compare two runs query by query.

    Args:
        pairs_a: answers of the first run.
        pairs_b: answers of the other to the same questions, in the same order.
        protocol: key of `PROTOCOLS`.

    Raises:
        ValueError: unknown protocol, or no query is scored in both runs.
    """
    judged = _Judged(
        *(pairs_a, pairs_b),
        *(judge(pairs, protocol=protocol) for pairs in (pairs_a, pairs_b)),
    )
    queries = int(judged.both.sum())
    if not queries:
        raise ValueError(
            f"found no query that was answered in both, wanted at least one of {len(pairs_a)}"
        )
    return Differences(
        queries=queries,
        failed=len(pairs_a) - queries,
        figures=tuple(_figures(judged)),
        flips=tuple(_flips(judged, threshold) for threshold in THRESHOLDS),
        most_changed=tuple(_most_changed(judged)),
    )


@dataclass(frozen=True, slots=True)
class _Judged:
    """Both runs over the same queries, in the same order."""

    pairs_a: Sequence[Pair]
    pairs_b: Sequence[Pair]
    a: Judgement
    b: Judgement

    @property
    def both(self) -> npt.NDArray[np.bool_]:
        """[N] queries scored in both."""
        return self.a.scored & self.b.scored


def _figures(judged: _Judged) -> Iterator[Difference]:
    both = judged.both
    yield _difference("mIoU", judged.a.ious[both], judged.b.ious[both])
    for threshold in THRESHOLDS:
        hits = (_hits(side, threshold)[both] for side in (judged.a, judged.b))
        yield _difference(f"R1@{threshold}", *hits)


def _difference(figure: str, a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> Difference:
    found = paired_difference(a, second=b)
    points = Interval(mean=100 * found.mean, low=100 * found.low, high=100 * found.high)
    return Difference(
        figure=figure,
        a=100 * float(a.mean()),
        b=100 * float(b.mean()),
        b_minus_a=points,
        verdict=_verdict(points, queries=len(a)),
    )


def _verdict(points: Interval, *, queries: int) -> Verdict:
    if queries < MIN_QUERIES:
        return "too few queries"
    if points.low <= 0 <= points.high:
        return "tie"
    return "B is better" if points.mean > 0 else "A is better"


def _hits(judgement: Judgement, threshold: float) -> npt.NDArray[np.bool_]:
    """[N] whether IoU reaches a threshold; False where nothing is scored."""
    hits = np.zeros(len(judgement.ious), dtype=np.bool_)
    hits[judgement.scored] = judgement.hits(threshold)
    return hits


def _flips(judged: _Judged, threshold: float) -> Flips:
    a, b = (_hits(side, threshold) & judged.both for side in (judged.a, judged.b))
    ids = [question.id for _, question in judged.pairs_a]
    return Flips(
        threshold=threshold,
        only_a=tuple(ids[i] for i in np.flatnonzero(a & ~b)),
        only_b=tuple(ids[i] for i in np.flatnonzero(b & ~a)),
    )


def _most_changed(judged: _Judged) -> Iterator[Change]:
    changes = np.where(judged.both, np.abs(judged.b.ious - judged.a.ious), 0.0)
    rules = PROTOCOLS[judged.a.protocol]
    for index in np.argsort(-changes, kind="stable")[:MOST_CHANGED]:
        if changes[index] == 0:
            return
        (prediction_a, question), (prediction_b, _) = judged.pairs_a[index], judged.pairs_b[index]
        yield Change(
            id=question.id,
            video=question.video,
            query=question.query,
            truth=question.spans,
            answer_a=read_answer(prediction_a, rules).used,
            answer_b=read_answer(prediction_b, rules).used,
            iou_a=float(judged.a.ious[index]),
            iou_b=float(judged.b.ious[index]),
        )
