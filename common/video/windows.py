"""Windows: rows may ask about a part of a longer file; `Window` + frame times → frames, and names.

A `ClipRef` keeps the window as the row writes it (`window_s`); its frame indices count in the file,
its times from the window's start. Neighbours: `common.video.frames` samples, `common.video.loader`
and `common.video.cache` keep the entries of windows apart by `entry_key`.
"""

import numpy as np
import numpy.typing as npt

from common.errors import VideoError
from common.messages import Window

SAME_TIME_S = 1e-6
"""A frame this near to the edge of a window lies on it: 0.1 s has no exact binary form."""
WINDOW_END_TOLERANCE_S = 1.0
"""A window may end this much after its file, as a target after its clip (`common.rows`)."""

ROW_KNOBS = "start_s and end_s of the row"


def frames_inside(
    window: Window, *, times_s: npt.NDArray[np.float64], knobs: str = ROW_KNOBS
) -> tuple[int, int]:
    """First frame of a window, and how many it holds: those shown at its start, its end or between.

    On an even grid these are the frames that the library takes for `video_start` and `video_end`. A
    window may end `WINDOW_END_TOLERANCE_S` after the file: annotations are rounded.

    Args:
        window: seconds since the first frame.
        times_s: [N] when each frame of the file is shown, ascending.
        knobs: what the window was named by.

    Raises:
        VideoError: the file does not have the window, or no two frames lie in it.
    """
    start_s, end_s = window
    last_s = float(times_s[-1])
    if start_s >= last_s or (end_s is not None and end_s > last_s + _tail_s(times_s)):
        raise VideoError(
            f"found a file whose last frame is shown at {last_s:.2f} s, wanted "
            f"{window_in_words(window)} of it ({knobs}); leave both out where the file is that "
            "part itself"
        )
    first = int(np.searchsorted(times_s, start_s - SAME_TIME_S))
    end = last_s if end_s is None else end_s
    count = int(np.searchsorted(times_s, end + SAME_TIME_S, side="right")) - first
    if count < 2:
        raise VideoError(
            f"found {count} frame(s) in {window_in_words(window)} ({knobs}), wanted at least two"
        )
    return first, count


def window_in_words(window: Window) -> str:
    """`39.00 to 84.70 s`."""
    start_s, end_s = window
    return f"{start_s:.2f} s to the end" if end_s is None else f"{start_s:.2f} to {end_s:.2f} s"


def entry_key(fingerprint: str, *, window: Window | None) -> str:
    """What a cache entry is called: the sampling, and the part of the file if there is one.

    `0123456789abcdef`, `0123456789abcdef@39.0-84.7`, `0123456789abcdef@39.0-`.
    """
    if window is None:
        return fingerprint
    start_s, end_s = window
    return f"{fingerprint}@{float(start_s)!r}-{'' if end_s is None else repr(float(end_s))}"


def _tail_s(times_s: npt.NDArray[np.float64]) -> float:
    """How long after the last frame a window may end: that frame's own time, and the tolerance."""
    mean_s = float(times_s[-1]) / max(1, len(times_s) - 1)
    return mean_s + WINDOW_END_TOLERANCE_S
