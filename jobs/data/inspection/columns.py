"""One number per record or span → repeats, distributions, the map of starts and ends (SPEC A2).

`jobs.data.inspection.rows` fills `Columns` while it reads; everything here looks at whole columns.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from jobs.data.inspection.numbers import Histogram, Quantiles, Values, histogram, quantiles

GT_LEN_EDGES_S = (0.0, 2.0, 5.0, 10.0, 20.0, math.inf)
COVERAGE_EDGES = (0.0, 0.05, 0.1, 0.2, 0.4, math.inf)
"""Buckets of stratified sampling (SPEC A2)."""
TENTHS = tuple(k / 10 for k in range(11))
RELATIVE = "share of duration"
"""Unit of what is measured against the video."""
DENSITY_CELLS = 32
"""Cells along each side of the map of starts and ends."""
SAME_DURATION_S = 0.1
"""Records of one video may differ this much in its duration: rounding."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with some records, spans or videos."""

    reason: str
    count: int
    total: str
    """How many were looked at, such as `120 spans`."""
    first: str
    """Where it is first found, such as `line 12`."""


def _integers() -> "array[int]":
    return array("q")


def _floats() -> "array[float]":
    return array("d")


@dataclass(frozen=True)
class Columns:
    """One number per record or per span; NaN where the file says nothing."""

    number: "array[int]" = field(default_factory=_integers)
    """Place of the record among all of the file, from 1."""
    video: "array[int]" = field(default_factory=_integers)
    question: "array[int]" = field(default_factory=_integers)
    """Hashes of the video and of video, window and query."""
    duration_s: "array[float]" = field(default_factory=_floats)
    file_duration_s: "array[float]" = field(default_factory=_floats)
    """The same; NaN too for a question about a part of a file, whose duration is the part's."""
    difficulty: "array[float]" = field(default_factory=_floats)
    gt_len_s: "array[float]" = field(default_factory=_floats)
    start_s: "array[float]" = field(default_factory=_floats)
    end_s: "array[float]" = field(default_factory=_floats)
    span_duration_s: "array[float]" = field(default_factory=_floats)
    """Duration of the video that the span lies in."""


@dataclass(frozen=True)
class Videos:
    """One value per distinct video."""

    num_records: npt.NDArray[np.int64]
    shortest_s: Values
    longest_s: Values
    """Of its records' durations; NaN when no record has one."""
    first: npt.NDArray[np.int64]
    """Place of its first record among all of the file."""

    @classmethod
    def of(cls, columns: Columns) -> "Videos":
        """From the columns of a file with at least one record."""
        video, duration_s = np.asarray(columns.video), np.asarray(columns.file_duration_s)
        order = np.argsort(video, kind="stable")
        starts = np.flatnonzero(np.diff(video[order], prepend=~video[order[0]]))
        return cls(
            num_records=np.diff(starts, append=video.size),
            shortest_s=np.fmin.reduceat(duration_s[order], starts),
            longest_s=np.fmax.reduceat(duration_s[order], starts),
            first=np.asarray(columns.number)[order][starts],
        )

    def problems(self) -> list[Problem]:
        """Videos whose records disagree."""
        differ = self.longest_s - self.shortest_s > SAME_DURATION_S
        if not differ.any():
            return []
        first = f"record {self.first[differ].min()}"
        total = f"{differ.size:,} videos"
        return [Problem("durations of one video differ", int(differ.sum()), total, first)]


def repeats(columns: Columns) -> list[Problem]:
    """Records whose video and query an earlier record has."""
    _, first = np.unique(np.asarray(columns.question), return_index=True)
    repeats = np.delete(np.asarray(columns.number), first)
    if not repeats.size:
        return []
    total = f"{len(columns.number):,} records"
    where = f"record {repeats.min()}"
    return [Problem("same video and query as an earlier record", repeats.size, total, where)]


def _known(values: npt.ArrayLike) -> Values:
    numbers = np.asarray(values, dtype=np.float64)
    known: Values = numbers[np.isfinite(numbers)]
    return known


def _lengths_s(columns: Columns) -> Values:
    lengths_s: Values = np.asarray(columns.end_s) - np.asarray(columns.start_s)
    return lengths_s


def _coverages(columns: Columns) -> Values:
    return _known(np.asarray(columns.gt_len_s) / np.asarray(columns.duration_s))


def _middles(columns: Columns) -> Values:
    middles_s = (np.asarray(columns.start_s) + np.asarray(columns.end_s)) / 2
    return _known(middles_s / np.asarray(columns.span_duration_s))


def all_quantiles(columns: Columns, videos: Videos) -> tuple[Quantiles, ...]:
    """Rows of the table of distributions; a column without a value has none."""
    table = (
        ("queries per video", videos.num_records.astype(np.float64), "videos"),
        ("duration, s", _known(videos.shortest_s), "videos"),
        ("span length, s", _lengths_s(columns), "spans"),
        ("coverage", _coverages(columns), "records"),
        ("relative middle", _middles(columns), "spans"),
        ("difficulty", _known(columns.difficulty), "records"),
    )
    return tuple(quantiles(name, values, over=over) for name, values, over in table if values.size)


def all_histograms(columns: Columns, videos: Videos) -> tuple[Histogram, ...]:
    """Those whose column has a value."""
    gt_len_s, coverages = _known(columns.gt_len_s), _coverages(columns)
    table: tuple[tuple[str, Values, str, str, Sequence[float] | None], ...] = (
        ("Video duration", _known(videos.shortest_s), "s", "videos", None),
        ("Span length", _lengths_s(columns), "s", "spans", None),
        ("Spans of a record together", gt_len_s, "s", "records", GT_LEN_EDGES_S),
        ("Coverage", coverages, RELATIVE, "records", COVERAGE_EDGES),
        ("Middle of a span", _middles(columns), RELATIVE, "spans", TENTHS),
        ("Difficulty", _known(columns.difficulty), "", "records", TENTHS),
    )
    return tuple(
        histogram(title, values, unit=unit, over=over, edges=edges)
        for title, values, unit, over, edges in table
        if values.size
    )


def density(columns: Columns) -> npt.NDArray[np.int64]:
    """Spans by relative start and end.

    Returns:
        [DENSITY_CELLS, DENSITY_CELLS] counts; rows are starts, columns ends, both as shares of the
        duration. What lies beyond the duration is counted in the outermost cells.
    """
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
