"""IoU of time spans: `(start_s, end_s)` pairs in seconds → a number in [0, 1].

Used by the reward service, by evaluation and by the tiny-model job. Pure, no dependencies.
A span with `end <= start` covers nothing: it neither intersects nor adds length.
"""

from collections.abc import Sequence

Span = tuple[float, float]
"""Start and end in seconds."""


def iou(first: Span, second: Span) -> float:
    """Intersection over the hull of two spans, in [0, 1]; 0 if the hull is empty (SPEC A6).

    Hull and union differ only when the intersection is 0, so this is the plain temporal IoU.
    """
    overlap = min(first[1], second[1]) - max(first[0], second[0])
    if overlap <= 0:
        return 0.0
    hull = max(first[1], second[1]) - min(first[0], second[0])
    return overlap / hull if hull > 0 else 0.0


def union_iou(first: Sequence[Span], second: Sequence[Span]) -> float:
    """Length of the intersection over length of the union of two sets of spans, in [0, 1].

    Spans inside one set may overlap or touch; two sets of one span each give `iou`.
    """
    if len(first) == 1 and len(second) == 1:
        return iou(first[0], second[0])
    left, right = merge(first), merge(second)
    overlap = _overlap_s(left, right)
    union = length_s(left) + length_s(right) - overlap
    return min(1.0, overlap / union) if union > 0 else 0.0


def merge(spans: Sequence[Span]) -> list[Span]:
    """The same time as disjoint, ascending, non-empty spans."""
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[1] > span[0]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def length_s(spans: Sequence[Span]) -> float:
    """Total length in seconds of disjoint spans."""
    return sum(end - start for start, end in spans)


def _overlap_s(left: Sequence[Span], right: Sequence[Span]) -> float:
    """Length of the intersection of two lists of disjoint ascending spans."""
    total, i, j = 0.0, 0, 0
    while i < len(left) and j < len(right):
        total += max(0.0, min(left[i][1], right[j][1]) - max(left[i][0], right[j][0]))
        if left[i][1] <= right[j][1]:
            i += 1
        else:
            j += 1
    return total
