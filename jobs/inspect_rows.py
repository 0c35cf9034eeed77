"""Records of an annotation file → `Inspection`: counts, problems, distributions, examples.

    jobs.annotations -> inspect(records) -> jobs.inspect_cli prints, jobs.inspect_page draws

One pass. What grows with the file are columns of 8-byte numbers, never records. Nothing is repaired
and nothing is left out silently: a span with a fault is counted as a problem, and every
distribution says over how many values it is taken.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from common.rows import CLIP_END_TOLERANCE_S
from common.spans import Span, length_s, merge
from jobs.annotations.records import Annotation, BadRecord
from jobs.inspect_numbers import Histogram, Quantiles, Values, histogram, quantiles

GT_LEN_EDGES_S = (0.0, 2.0, 5.0, 10.0, 20.0, math.inf)
COVERAGE_EDGES = (0.0, 0.05, 0.1, 0.2, 0.4, math.inf)
"""Buckets of stratified sampling (SPEC A2)."""
TENTHS = tuple(k / 10 for k in range(11))
DENSITY_CELLS = 32
"""Cells along each side of the map of starts and ends."""
NUM_EXAMPLES = 3
"""Records kept of each kind."""
SAME_DURATION_S = 0.1
"""Records of one video may differ this much in its duration: rounding."""
ONE_SPAN, SEVERAL_SPANS = "one span", "several spans"
HIGHLIGHTS, NO_TARGET = "highlights without spans", "no target"
KINDS = (ONE_SPAN, SEVERAL_SPANS, HIGHLIGHTS, NO_TARGET)
PART_OF_A_FILE = "question is about a part of its video"
LEAVES = "span leaves its video"
SLIGHTLY_LATE = f"span ends up to {CLIP_END_TOLERANCE_S:g} s after its video"
MEASURED = frozenset({None, LEAVES, SLIGHTLY_LATE})
"""Faults whose spans have a length all the same; spans with another enter no distribution."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with some records, spans or videos."""

    reason: str
    count: int
    total: str
    """How many were looked at, such as `120 spans`."""
    first: str
    """Where it is first found, such as `line 12`."""


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
    problems: tuple[Problem, ...]
    quantiles: tuple[Quantiles, ...]
    histograms: tuple[Histogram, ...]
    density: npt.NDArray[np.int64]
    """[DENSITY_CELLS, DENSITY_CELLS] spans by start (row) and end (column) as shares of the
    duration; a span that leaves its video is counted in the outermost cells."""
    examples: tuple[Example, ...]


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
    """What is wrong with an annotated span, None if nothing is."""
    start_s, end_s = span
    if not (math.isfinite(start_s) and math.isfinite(end_s)):
        return "span is not finite"
    if start_s < 0:
        return "span starts before 0 s"
    if end_s <= start_s:
        return "span ends at or before its start"
    if duration_s is None or end_s <= duration_s:
        return None
    if start_s < duration_s and end_s <= duration_s + CLIP_END_TOLERANCE_S:
        return SLIGHTLY_LATE
    return LEAVES


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _integers() -> "array[int]":
    return array("q")


def _floats() -> "array[float]":
    return array("d")


@dataclass(frozen=True)
class _Columns:
    """One number per record or per span; NaN where the file says nothing."""

    number: "array[int]" = field(default_factory=_integers)
    """Place of the record among all of the file, from 1."""
    video: "array[int]" = field(default_factory=_integers)
    question: "array[int]" = field(default_factory=_integers)
    """Hashes of the video and of video and query."""
    duration_s: "array[float]" = field(default_factory=_floats)
    difficulty: "array[float]" = field(default_factory=_floats)
    gt_len_s: "array[float]" = field(default_factory=_floats)
    start_s: "array[float]" = field(default_factory=_floats)
    end_s: "array[float]" = field(default_factory=_floats)
    span_duration_s: "array[float]" = field(default_factory=_floats)
    """Duration of the video that the span lies in."""


class _Census:
    """Takes records one by one; `result` measures what was kept of them."""

    def __init__(self) -> None:
        self._columns = _Columns()
        self._num_read = 0
        self._num_spans = 0
        self._with_highlights = 0
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
        if record.window is not None:
            note = f"found {record.window[0]:g} to {record.window[1]:g} s"
            self._fault(PART_OF_A_FILE, record, of="records", note=note)
        duration_s = self._duration_s(record)
        spans = self._measured_spans(record, duration_s=duration_s)
        kind = _kind(record)
        self._kinds[kind] += 1
        self._with_highlights += bool(record.highlights)
        note = f"{len(record.highlights)} highlights" if record.highlights else ""
        self._keep(kind, record, spans=spans, note=note)
        self._add_numbers(record, duration_s=duration_s, spans=spans)

    def _duration_s(self, record: Annotation) -> float | None:
        if record.duration_s is None or 0 < record.duration_s < math.inf:
            return record.duration_s
        note = f"found {record.duration_s:g} s"
        self._fault("duration is not above 0 s", record, of="records", note=note)
        return None

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
        columns.question.append(hash((record.video, _question(record))))
        columns.duration_s.append(_or_nan(duration_s))
        columns.difficulty.append(_or_nan(record.difficulty))
        columns.gt_len_s.append(length_s(merge(spans)) if spans else math.nan)
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
        videos = _Videos.of(columns)
        return Inspection(
            records=len(columns.number),
            bad_records=num_bad,
            videos=videos.num_records.size,
            spans=self._num_spans,
            kinds=tuple((kind, self._kinds[kind]) for kind in KINDS if self._kinds[kind]),
            with_highlights=self._with_highlights,
            problems=(*self._counted_problems(), *_repeats(columns), *videos.problems()),
            quantiles=_quantiles(columns, videos),
            histograms=_histograms(columns, videos),
            density=_density(columns),
            examples=tuple(example for kept in self._examples.values() for example in kept),
        )

    def _counted_problems(self) -> list[Problem]:
        totals = {"records": f"{self._num_read} records", "spans": f"{self._num_spans} spans"}
        return [
            Problem(reason, count, totals[of], self._first[reason])
            for (reason, of), count in self._faults.most_common()
        ]


def _question(record: Annotation) -> str:
    return record.query if record.query is not None else record.problem or ""


def _kind(record: Annotation) -> str:
    if len(record.spans) > 1:
        return SEVERAL_SPANS
    if record.spans:
        return ONE_SPAN
    return HIGHLIGHTS if record.highlights else NO_TARGET


@dataclass(frozen=True)
class _Videos:
    """One value per distinct video."""

    num_records: npt.NDArray[np.int64]
    shortest_s: Values
    longest_s: Values
    """Of its records' durations; NaN when no record has one."""
    first: npt.NDArray[np.int64]
    """Place of its first record among all of the file."""

    @classmethod
    def of(cls, columns: _Columns) -> "_Videos":
        video, duration_s = np.asarray(columns.video), np.asarray(columns.duration_s)
        order = np.argsort(video, kind="stable")
        starts = np.flatnonzero(np.diff(video[order], prepend=~video[order[0]]))
        return cls(
            num_records=np.diff(starts, append=video.size),
            shortest_s=np.fmin.reduceat(duration_s[order], starts),
            longest_s=np.fmax.reduceat(duration_s[order], starts),
            first=np.asarray(columns.number)[order][starts],
        )

    def problems(self) -> list[Problem]:
        differ = self.longest_s - self.shortest_s > SAME_DURATION_S
        if not differ.any():
            return []
        first = f"record {self.first[differ].min()}"
        total = f"{differ.size} videos"
        return [Problem("durations of one video differ", int(differ.sum()), total, first)]


def _repeats(columns: _Columns) -> list[Problem]:
    """Records whose video and query an earlier record has."""
    _, first = np.unique(np.asarray(columns.question), return_index=True)
    repeats = np.delete(np.asarray(columns.number), first)
    if not repeats.size:
        return []
    total = f"{len(columns.number)} records"
    where = f"record {repeats.min()}"
    return [Problem("same video and query as an earlier record", repeats.size, total, where)]


def _known(values: npt.ArrayLike) -> Values:
    numbers = np.asarray(values, dtype=np.float64)
    known: Values = numbers[np.isfinite(numbers)]
    return known


def _lengths_s(columns: _Columns) -> Values:
    lengths_s: Values = np.asarray(columns.end_s) - np.asarray(columns.start_s)
    return lengths_s


def _coverages(columns: _Columns) -> Values:
    return _known(np.asarray(columns.gt_len_s) / np.asarray(columns.duration_s))


def _middles(columns: _Columns) -> Values:
    middles_s = (np.asarray(columns.start_s) + np.asarray(columns.end_s)) / 2
    return _known(middles_s / np.asarray(columns.span_duration_s))


def _quantiles(columns: _Columns, videos: _Videos) -> tuple[Quantiles, ...]:
    table = (
        ("queries per video", videos.num_records.astype(np.float64), "videos"),
        ("duration, s", _known(videos.shortest_s), "videos"),
        ("span length, s", _lengths_s(columns), "spans"),
        ("coverage", _coverages(columns), "records"),
        ("middle of span / duration", _middles(columns), "spans"),
        ("difficulty", _known(columns.difficulty), "records"),
    )
    return tuple(quantiles(name, values, over=over) for name, values, over in table if values.size)


def _histograms(columns: _Columns, videos: _Videos) -> tuple[Histogram, ...]:
    gt_len_s, coverages = _known(columns.gt_len_s), _coverages(columns)
    table: tuple[tuple[str, Values, str, str, Sequence[float] | None], ...] = (
        ("Video duration", _known(videos.shortest_s), "s", "videos", None),
        ("Span length", _lengths_s(columns), "s", "spans", None),
        ("Length of all spans of a record", gt_len_s, "s", "records", GT_LEN_EDGES_S),
        ("Coverage", coverages, "of the duration", "records", COVERAGE_EDGES),
        ("Middle of the span", _middles(columns), "of the duration", "spans", TENTHS),
        ("Difficulty", _known(columns.difficulty), "", "records", TENTHS),
    )
    return tuple(
        histogram(title, values, unit=unit, over=over, edges=edges)
        for title, values, unit, over, edges in table
        if values.size
    )


def _density(columns: _Columns) -> npt.NDArray[np.int64]:
    duration_s = np.asarray(columns.span_duration_s)
    known = np.isfinite(duration_s)
    starts, ends = (
        np.minimum(np.asarray(edge)[known] / duration_s[known], 1.0)
        for edge in (columns.start_s, columns.end_s)
    )
    square = ((0.0, 1.0), (0.0, 1.0))
    shares, _, _ = np.histogram2d(starts, ends, bins=DENSITY_CELLS, range=square)
    cells: npt.NDArray[np.int64] = shares.astype(np.int64)
    return cells
