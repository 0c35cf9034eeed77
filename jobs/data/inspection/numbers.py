"""Columns of numbers → `Quantiles` and `Histogram`, ready to be printed or drawn. Pure.

Neighbours: `rows` fills the columns, `cli` and `page` show
what comes out. Values are float64, finite, at least one.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

MAX_BINS = 16
"""Bins of a histogram whose edges follow the values; up to two more round it off."""
NICE_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
"""Bin widths, times a power of ten."""
COVERED_PERCENT = 99
"""Share of the values that edges follow; a few extreme ones do not squeeze the rest."""


@dataclass(frozen=True)
class Quantiles:
    """Spread of one column; quantiles are interpolated linearly."""

    name: str
    over: str
    """What has one value each: records, spans or videos."""
    count: int
    low: float
    p10: float
    p50: float
    p90: float
    high: float
    mean: float

    @property
    def texts(self) -> list[str]:
        """Smallest, p10, p50, p90, largest and mean, as they are shown."""
        return [_short(v) for v in (self.low, self.p10, self.p50, self.p90, self.high, self.mean)]


@dataclass(frozen=True)
class Histogram:
    """Counts of `[edge, next edge)`; the last bin is closed, or open-ended when its edge is inf."""

    title: str
    unit: str
    over: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def labels(self) -> list[str]:
        """Such as `2 to 5` and `20 and more`."""
        return [
            f"{low:g} and more" if math.isinf(high) else f"{low:g} to {high:g}"
            for low, high in itertools.pairwise(self.edges)
        ]


def quantiles(name: str, values: Values, *, over: str) -> Quantiles:
    """Spread of a column."""
    low, p10, p50, p90, high = (float(v) for v in np.percentile(values, (0, 10, 50, 90, 100)))
    return Quantiles(name, over, values.size, low, p10, p50, p90, high, float(values.mean()))


def histogram(
    title: str, values: Values, *, unit: str, over: str, edges: Sequence[float] | None = None
) -> Histogram:
    """Count values, none below the first edge; without `edges` these follow the values.

    What lies above the last edge gets a bin of its own, so that the counts add up.
    """
    bounds = list(even_edges(values) if edges is None else edges)
    if values.max() > bounds[-1]:
        bounds.append(math.inf)
    counts, _ = np.histogram(values, bins=bounds)
    return Histogram(title, unit, over, tuple(bounds), tuple(int(count) for count in counts))


def even_edges(values: Values) -> tuple[float, ...]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten, around the smallest 99 % of the values."""
    low, top = float(values.min()), float(np.percentile(values, COVERED_PERCENT))
    spread = top - low or abs(top) or 1.0
    power = 10.0 ** math.floor(math.log10(spread / MAX_BINS))
    width = next(step * power for step in NICE_STEPS if step * power * MAX_BINS >= spread)
    first, last = math.floor(low / width), max(math.ceil(top / width), math.floor(low / width) + 1)
    return tuple(round(width * k, 9) for k in range(first, last + 1))


def _short(value: float) -> str:
    """Such as `0.123`, `12.3` and `1,234`."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
