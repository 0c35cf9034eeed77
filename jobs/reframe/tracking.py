"""Segments and places at keyframes → a box for every frame: integers, inside, smooth. Pure.

    spans of frames -> frame_segments(); [place at a keyframe, …] -> outliers(), boxes()

What one keyframe got wrong is seen by a median over its neighbours, and passed over; one without a
place holds the last good one, and where there is none the crop stays in the middle. Between
keyframes the corner moves evenly. Arithmetic in one order, so equal answers give equal boxes.
Shapes: K keyframes, F frames of a segment, W keyframes of a window.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.reframe.crop import MIDDLE, Box, Point, Size, centred, corner_around, crop_size

EVERY = 15
"""Frames between keyframes (SPEC A11)."""
WINDOW = 5
"""Keyframes of a median: one wrong point among two, or two among five, do not move it."""
OUTLIER_SHARE = 0.2
"""A point further than this share of the frame from the median of its window is wrong, unless..."""
OUTLIER_SPEED = 0.5
"""... a subject that crosses half the frame a second can have come from there, or..."""
OUTLIER_SPREADS = 3.0
"""... its window is as far apart: so many median distances from the median."""

Pixels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FrameSegments:
    """Highlights as frames, and what had to be done to them."""

    segments: list[tuple[int, int]]
    """[first, end), ascending and apart."""
    faults: Counter[str]
    """By kind: segments of length zero, past the end, cut at the end, and too many."""


def frame_segments(spans: Iterable[tuple[int, int]], *, total: int, limit: int) -> FrameSegments:
    """Spans of frames as a reply gives them, made sound.

    Args:
        spans: first frame and frame after the last, the best span first, of any order and overlap.
        total: frames of the video.
        limit: most spans; later ones are left out.
    """
    faults: Counter[str] = Counter()
    inside: list[tuple[int, int]] = []
    for first, end in spans:
        if first >= total:
            faults["segment past the end"] += 1
        elif end <= max(first, 0):
            faults["zero-length segment"] += 1
        elif len(inside) == limit:
            faults["one segment too many"] += 1
        else:
            faults["segment cut at the end"] += end > total
            inside.append((max(first, 0), min(end, total)))
    merged: list[tuple[int, int]] = []
    for first, end in sorted(inside):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((first, end))
    return FrameSegments(merged, +faults)


def keyframes(first: int, end: int, *, every: int = EVERY) -> list[int]:
    """Frames of `[first, end)` that are asked about: every so many, and the last one."""
    frames = list(range(first, end, every))
    return frames if frames[-1] == end - 1 else [*frames, end - 1]


def outliers(places: Sequence[Point | None], *, step_s: float) -> set[int]:
    """Which of a segment's keyframes have a place far from that of their neighbours.

    Args:
        places: at the keyframes.
        step_s: seconds from one to the next.
    """
    far = max(OUTLIER_SHARE, OUTLIER_SPEED * step_s)
    known = [number for number, place in enumerate(places) if place is not None]
    places_K2 = np.array([places[number] for number in known], np.float64).reshape(-1, 2)
    found = set()
    for at, number in enumerate(known):
        near_W2 = places_K2[max(0, at - WINDOW // 2) : at + WINDOW // 2 + 1]
        median_2 = np.median(near_W2, axis=0)
        spread_2 = np.median(np.abs(near_W2 - median_2), axis=0)
        far_2 = np.abs(places_K2[at] - median_2)
        if (far_2 > np.maximum(far, OUTLIER_SPREADS * spread_2)).any():
            found.add(number)
    return found


def boxes(
    frames: Sequence[int],
    places: Sequence[Point | None],
    *,
    wrong: Collection[int],
    size: Size,
    ratio: Size,
    smooth_px: int | None = None,
) -> dict[int, Box]:
    """A box for each frame of a segment.

    Args:
        frames: its keyframes, ascending, from its first to its last frame.
        places: of the subject at these; None where no reply gave one.
        wrong: which of them `outliers` found.
        size: of the video in pixels.
        ratio: of the crop.
        smooth_px: most pixels that a box moves from frame to frame along an axis; None: any.

    Returns:
        Integer boxes of the largest crop of that ratio, inside the frame.
    """
    numbers = range(frames[0], frames[-1] + 1)
    if not any(place is not None for place in places):
        return dict.fromkeys(numbers, centred(size, ratio=ratio))
    crop = crop_size(size, ratio=ratio)
    kept = [number for number in range(len(frames)) if number not in wrong]
    knots = [frames[number] for number in kept]
    corners = [
        corner_around(place, frame=size, crop=crop)
        for place in held([places[number] for number in kept])
    ]
    paths = [_path(numbers, knots, along) for along in zip(*corners, strict=True)]
    if smooth_px is not None:
        paths = [bounded(path_F, step=smooth_px) for path_F in paths]
    return {
        number: Box(int(x), int(y), crop.width)
        for number, x, y in zip(numbers, *paths, strict=True)
    }


def held(places: Sequence[Point | None]) -> list[Point]:
    """Each gap filled with the last place before it; before the first one, the middle."""
    last = MIDDLE
    filled = []
    for place in places:
        last = place or last
        filled.append(last)
    return filled


def bounded(path_F: Pixels, *, step: int) -> Pixels:
    """The path with steps of at most `step`, neither late nor early; one that keeps to it stays.

    The mean of the highest such path below it and of the lowest above it, which keep to the step,
    so that their mean does, in whole numbers too. No other is closer at its farthest point.
    """
    below_F, above_F = path_F.copy(), path_F.copy()
    forth = range(1, len(path_F))
    for at, before in [(at, at - 1) for at in forth] + [(at - 1, at) for at in reversed(forth)]:
        below_F[at] = min(below_F[at], below_F[before] + step)
        above_F[at] = max(above_F[at], above_F[before] - step)
    mean_F: Pixels = (below_F + above_F + 1) // 2
    return mean_F


def _path(numbers: range, knots: Sequence[int], along: Sequence[float]) -> Pixels:
    """One coordinate of the corner: even between knots, held beyond them, halves rounded up."""
    return np.array(
        [math.floor(place + 0.5) for place in np.interp(numbers, knots, along)], np.int64
    )
