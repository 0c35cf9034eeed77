"""How code bases score the same predictions: `judge(pairs, protocol=…)` → `Judgement`.

A protocol says how an answer is read, which of its spans counts, how IoU is rounded and compared,
and what becomes of a failure (SPEC A9, B5). `exact` is ours: whole answers, floats, `>=`. The
others reproduce published code, so that a figure can stand beside a published one. Pairs come from
`jobs.evaluation.scoring.matching`; `jobs.evaluation.scoring.moment_detr` is QVHighlights' own
evaluator.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from common.answers.reading import NOTHING, Reading, read_spans
from common.answers.spans import Span, iou, union_iou
from jobs.evaluation.scoring.matching import Pair, Question
from jobs.evaluation.scoring.predictions import Prediction

Kind = Literal["answered", "parse", "video", "engine"]
"""Whether there is a span to score, or which failure left none."""

Readings = dict[tuple[str, bool, bool, bool], list[Reading]]
"""`Protocol.reads` → what was read, one for each pair."""

THRESHOLDS = (0.3, 0.5, 0.7)
"""Of R1 (SPEC B5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How predictions are read and compared."""

    what: str
    """In a few words, for the table."""
    parser: str
    """Of `common.answers.reading`."""
    whole_seconds: bool = False
    """Times read in text are rounded, halves to even."""
    ready_spans_first: bool = False
    """Spans in the file win over its text."""
    all_spans: bool = False
    """The union of all spans counts, on both sides; else the first of a single-span truth."""
    iou_decimals: int | None = None
    """IoU is rounded to these before anything is computed."""
    strict: bool = False
    """R1 wants IoU above the threshold, not at it."""
    unique_keys: bool = False
    """Of predictions with the same video, query and span, the last one counts."""
    failures_count: bool = True
    """A clip or engine failure is IoU 0; else it is left out and only counted."""

    @property
    def reads(self) -> tuple[str, bool, bool, bool]:
        """What decides how an answer is read; protocols with the same share their readings."""
        return self.parser, self.whole_seconds, self.ready_spans_first, self.all_spans


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "exact": Protocol(
            what="our parser, float IoU, failures left out",
            parser="default",
            all_spans=True,
            failures_count=False,
        ),
        "timelens": Protocol(
            what="first pair anywhere, whole seconds, equal keys collapse",
            parser="timelens",
            whole_seconds=True,
            ready_spans_first=True,
            unique_keys=True,
        ),
        "seed": Protocol(
            what="first pair of the answer, whole seconds, IoU to 4 decimals",
            parser="seed_eval",
            whole_seconds=True,
            iou_decimals=4,
        ),
        "timezero": Protocol(what="last `a to|and b`, float IoU", parser="timezero"),
        "unitime": Protocol(
            what="our parser, float IoU, R1 above the threshold",
            parser="default",
            all_spans=True,
            strict=True,
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Predictions under one protocol."""

    protocol: str
    ious: npt.NDArray[np.float64]
    """[N] IoU of each prediction, in [0, 1]; what is not scored has 0."""
    kinds: tuple[Kind, ...]
    """[N]"""
    scored: npt.NDArray[np.bool_]
    """[N] whether it counts."""
    collapsed: int
    """Predictions that a later one of the same key replaced."""
    reversed: int
    """Answers with a span written end first; only our parser puts it in order."""

    @property
    def scored_ious(self) -> npt.NDArray[np.float64]:
        """IoUs that count, in the order of the file."""
        return self.ious[self.scored]

    @property
    def failures(self) -> dict[str, int]:
        """Predictions without a span, by kind; all kinds, in a fixed order."""
        counts = Counter(self.kinds)
        return {kind: counts[kind] for kind in ("parse", "video", "engine")}

    @property
    def parse_rate(self) -> float:
        """Answers that could be read, of all answers, in [0, 1]; NaN without an answer."""
        counts = Counter(self.kinds)
        answers = counts["answered"] + counts["parse"]
        return counts["answered"] / answers if answers else float("nan")

    @property
    def miou(self) -> float:
        """Mean IoU in percent; NaN when nothing is scored."""
        found = self.scored_ious
        return float(found.mean() * 100) if len(found) else float("nan")

    def hits(self, threshold: float) -> npt.NDArray[np.bool_]:
        """[scored] whether IoU reaches a threshold, by the protocol's comparison."""
        if PROTOCOLS[self.protocol].strict:
            return self.scored_ious > threshold
        return self.scored_ious >= threshold

    def recall(self, threshold: float) -> float:
        """R1@threshold in percent; NaN when nothing is scored."""
        found = self.hits(threshold)
        return int(found.sum()) * 100 / len(found) if len(found) else float("nan")


def judge(pairs: Sequence[Pair], *, protocol: str, readings: Readings | None = None) -> Judgement:
    """Score predictions under one protocol.

    Args:
        pairs: predictions and their annotations.
        protocol: one of `PROTOCOLS`.
        readings: of the same pairs by other protocols; what is read here is added.

    Raises:
        ValueError: unknown protocol, or a truth of several spans where the protocol knows one.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: found {protocol!r}, wanted one of {', '.join(PROTOCOLS)}")
    rules = PROTOCOLS[protocol]
    known = {} if readings is None else readings
    if rules.reads not in known:
        known[rules.reads] = [read_answer(prediction, rules) for prediction, _ in pairs]
    answers = known[rules.reads]
    ious = np.array(
        [
            _iou(reading.used, question, rules) if reading.used else 0.0
            for reading, (_, question) in zip(answers, pairs, strict=True)
        ]
    )
    kinds = tuple(
        _kind(prediction, reading) for (prediction, _), reading in zip(pairs, answers, strict=True)
    )
    kept = _last_of_each_key(pairs) if rules.unique_keys else np.ones(len(pairs), dtype=np.bool_)
    counted = np.array(
        [rules.failures_count or kind in ("answered", "parse") for kind in kinds], dtype=np.bool_
    )
    return Judgement(
        protocol=protocol,
        ious=ious if rules.iou_decimals is None else np.round(ious, rules.iou_decimals),
        kinds=kinds,
        scored=kept & counted,
        collapsed=int(len(pairs) - kept.sum()),
        reversed=sum(reading.reversed for reading in answers),
    )


def read_answer(prediction: Prediction, rules: Protocol) -> Reading:
    """Spans of an answer; `used` are those that the protocol compares, none for a failure."""
    if prediction.failure is not None:
        return NOTHING
    ready, text = prediction.spans, prediction.text
    if ready is not None and (rules.ready_spans_first or not text):
        used = ready if rules.all_spans else ready[:1]
        return Reading(ready, used, reversed=any(start > end for start, end in used))
    reading = read_spans(text or "", parser=rules.parser)
    used = reading.used
    if rules.whole_seconds:
        used = tuple((float(round(start)), float(round(end))) for start, end in used)
    is_reversed = reading.reversed or any(start > end for start, end in used)
    return Reading(reading.spans, used, reversed=is_reversed)


def _kind(prediction: Prediction, reading: Reading) -> Kind:
    if prediction.failure is not None:
        return prediction.failure
    return "answered" if reading.used else "parse"


def _iou(spans: Sequence[Span], question: Question, rules: Protocol) -> float:
    if rules.all_spans:
        return union_iou(spans, question.spans)
    if len(question.spans) != 1:
        raise ValueError(
            f"annotation {question.id!r}: found {len(question.spans)} true spans, wanted one: only "
            "exact and unitime compare several"
        )
    return iou(spans[0], question.spans[0])


def _last_of_each_key(pairs: Sequence[Pair]) -> npt.NDArray[np.bool_]:
    last = {
        (question.video, question.query, question.spans): index
        for index, (_, question) in enumerate(pairs)
    }
    kept = np.zeros(len(pairs), dtype=np.bool_)
    kept[list(last.values())] = True
    return kept
