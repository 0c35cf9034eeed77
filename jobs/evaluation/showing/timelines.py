"""A clip along its time, as pages show it: places of spans, round times, a strip of frames.

Bars are CSS places in percent of the clip's length; strips are JPEGs inside the page. Clips are
read back through `common.video.frames`, so the strip shows what the model could see.
Neighbours: `jobs.evaluation.showing.cases` and `jobs.demo.timelines`.
"""

import base64
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.answers.spans import Span
from common.errors import VideoError
from common.messages import Window
from common.video.frames import load_frames, sample_clip
from common.video.sampling import VideoSampling

NUM_FRAMES = 8
STRIP_SAMPLING = VideoSampling(factor=4, min_pixels=4096, max_pixels=16_384)
"""Size of a strip's frames; their times are the middles of equal cells, chosen here."""
STRIP_HEIGHT_PX = 120
JPEG_QUALITY = 82
TICK_STEPS_S = (0.5, 1, 2, 4, 5, 10, 15, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
MAX_INTERVALS = 5


def ticks(duration_s: float) -> list[tuple[float, str]]:
    """Round times along a clip, at most `MAX_INTERVALS` intervals; clock times from two minutes."""
    fitting = (step for step in TICK_STEPS_S if duration_s / step <= MAX_INTERVALS)
    step_s = next(fitting, TICK_STEPS_S[-1])
    times_s = [k * step_s for k in range(int(duration_s / step_s + 1e-9) + 1)]
    return [(100 * time_s / duration_s, _clock(time_s, duration_s)) for time_s in times_s]


def place(span: Span, *, duration_s: float) -> str:
    """CSS `left` and `width` of a span; what lies outside the clip is cut off."""
    left, right = (100 * min(max(time_s / duration_s, 0.0), 1.0) for time_s in span)
    return f"left:{left:.2f}%;width:{max(right - left, 0.6):.2f}%"


def frame_strip(path: Path, *, window: Window | None = None) -> str | None:
    """`strip_jpeg` as a data URI."""
    jpeg = strip_jpeg(path, window=window)
    return None if jpeg is None else "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def strip_jpeg(path: Path, *, window: Window | None = None) -> bytes | None:
    """JPEG of `NUM_FRAMES` frames side by side, of a window if one is given; None when the clip
    cannot be read."""
    try:
        clip = sample_clip(path, sampling=STRIP_SAMPLING, window=window)
        first = 0 if window is None else clip.frame_indices[0]
        middles = (np.arange(NUM_FRAMES) + 0.5) / NUM_FRAMES * clip.num_source_frames
        indices = tuple((first + middles.astype(int)).tolist())
        frames = load_frames(clip.model_copy(update={"frame_indices": indices}))
    except VideoError:
        return None
    return jpeg_of(frames)


def jpeg_of(frames: npt.NDArray[np.uint8]) -> bytes:
    """JPEG of frames [F, H, W, 3] side by side."""
    wide = Image.fromarray(np.concatenate(list(frames), axis=1))
    width_px = round(wide.width * STRIP_HEIGHT_PX / wide.height)
    buffer = io.BytesIO()
    wide.resize((width_px, STRIP_HEIGHT_PX), Image.Resampling.LANCZOS).save(
        buffer, "JPEG", quality=JPEG_QUALITY
    )
    return buffer.getvalue()


def _clock(time_s: float, duration_s: float) -> str:
    if duration_s >= 120:
        return f"{int(time_s) // 60}:{int(time_s) % 60:02d}"
    return f"{time_s:g} s" if time_s else "0"
