"""How sure is a mean? Values per query → 95 % bootstrap intervals, alone and as paired differences.

The percentile bootstrap over queries: queries are drawn with replacement and the mean is taken
again. A share's resampled mean is a binomial draw, which is drawn as such. `jobs.evaluation.score`
prints the intervals.
"""

from dataclasses import dataclass

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
    generator = np.random.default_rng(seed)
    if found.dtype == np.bool_:
        means = generator.binomial(len(found), found.mean(), size=resamples) / len(found)
    else:
        # Sorted, because answers stand in the order in which replicas happened to give them.
        means = _resampled_means(np.sort(found.astype(np.float64)), generator, resamples)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean=float(found.mean()), low=float(low), high=float(high))


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


def _resampled_means(
    values: npt.NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> npt.NDArray[np.float64]:
    count = len(values)
    return np.array(
        [
            values[generator.integers(count, size=count, dtype=np.int32)].mean()
            for _ in range(resamples)
        ]
    )
