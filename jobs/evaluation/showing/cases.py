"""Cases of an evaluation's report: judged pairs → best, median and worst answers as timelines.

Bars are CSS places in percent of the video's length; strips of frames come from
`jobs.evaluation.showing.timelines`, a video that is not there gives a timeline without one. Cases
are chosen by IoU alone, one a video. Neighbour: `jobs.evaluation.showing.report`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.answers.spans import Span
from jobs.evaluation.scoring.matching import Pair, Question
from jobs.evaluation.scoring.protocols import PROTOCOLS, Judgement, read_answer
from jobs.evaluation.showing.timelines import frame_strip, place, ticks

CASES = 4
"""Of each kind."""
MAX_BARS = 12
MAX_AXIS_S = 86_400.0
"""An axis of a day; a longer duration is a slip of the annotation."""
MAX_TEXT = 600
"""Characters of an answer on the page."""
MAX_LISTED = 30
"""Failures listed; all are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One answered query."""

    query: str
    video: str
    iou: float
    true_text: str
    answer_text: str
    """Spans that were read."""
    said: str
    """The answer itself."""
    true_bars: Sequence[str]
    """CSS places."""
    answer_bars: Sequence[str]
    ticks: Sequence[tuple[float, str]]
    """Place in percent, and label."""
    strip: str | None
    """Data URI of frames side by side; None when the video cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseGroup:
    """Cases under one heading."""

    title: str
    cases: Sequence[Case]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedQuery:
    """One query without a span."""

    key: str
    video: str
    query: str
    kind: str
    said: str
    """The error, or the answer that could not be read."""


def case_groups(
    pairs: Sequence[Pair], *, judgement: Judgement, video: Callable[[Question], Path | None]
) -> list[CaseGroup]:
    """Best, median and worst of the readable answers; groups share no query.

    Args:
        pairs: what was judged.
        judgement: of these pairs.
        video: the file of a question, None if there is none.
    """
    readable = [i for i, kind in enumerate(judgement.kinds) if kind == "answered"]
    ranked = sorted(
        (i for i in readable if judgement.scored[i]), key=lambda i: (-judgement.ious[i], i)
    )
    used: set[int] = set()
    groups = []
    for title, order in (
        ("Best", ranked),
        ("Worst", ranked[::-1]),
        ("Median", _from_middle(ranked, judgement)),
    ):
        chosen = _one_a_video([i for i in order if i not in used], pairs)
        used.update(chosen)
        cases = [_case(pairs[i], judgement=judgement, index=i, video=video) for i in chosen]
        groups.append(CaseGroup(title=title, cases=cases))
    best, worst, median = groups
    return [group for group in (best, median, worst) if group.cases]


def failed_queries(
    pairs: Sequence[Pair], *, judgement: Judgement, errors: dict[str, str]
) -> list[FailedQuery]:
    """The first queries without a span, by kind of failure."""
    failed = [
        FailedQuery(
            key=prediction.key,
            video=question.video,
            query=question.query,
            kind=kind,
            said=_cut(errors.get(prediction.key) or prediction.text or "an empty answer"),
        )
        for (prediction, question), kind in zip(pairs, judgement.kinds, strict=True)
        if kind != "answered"
    ]
    return sorted(failed, key=lambda query: query.kind == "parse")[:MAX_LISTED]


def hull(spans: Iterable[Span]) -> Span:
    """From the first start to the last end."""
    starts, ends = zip(*spans, strict=True)
    return min(starts), max(ends)


def _from_middle(ranked: Sequence[int], judgement: Judgement) -> list[int]:
    """Nearest to the median IoU first."""
    if not ranked:
        return []
    median = np.median(judgement.ious[list(ranked)])
    return sorted(ranked, key=lambda i: (abs(judgement.ious[i] - median), i))


def _one_a_video(order: Sequence[int], pairs: Sequence[Pair]) -> list[int]:
    """The first of the order, each of another video as far as there are that many."""
    firsts: dict[str, int] = {}
    for index in order:
        firsts.setdefault(pairs[index][1].video, index)
    rest = [index for index in order if index not in firsts.values()]
    return sorted([*firsts.values(), *rest][:CASES], key=order.index)


def _case(
    pair: Pair,
    *,
    judgement: Judgement,
    index: int,
    video: Callable[[Question], Path | None],
) -> Case:
    prediction, question = pair
    spans = read_answer(prediction, PROTOCOLS[judgement.protocol]).used
    length_s = axis_s(question)
    path = video(question)
    return Case(
        query=question.query,
        video=question.video,
        iou=float(judgement.ious[index]),
        true_text=spans_text(question.spans),
        answer_text=spans_text(spans),
        said=_cut(prediction.text or ""),
        true_bars=[place(span, duration_s=length_s) for span in question.spans[:MAX_BARS]],
        answer_bars=[place(span, duration_s=length_s) for span in spans[:MAX_BARS]],
        ticks=ticks(length_s),
        strip=None if path is None else frame_strip(path, window=question.window),
    )


def axis_s(question: Question) -> float:
    """Length of a timeline: the duration, else the last true end and a tenth."""
    last_s = hull(question.spans)[1]
    duration_s = question.duration_s or 1.1 * last_s
    # NaN compares false: it falls through to a second.
    return min(duration_s, MAX_AXIS_S) if duration_s > 0 else 1.0


def spans_text(spans: Sequence[Span]) -> str:
    """Such as `2.0 to 6.0 s, 8.5 to 9.0 s`; long lists are cut."""
    shown = ", ".join(f"{start:.1f} to {end:.1f} s" for start, end in spans[:MAX_BARS])
    return f"{shown} and {len(spans) - MAX_BARS} more" if len(spans) > MAX_BARS else shown


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} …"
