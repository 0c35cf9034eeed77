"""Median and extremes: what every benchmark tells of its repeats."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median and extremes of repeats."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def text(self, form: str) -> str:
        """`median (lowest-highest)`, each in a format such as `{:.1f}`."""
        low, high = form.format(self.lowest), form.format(self.highest)
        return f"{form.format(self.median)} ({low}-{high})"
