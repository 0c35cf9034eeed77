"""Records of one regime → means over seeds and paired differences, ties named. Pure.

A difference is called one only when its 95 % interval leaves out zero; it is taken over the seeds
that both methods have.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Literal

from scipy.special import stdtrit

from jobs.demo.comparing.records import FIGURES, RunRecord
from jobs.demo.figures import Record

CONFIDENCE = 0.95

Verdict = Literal["higher", "lower", "tie", "one seed"]
When = Literal["last", "early"]


class Spread(Record):
    """One figure of one method over the seeds that have it."""

    mean: float
    std: float | None
    """With n - 1; None for a single seed."""
    count: int


class Difference(Record):
    """One figure of one method minus that of another, paired by seed."""

    mean: float
    low: float | None
    """Ends of the 95 % interval; None for a single seed."""
    high: float | None
    count: int
    """Seeds."""
    verdict: Verdict

    @property
    def words(self) -> str:
        """`higher +0.074 ± 0.017 (5)`: what it is, mean, half of the interval, seeds."""
        if self.high is None:
            return f"{self.mean:+.3f} (one seed)"
        return f"{self.verdict} {self.mean:+.3f} ± {self.high - self.mean:.3f} ({self.count})"


def figure_of(record: RunRecord, key: str, *, when: When = "last") -> float | None:
    """One figure of a run: of its last step, or early-stopped; None: not measured."""
    if when == "last":
        return record.last.get(key)
    return None if record.early is None else record.early.figures.get(key)


def start_of(record: RunRecord, key: str) -> float | None:
    """One figure of the checkpoint that a run began with; None: not measured."""
    return record.start.get(key)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and standard deviation of what was measured; None: nothing."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    std = stdev(found) if len(found) > 1 else None
    return Spread(mean=fmean(found), std=std, count=len(found))


def difference(
    records: Sequence[RunRecord], key: str, *, method: str, against: str, when: When = "last"
) -> Difference | None:
    """Paired difference of two methods of one regime; None: no seed has both."""
    by_method = [
        {
            record.seed: value
            for record in records
            if record.method == name and (value := figure_of(record, key, when=when)) is not None
        }
        for name in (method, against)
    ]
    seeds = sorted(by_method[0].keys() & by_method[1].keys())
    if not seeds:
        return None
    return paired_difference(*([values[seed] for seed in seeds] for values in by_method))


def paired_difference(values: Sequence[float], against: Sequence[float]) -> Difference:
    """Mean difference over seeds with the interval of Student's t, n - 1 degrees of freedom.

    Args:
        values: one figure, one value per seed.
        against: the same seeds' values of the other method.
    """
    deltas = [value - other for value, other in zip(values, against, strict=True)]
    mean, count = fmean(deltas), len(deltas)
    if count < 2:
        return Difference(mean=mean, low=None, high=None, count=count, verdict="one seed")
    quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    half = quantile * stdev(deltas) / math.sqrt(count)
    low, high = mean - half, mean + half
    verdict: Verdict = "higher" if low > 0 else "lower" if high < 0 else "tie"
    return Difference(mean=mean, low=low, high=high, count=count, verdict=verdict)


def refuse_unequal(records: Sequence[RunRecord]) -> None:
    """Records that are no comparison.

    Raises:
        ValueError: those of one regime differ in steps, split or number of samples.
    """
    for key in ("steps", "split", "num_samples", "record_version"):
        found = sorted({str(getattr(record, key)) for record in records})
        if len(found) > 1:
            regime = records[0].regime
            raise ValueError(
                f"{regime}: found runs with {key} {', '.join(found)}, wanted one value"
            )
    assert all(key in FIGURES for record in records for key in record.last)
