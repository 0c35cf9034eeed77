"""How sure is a mean? Values per query → 95 % bootstrap intervals, alone and as paired differences.

The percentile bootstrap over queries: queries are drawn with replacement and the mean is taken
again. A share's resampled mean is a binomial draw, which is drawn as such.
`jobs.evaluation.scoring.score` prints the intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
RESAMPLES = 1000
"""The ends of the interval then vary by about 3 % of its width from seed to seed."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def mean_interval(values: npt.ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Interval of a mean.

    Args:
        values: [N] one value a query; booleans are a share.
        seed: of the draws.
        resamples: how often queries are drawn.

    Raises:
        ValueError: there are no values.
    """
    found = np.asarray(values)
    if not len(found):
        raise ValueError("found no values, wanted at least one")
    if found.dtype == np.bool_:
        generator = np.random.default_rng(seed)
        means = generator.binomial(len(found), found.mean(), size=resamples) / len(found)
        return _interval(found, means)
    (interval,) = mean_intervals([found], seed=seed, resamples=resamples)
    return interval


def mean_intervals(
    columns: Sequence[npt.ArrayLike], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Interval]:
    """Intervals of several means over equally many queries, drawn once for all.

    Args:
        columns: [C][N] values, one a query.
        seed: of the draws.
        resamples: how often queries are drawn.

    Raises:
        ValueError: there are no values, or columns of different lengths.
    """
    # Sorted, because answers stand in the order in which replicas happened to give them.
    values_CN = np.sort(np.asarray(columns, dtype=np.float64), axis=1)
    count = values_CN.shape[1]
    generator = np.random.default_rng(seed)
    means_RC = np.empty((resamples, len(values_CN)))
    for resample in range(resamples):
        drawn = generator.integers(count, size=count, dtype=np.int32)
        counts_N = np.bincount(drawn, minlength=count).astype(np.float64)
        # Not `@`: BLAS spreads so small a product over all cores and is slower for it.
        means_RC[resample] = np.einsum("cn,n->c", values_CN, counts_N) / count
    return [
        _interval(column, means_R) for column, means_R in zip(values_CN, means_RC.T, strict=True)
    ]


def paired_difference(
    first: npt.ArrayLike, *, second: npt.ArrayLike, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Interval of the mean of `second - first`, query by query.

    Args:
        first: [N] values of one run.
        second: [N] values of the other run, for the same queries in the same order.
        seed: of the draws.
        resamples: how often queries are drawn.

    Raises:
        ValueError: the runs differ in length, or are empty.
    """
    before = np.asarray(first, dtype=np.float64)
    after = np.asarray(second, dtype=np.float64)
    if before.shape != after.shape:
        raise ValueError(f"found {len(before)} and {len(after)} values, wanted the same queries")
    return mean_interval(after - before, seed=seed, resamples=resamples)


def _interval(values_N: npt.NDArray[Any], means_R: npt.NDArray[np.float64]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means_R, [tail, 1 - tail])
    return Interval(mean=float(values_N.mean()), low=float(low), high=float(high))
