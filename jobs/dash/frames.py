"""A clip's frames along its time, as one JPEG: `Strips(run).of(clip)`.

Read from the source if it is still there, at a size that people can see; else what the clip cache
has, which is what the model saw. Only what lies below `shared.video.roots` of the run is opened.
"""

import threading
from collections import OrderedDict

import numpy as np

from common import config
from common.errors import TempSampError
from common.messages import ClipRef

KEPT = 256
"""Strips: some 10 kB each."""
AT_ONCE = 2
"""Clips decoded at the same time: a page of groups must not take the machine from its run."""


class Strips:
    """Strips of one run's clips, the latest of them kept."""

    def __init__(self, run: config.Run | None) -> None:
        """`run`: None: nothing is opened."""
        self._run = run
        self._kept: OrderedDict[str, bytes | None] = OrderedDict()
        self._lock = threading.Lock()
        self._turns = threading.Semaphore(AT_ONCE)

    def of(self, clip: ClipRef) -> bytes | None:
        """None when no frame can be read."""
        key = f"{clip.sha256}:{clip.uri}:{clip.window_s}"
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._turns:
            made = None if self._run is None else _strip(clip, self._run)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made


def _strip(clip: ClipRef, run: config.Run) -> bytes | None:
    from common.video.roots import VideoRoots
    from jobs.evaluation.showing.timelines import strip_jpeg

    video = run.shared.video
    try:
        path = VideoRoots(video.roots).resolve(clip.uri)
    except TempSampError:
        return _cached_strip(clip, video)
    return strip_jpeg(path, window=clip.window_s) or _cached_strip(clip, video)


def _cached_strip(clip: ClipRef, video: config.Video) -> bytes | None:
    from common.video.loader import ClipLoader
    from jobs.evaluation.showing.timelines import NUM_FRAMES, jpeg_of

    if video.cache is None:
        return None
    try:
        frames = ClipLoader.of(video.model_copy(update={"cache_mode": "strict"})).load(clip)
    except TempSampError:
        return None
    middles = (np.arange(NUM_FRAMES) + 0.5) / NUM_FRAMES * clip.duration_s
    times = np.array(clip.frame_times_s)
    nearest = [int(np.abs(times - middle).argmin()) for middle in middles]
    return jpeg_of(frames[nearest])
