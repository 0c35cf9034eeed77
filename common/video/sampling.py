"""Which frames stand for a clip, at which size: lengths and sizes → frame indices and sides.

`VideoSampling` holds the settings (`[shared.video]` of a run file derives from it),
`common.video.frames` applies them to files. The arithmetic is qwen-vl-utils' own (SPEC A4):
`smart_nframes` and `smart_resize` are called, and only what the library keeps inside `fetch_video`
is written here: the index rounding and the pixel budget of one frame.

Nothing heavy is imported before the first call: the library imports torch and torchvision.
"""

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from common.errors import VideoError
from common.messages import MAX_INT

MIN_SIDE_PX = 2
"""A video one pixel wide is a broken header, and chroma has half its sides."""
MIN_FRAMES = 2
"""One temporal patch (`FRAME_FACTOR` of the library)."""
MAX_RATIO = 200
"""Of the sides, as the library has it."""


class VideoSampling(BaseModel):
    """How frames are chosen and sized; the fingerprint of this object travels in each ClipRef."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    fps: Annotated[float, Field(gt=0)] = 2.0
    """Frames sampled per second of video."""
    min_frames: Annotated[int, Field(ge=2, le=MAX_INT)] = 4
    max_frames: Annotated[int, Field(ge=2, le=MAX_INT)] = 768
    min_pixels: Annotated[int, Field(ge=1, le=MAX_INT)] = 4096
    """Pixels per frame, lower bound."""
    max_pixels: Annotated[int, Field(ge=1, le=MAX_INT)] = 786_432
    """Pixels per frame, upper bound."""
    total_pixels: Annotated[int, Field(ge=1, le=MAX_INT)] = 14_680_064
    """Budget of a whole clip; a long clip gets smaller frames (SPEC A4)."""
    factor: Annotated[int, Field(ge=4, le=MAX_INT)] = 32
    """Sides are multiples of patch x merge size: 28 for Qwen2.5-VL, 32 for Qwen3-VL and Qwen3.5."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of the canonical JSON of the fields above; a subclass adds nothing to it."""
        canonical = json.dumps(self.model_dump(include=FIELDS), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


FIELDS = set(VideoSampling.model_fields)


def check_source(total_frames: int, *, source_hw: tuple[int, int]) -> None:
    """Refuse what no sampling can use, without the library.

    Raises:
        VideoError: fewer than two frames, a side of under two pixels, or one over 200 times the
            other.
    """
    height_px, width_px = source_hw
    if total_frames < MIN_FRAMES:
        raise VideoError(
            f"found {total_frames} frame(s), wanted at least one temporal patch of {MIN_FRAMES}: "
            "the clip is too short"
        )
    if min(source_hw) < MIN_SIDE_PX:
        raise VideoError(
            f"found {width_px}x{height_px} pixels, wanted sides of at least {MIN_SIDE_PX}"
        )
    if max(source_hw) > MAX_RATIO * min(source_hw):
        raise VideoError(
            f"found {width_px}x{height_px} pixels, wanted no side over {MAX_RATIO} times the other"
        )


def num_frames(total_frames: int, *, source_fps: float, sampling: VideoSampling) -> int:
    """Even number of frames to sample from a file of `total_frames`, 2 or more, at `source_fps`."""
    settings = sampling.model_dump(include={"fps", "min_frames", "max_frames"})
    return int(_library().smart_nframes(settings, total_frames, source_fps))


def frame_indices(total_frames: int, *, frames: int, first: int = 0) -> tuple[int, ...]:
    """`frames` of the `total_frames` source frames from `first` on, the first and the last of them
    included, evenly spaced and rounded to even.

    Equal to the library's `torch.linspace(first, last, frames).round()`: float32, one
    rounding per element, counted from the nearer end. numpy's float64 gives other frames: for
    files of up to 100,000 frames, in a quarter of all cases.
    """
    import numpy as np

    start, last = np.float32(first), np.float32(first + total_frames - 1)
    step = np.float64((last - start) / np.float32(frames - 1))
    steps = np.arange(frames, dtype=np.float64)
    from_first = (np.float64(start) + steps * step).astype(np.float32)
    from_last = (np.float64(last) - step * steps[::-1]).astype(np.float32)
    places = np.where(steps < frames // 2, from_first, from_last).round()
    return tuple(places.astype(int).tolist())


def frame_size(
    source_hw: tuple[int, int], *, frames: int, sampling: VideoSampling
) -> tuple[int, int]:
    """Height and width after resizing: multiples of the factor, inside one frame's pixel budget.

    Args:
        source_hw: height and width in pixels, as displayed, that `check_source` lets pass.
        frames: how many frames share `total_pixels`.
        sampling: the bounds.

    Raises:
        VideoError: the bounds contradict each other.
    """
    height_px, width_px = source_hw
    try:
        sides = _library().smart_resize(
            height_px,
            width_px,
            factor=sampling.factor,
            min_pixels=sampling.min_pixels,
            max_pixels=_frame_budget_px(frames, sampling=sampling),
        )
    except (ValueError, AssertionError) as error:
        raise VideoError(
            f"found {width_px}x{height_px} pixels: {error} (min_pixels {sampling.min_pixels}, "
            f"max_pixels {sampling.max_pixels})"
        ) from error
    # Rounding down inside the library gives a narrow video a side of 0.
    height, width = (max(sampling.factor, int(side)) for side in sides)
    return height, width


def _frame_budget_px(frames: int, *, sampling: VideoSampling) -> float:
    """Most pixels of one frame, as inside the library's `fetch_video`."""
    library = _library()
    share = min(
        library.VIDEO_MAX_TOKEN_NUM * sampling.factor**2,
        sampling.total_pixels / frames * library.FRAME_FACTOR,
    )
    return min(sampling.max_pixels, max(float(share), int(sampling.min_pixels * 1.05)))


def _library() -> Any:
    from qwen_vl_utils import vision_process

    return vision_process
