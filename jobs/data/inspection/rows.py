"""Records of an annotation file → `Inspection`: counts, problems, distributions, examples.

    jobs.data.annotations -> inspect(records) -> jobs.data.inspection.command prints,
    jobs.data.inspection.page draws

One pass. What grows with the file are columns of 8-byte numbers, never records. Nothing is repaired
and nothing is left out silently: a span with a fault is counted as a problem, and every
distribution says over how many values it is taken.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from common.answers.spans import Span, length_s
from common.rows import CLIP_END_TOLERANCE_S, UnusableRowError, window_of
from jobs.data.annotations.durations import is_duration
from jobs.data.annotations.records import Annotation, BadRecord
from jobs.data.annotations.trainer_rows import PAST_THE_END
from jobs.data.inspection.columns import (
    Columns,
    Problem,
    Videos,
    all_histograms,
    all_quantiles,
    density,
    repeats,
)
from jobs.data.inspection.numbers import Histogram, Quantiles

NUM_EXAMPLES = 3
"""Records kept of each kind."""
ONE_SPAN, SEVERAL_SPANS = "one span", "several spans"
HIGHLIGHTS, NO_TARGET = "highlights without spans", "no target"
KINDS = (ONE_SPAN, SEVERAL_SPANS, HIGHLIGHTS, NO_TARGET)
SLIGHTLY_PAST = f"span up to {CLIP_END_TOLERANCE_S:g} s past the end"
MEASURED = frozenset({None, PAST_THE_END, SLIGHTLY_PAST})
"""Faults whose spans have a length all the same; spans with another enter no distribution."""


@dataclass(frozen=True)
class Example:
    """A record to look at."""

    kind: str
    position: str
    query: str
    video: str
    duration_s: float | None
    spans: tuple[Span, ...]
    """Those that can be measured."""
    note: str


@dataclass(frozen=True)
class Inspection:
    """What a file holds."""

    records: int
    """Those that could be read."""
    bad_records: int
    videos: int
    spans: int
    """All of them, those with a fault included."""
    kinds: tuple[tuple[str, int], ...]
    """Records by their target; they add up to `records`."""
    with_highlights: int
    """Records with saliency scores, with or without spans."""
    with_window: int
    """Records about a part of a longer file."""
    problems: tuple[Problem, ...]
    quantiles: tuple[Quantiles, ...]
    histograms: tuple[Histogram, ...]
    density: npt.NDArray[np.int64]
    """[DENSITY_CELLS, DENSITY_CELLS] spans by start (row) and end (column) as shares of the
    duration; a span that leaves its video is counted in the outermost cells."""
    examples: tuple[Example, ...]

    @property
    def counts(self) -> list[tuple[str, int]]:
        """What there is, by name."""
        named = [
            ("records", self.records),
            ("unreadable records", self.bad_records),
            ("videos", self.videos),
            ("spans", self.spans),
            *((f"records with {kind}", count) for kind, count in self.kinds),
        ]
        if self.with_highlights:
            named.append(("records with saliency scores", self.with_highlights))
        if self.with_window:
            named.append(("records about a window of their file", self.with_window))
        return named


class NoRecordError(ValueError):
    """The file holds nothing that can be measured."""


def inspect(records: Iterable[Annotation | BadRecord]) -> Inspection:
    """Count and measure a file.

    Raises:
        NoRecordError: no record could be read; says what was found instead.
    """
    census = _Census()
    for record in records:
        census.add(record)
    return census.result()


def span_fault(span: Span, *, duration_s: float | None) -> str | None:
    """What is wrong with an annotated span, None if nothing is.

    The reasons are those of conversion, which cuts a span that ends slightly past the end and
    rejects the others.
    """
    start_s, end_s = span
    if not (math.isfinite(start_s) and math.isfinite(end_s)):
        return "span not finite"
    if start_s < 0:
        return "span negative"
    if end_s <= start_s:
        return "span empty" if start_s == end_s else "span reversed"
    if duration_s is None or end_s <= duration_s:
        return None
    if start_s < duration_s and end_s - duration_s <= CLIP_END_TOLERANCE_S:
        return SLIGHTLY_PAST
    return PAST_THE_END


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


class _Census:
    """Takes records one by one; `result` measures what was kept of them."""

    def __init__(self) -> None:
        self._columns = Columns()
        self._num_read = 0
        self._num_spans = 0
        self._with_highlights = 0
        self._with_window = 0
        self._kinds: Counter[str] = Counter()
        self._bad_records: Counter[str] = Counter()
        self._faults: Counter[tuple[str, str]] = Counter()
        """By reason and by what is at fault: spans or records."""
        self._first: dict[str, str] = {}
        self._examples: dict[str, list[Example]] = {}

    def add(self, record: Annotation | BadRecord) -> None:
        """Count one record."""
        self._num_read += 1
        if isinstance(record, BadRecord):
            self._bad_records[record.reason] += 1
            self._fault(record.reason, record, of="records", note=record.detail)
            return
        for reason, note in _record_faults(record):
            self._fault(reason, record, of="records", note=note)
        duration_s = record.duration_s if is_duration(record.duration_s) else None
        spans = self._measured_spans(record, duration_s=duration_s)
        kind = _kind(record)
        self._kinds[kind] += 1
        self._with_highlights += bool(record.highlights)
        self._with_window += record.window is not None
        note = f"{len(record.highlights)} highlights" if record.highlights else ""
        self._keep(kind, record, spans=spans, note=note)
        self._add_numbers(record, duration_s=duration_s, spans=spans)

    def _measured_spans(self, record: Annotation, *, duration_s: float | None) -> list[Span]:
        self._num_spans += len(record.spans)
        spans: list[Span] = []
        for span in record.spans:
            fault = span_fault(span, duration_s=duration_s)
            measured = [span] if fault in MEASURED else []
            spans += measured
            if fault is not None:
                note = f"found {span[0]:g} to {span[1]:g} s"
                self._fault(fault, record, of="spans", note=note, spans=measured)
        return spans

    def _fault(
        self,
        reason: str,
        record: Annotation | BadRecord,
        *,
        of: str,
        note: str,
        spans: Sequence[Span] = (),
    ) -> None:
        self._faults[reason, of] += 1
        self._first.setdefault(reason, record.position)
        self._keep(reason, record, spans=spans, note=note)

    def _keep(
        self, kind: str, record: Annotation | BadRecord, *, note: str, spans: Sequence[Span] = ()
    ) -> None:
        kept = self._examples.setdefault(kind, [])
        if len(kept) == NUM_EXAMPLES:
            return
        if isinstance(record, BadRecord):
            kept.append(Example(kind, record.position, "", "", None, (), note))
        else:
            duration_s = record.duration_s
            place, query, video = record.position, _question(record), record.video
            kept.append(Example(kind, place, query, video, duration_s, tuple(spans), note))

    def _add_numbers(
        self, record: Annotation, *, duration_s: float | None, spans: Sequence[Span]
    ) -> None:
        columns = self._columns
        columns.number.append(self._num_read)
        columns.video.append(hash(record.video))
        columns.question.append(hash((record.video, record.window, _question(record))))
        columns.duration_s.append(_or_nan(duration_s))
        whole_s = duration_s if record.window is None else None
        columns.file_duration_s.append(_or_nan(whole_s))
        columns.difficulty.append(record.difficulty if _is_share(record.difficulty) else math.nan)
        columns.gt_len_s.append(length_s(spans) if spans else math.nan)
        for start_s, end_s in spans:
            columns.start_s.append(start_s)
            columns.end_s.append(end_s)
            columns.span_duration_s.append(_or_nan(duration_s))

    def result(self) -> Inspection:
        """Everything that was found.

        Raises:
            NoRecordError: nothing could be read.
        """
        columns, num_bad = self._columns, self._bad_records.total()
        if not columns.number:
            reasons = ", ".join(f"{n} x {reason}" for reason, n in self._bad_records.most_common())
            raise NoRecordError(f"found no usable record: {reasons or 'the file holds none'}")
        videos = Videos.of(columns)
        return Inspection(
            records=len(columns.number),
            bad_records=num_bad,
            videos=videos.num_records.size,
            spans=self._num_spans,
            kinds=tuple((kind, self._kinds[kind]) for kind in KINDS if self._kinds[kind]),
            with_highlights=self._with_highlights,
            with_window=self._with_window,
            problems=(*self._counted_problems(), *repeats(columns), *videos.problems()),
            quantiles=all_quantiles(columns, videos),
            histograms=all_histograms(columns, videos),
            density=density(columns),
            examples=self._sorted_examples(),
        )

    def _sorted_examples(self) -> tuple[Example, ...]:
        """What records ask for comes first, then what is wrong with some."""
        faults = [kind for kind in self._examples if kind not in KINDS]
        kinds = [kind for kind in KINDS if kind in self._examples]
        return tuple(example for kind in kinds + faults for example in self._examples[kind])

    def _counted_problems(self) -> list[Problem]:
        totals = {"records": f"{self._num_read:,} records", "spans": f"{self._num_spans:,} spans"}
        return [
            Problem(reason, count, totals[of], self._first[reason])
            for (reason, of), count in self._faults.most_common()
        ]


def _record_faults(record: Annotation) -> Iterator[tuple[str, str]]:
    """Reason and what was found, for what is wrong beside spans; reasons as in conversion."""
    if not _question(record):
        yield "no query", f"found {record.query!r}"
    if record.window is not None:
        try:
            window_of(*record.window)
        except UnusableRowError as error:
            yield error.reason, error.detail
    if record.difficulty is not None and not _is_share(record.difficulty):
        yield "bad difficulty", f"found {record.difficulty:g}"
    if record.duration_s is None:
        return
    if not is_duration(record.duration_s):
        yield "bad duration", f"found {record.duration_s:g} s"
    elif (last_s := max((h.time_s for h in record.highlights), default=0.0)) >= record.duration_s:
        yield "highlight past the end", f"found one at {last_s:g} s"


def _is_share(value: float | None) -> TypeGuard[float]:
    return value is not None and 0 <= value <= 1


def _question(record: Annotation) -> str:
    return record.query if record.query is not None else record.problem or ""


def _kind(record: Annotation) -> str:
    if len(record.spans) > 1:
        return SEVERAL_SPANS
    if record.spans:
        return ONE_SPAN
    return HIGHLIGHTS if record.highlights else NO_TARGET
