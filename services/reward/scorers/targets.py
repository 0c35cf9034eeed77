"""What scorers share about targets: the error that names a field, and the check of times."""

from collections.abc import Callable, Sequence
from typing import Any

from common.answers.spans import Span
from common.answers.times import MAX_TIME_S

ScoreOne = Callable[[str], dict[str, Any]]
"""Response text → a verdict as it goes out as JSON."""
END_TOLERANCE_S = 1e-6


class TargetError(ValueError):
    """A target that cannot be scored against; `field` is its path inside the item."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class UnrenderableTarget(TargetError):
    """A target that is no mistake of form but cannot become an answer; injection says why."""


def check_times(spans: Sequence[Span], *, duration_s: float | None, field: str) -> None:
    """Refuse spans that are not `0 <= start < end <= duration_s`.

    Raises:
        TargetError: names the span, what was found and what was wanted.
    """
    end_max_s, bound = latest(duration_s)
    for index, (start, end) in enumerate(spans):
        if 0 <= start < end <= end_max_s:
            continue
        # That of videos of unknown length is worth a word only where it is passed.
        tells_bound = duration_s is not None or end > end_max_s
        wanted = "0 <= start < end" + (f" <= {bound}" if tells_bound else "")
        raise TargetError(f"{field}.{index}", f"found {start} to {end}, wanted {wanted}")


def latest(duration_s: float | None) -> tuple[float, str]:
    """The latest time of a target, seconds, and how a refusal calls it."""
    if duration_s is None:
        return MAX_TIME_S, f"{MAX_TIME_S:.0f} s"
    return duration_s + END_TOLERANCE_S, f"duration_s {duration_s}"


def penalized(reward: float, parts: dict[str, float], *, penalty: float, is_answer: bool) -> float:
    """The reward, or minus `penalty` alone for what is no answer; notes which in `parts`."""
    parts["parse_penalty"] = 0.0 if is_answer else -penalty
    return reward if is_answer else -penalty
