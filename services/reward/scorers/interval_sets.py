"""Scores of two sets of time spans (pure): tiou, twass, ngiou of TimeLens2 and MUSEG (SPEC C).

    tiou    overlap / (|P| + |G| - overlap), one span each: plain IoU; in [0, 1]
    twass   exp(-beta W1 / |G|), in [0, 1]: 1 only for the true set, > 0 where nothing overlaps
    ngiou   mean over the larger count of (1 + GIoU) / 2 of spans paired by position, in [0, 1]

W1 is the distance of the uniform distributions on the merged sets: the integral of |F_P - F_G| over
seconds. It is divided by the true length alone, so that a broad prediction cannot enlarge its own
divisor. |P| is the merged prediction's length, true spans count as they are, overlapping ones
twice. A span with `end <= start` covers nothing. All are O(n log n) in the number of spans.
"""

import bisect
import itertools
import math
from collections.abc import Sequence

from common.answers.spans import Span, iou, length_s, merge


def tiou(predicted: Sequence[Span], truth: Sequence[Span]) -> float:
    """Overlap over union of two sets of spans, in [0, 1]."""
    if len(predicted) == 1 and len(truth) == 1:
        return iou(predicted[0], truth[0])
    merged = merge(predicted)
    true = [span for span in truth if span[1] > span[0]]
    covered = _Covered(merged)
    overlap = sum(covered.until(end) - covered.until(start) for start, end in true)
    union = length_s(merged) + length_s(true) - overlap
    return min(1.0, overlap / union) if union > 0 else 0.0


def twass(predicted: Sequence[Span], truth: Sequence[Span], *, beta: float) -> float:
    """exp(-beta W1 / length of the merged truth), in [0, 1]; two empty sets are equal.

    Args:
        predicted: spans in seconds, in any order.
        truth: likewise.
        beta: > 0; at W1 = the true length the score is e^-beta.
    """
    left, right = merge(predicted), merge(truth)
    if not left or not right:
        return float(not left and not right)
    return math.exp(-beta * wasserstein_s(left, right) / length_s(right))


def wasserstein_s(left: Sequence[Span], right: Sequence[Span]) -> float:
    """W1 in seconds between the uniform distributions on two merged, non-empty sets of spans."""
    times = sorted({time for span in (*left, *right) for time in span})
    first, second = _Covered(left), _Covered(right)
    gaps = [first.share(time) - second.share(time) for time in times]
    return math.fsum(
        (end - start) * _mean_size(gap, next_gap)
        for (start, end), (gap, next_gap) in zip(
            itertools.pairwise(times), itertools.pairwise(gaps), strict=True
        )
    )


def ngiou(predicted: Sequence[Span], truth: Sequence[Span]) -> float:
    """Spans sorted by start and paired by position: mean of (1 + GIoU) / 2, unmatched ones 0."""
    count = max(len(predicted), len(truth))
    pairs = zip(sorted(predicted), sorted(truth), strict=False)
    return math.fsum((1 + _giou(*pair)) / 2 for pair in pairs) / count if count else 0.0


class _Covered:
    """Seconds that merged spans cover up to a time."""

    def __init__(self, merged: Sequence[Span]) -> None:
        self._spans = merged
        self._starts = [start for start, _ in merged]
        self._before = [0.0, *itertools.accumulate(end - start for start, end in merged)]

    def until(self, time: float) -> float:
        """Covered seconds before `time`."""
        index = bisect.bisect_right(self._starts, time)
        if index == 0:
            return 0.0
        start, end = self._spans[index - 1]
        return self._before[index - 1] + min(time, end) - start

    def share(self, time: float) -> float:
        """The same as a share of all that is covered: the distribution function."""
        return self.until(time) / self._before[-1]


def _mean_size(first: float, last: float) -> float:
    """Mean of |x| while x goes straight from `first` to `last`, exact where it crosses zero."""
    if first * last >= 0:
        return (abs(first) + abs(last)) / 2
    return (first * first + last * last) / (2 * (abs(first) + abs(last)))


def _giou(first: Span, second: Span) -> float:
    """IoU less the share of the hull that neither span covers, -1 to 1; -1 with an empty one."""
    if first[1] <= first[0] or second[1] <= second[0]:
        return -1.0
    hull = max(first[1], second[1]) - min(first[0], second[0])
    gap = max(0.0, max(first[0], second[0]) - min(first[1], second[1]))
    return iou(first, second) - gap / hull
