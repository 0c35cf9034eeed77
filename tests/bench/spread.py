"""Median and extremes: what every benchmark tells of its repeats, in four digits."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


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


def rounded(value: Any) -> Any:
    """Four digits, wherever floats stand in it."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
