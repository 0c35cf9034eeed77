"""Curves for a screen: many points → the few that its pixels can show (pure).

Each bucket of neighbouring steps keeps its lowest and its highest value in the order in which they
came, so a spike of one step in ten thousand stays where it was. All curves over the same steps get
the same places along x.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

POINTS_A_BUCKET = 2
LEAST_SPAN = 5
SPAN_SHARE = 0.03
"""Of all steps that a smoothed curve averages over: a run of any length is calm at one glance."""


def buckets_of(num_points: int, *, num_buckets: int) -> npt.NDArray[np.int64]:
    """[B + 1] edges of nearly equal buckets; of single points where those are few enough."""
    if num_points <= POINTS_A_BUCKET * num_buckets:
        return np.arange(num_points + 1)
    return np.linspace(0, num_points, num_buckets + 1).astype(np.int64)


def places(steps: Floats, *, edges: npt.NDArray[np.int64]) -> list[float]:
    """Where along x the points of `extremes` stand: first and last step of each bucket."""
    found: list[float] = []
    for low, high in pairwise(edges.tolist()):
        found.append(float(steps[low]))
        if high - low > 1:
            found.append(float(steps[high - 1]))
    return found


def extremes(values: Floats, *, edges: npt.NDArray[np.int64]) -> list[float | None]:
    """Lowest and highest value of each bucket in their order, None where it has none."""
    found: list[float | None] = []
    for low, high in pairwise(edges.tolist()):
        bucket = values[low:high]
        present = np.flatnonzero(~np.isnan(bucket))
        width = min(POINTS_A_BUCKET, int(high - low))
        if not len(present):
            found.extend([None] * width)
            continue
        kept = bucket[present]
        pair = sorted((int(kept.argmin()), int(kept.argmax())))
        found.extend(_rounded(kept[index]) for index in pair[:width])
    return found


def smoothed(values: Floats) -> Floats:
    """[N] an average over the steps before, which weighs near ones more; gaps stay gaps.

    Early steps are averaged over what there is, so that a curve does not creep up from its start.
    """
    span = max(LEAST_SPAN, SPAN_SHARE * len(values))
    keep = 1 - 2 / (span + 1)
    total = weight = 0.0
    found = np.full(len(values), np.nan)
    for index, value in enumerate(values.tolist()):
        if value == value:
            total, weight = keep * total + value, keep * weight + 1
            found[index] = total / weight
    return found


def window(steps: Sequence[float], *, low: float | None, high: float | None) -> slice:
    """The part of ascending steps that is looked at."""
    first = 0 if low is None else int(np.searchsorted(steps, low, side="left"))
    last = len(steps) if high is None else int(np.searchsorted(steps, high, side="right"))
    return slice(first, max(first, last))


def _rounded(value: float) -> float:
    """Six digits: more than a screen shows, and half of what travels."""
    return float(f"{value:.6g}")
