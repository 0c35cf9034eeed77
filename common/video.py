"""Clips: `sample_clip(path) -> ClipRef` chooses frames, `load_frames(ClipRef)` decodes them.

The learner's feed samples, rollout and learner load; both get equal bytes because everything that
decides a pixel is in the `ClipRef`. The only file that imports decord.

Sampling is qwen-vl-utils 0.0.14's arithmetic (SPEC A4; a test compares with the library): pixel
budget per frame, sides rounded to the patch factor, an even number of evenly spaced frames.
Shapes: F frames, H W pixels, C = 3 channels (RGB).
"""

import functools
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from common.errors import VideoError
from common.messages import ClipRef

FRAME_FACTOR = 2
"""Frames per temporal patch of every Qwen-VL tower."""
MAX_TOKENS_PER_FRAME = 768
"""qwen-vl-utils never gives one frame more tokens than this."""
MAX_ASPECT_RATIO = 200


class VideoSampling(BaseModel):
    """How frames are chosen and sized; the fingerprint of this object travels in each ClipRef."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fps: Annotated[float, Field(gt=0)] = 2.0
    """Frames sampled per second of video."""
    min_frames: Annotated[int, Field(ge=2)] = 4
    max_frames: Annotated[int, Field(ge=2)] = 768
    min_pixels: Annotated[int, Field(ge=1)] = 4096
    """Pixels per frame, lower bound."""
    max_pixels: Annotated[int, Field(ge=1)] = 786_432
    """Pixels per frame, upper bound."""
    total_pixels: Annotated[int, Field(ge=1)] = 14_680_064
    """Budget of a whole clip; a long clip gets smaller frames (SPEC A4)."""
    factor: Annotated[int, Field(ge=4)] = 32
    """Sides are multiples of patch x merge size: 28 for Qwen2.5-VL, 32 for Qwen3-VL and Qwen3.5."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of the canonical JSON of all parameters."""
        canonical = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def num_frames(total_frames: int, source_fps: float, sampling: VideoSampling) -> int:
    """Even number of frames to sample from a file of `total_frames` at `source_fps`.

    Raises:
        VideoError: the file has fewer than two frames.
    """
    if total_frames < FRAME_FACTOR:
        raise VideoError(
            f"found {total_frames} frame(s), wanted at least {FRAME_FACTOR}: the clip is too short"
        )
    lower = math.ceil(sampling.min_frames / FRAME_FACTOR) * FRAME_FACTOR
    upper = min(sampling.max_frames, total_frames) // FRAME_FACTOR * FRAME_FACTOR
    wanted = total_frames / source_fps * sampling.fps
    clamped = min(max(wanted, lower), upper, total_frames)
    return int(clamped // FRAME_FACTOR * FRAME_FACTOR)


def frame_size(
    height_px: int, width_px: int, frames: int, sampling: VideoSampling
) -> tuple[int, int]:
    """Height and width after resizing: multiples of the factor, inside one frame's pixel budget.

    Raises:
        VideoError: one side is over 200 times the other.
    """
    if max(height_px, width_px) > MAX_ASPECT_RATIO * min(height_px, width_px):
        raise VideoError(f"aspect ratio of {width_px}x{height_px} is over {MAX_ASPECT_RATIO}:1")
    factor = sampling.factor
    budget = min(
        MAX_TOKENS_PER_FRAME * factor * factor, sampling.total_pixels / frames * FRAME_FACTOR
    )
    max_pixels = min(max(budget, int(sampling.min_pixels * 1.05)), sampling.max_pixels)
    height = max(factor, round(height_px / factor) * factor)
    width = max(factor, round(width_px / factor) * factor)
    if height * width > max_pixels:
        shrink = math.sqrt(height_px * width_px / max_pixels)
        height = max(factor, math.floor(height_px / shrink / factor) * factor)
        width = max(factor, math.floor(width_px / shrink / factor) * factor)
    elif height * width < sampling.min_pixels:
        grow = math.sqrt(sampling.min_pixels / (height_px * width_px))
        height = math.ceil(height_px * grow / factor) * factor
        width = math.ceil(width_px * grow / factor) * factor
    return height, width


def sample_clip(path: str | os.PathLike[str], *, sampling: VideoSampling) -> ClipRef:
    """Probe a file and decide which frames, at which size, stand for it.

    Remembered per file content and sampling: the rows of one clip probe it once.

    Raises:
        VideoError: the file is missing, empty, not a video or too short; names the path.
    """
    return _sample_clip(os.fspath(path), file_digest(path), sampling)


@functools.lru_cache(maxsize=65_536)
def _sample_clip(path: str, sha256: str, sampling: VideoSampling) -> ClipRef:
    reader = _open(path)
    total, source_fps = len(reader), float(reader.get_avg_fps())
    if not (total > 0 and math.isfinite(source_fps) and source_fps > 0):
        raise VideoError(f"{path}: found {total} frames at {source_fps} fps, wanted both above 0")
    try:
        height_px, width_px = _shape_of_first_frame(reader)
        frames = num_frames(total, source_fps, sampling)
        size = frame_size(height_px, width_px, frames, sampling)
    except VideoError as error:
        raise VideoError(f"{path}: {error}") from error
    indices = np.linspace(0, total - 1, frames).round().astype(int)
    return ClipRef(
        uri=path,
        sha256=sha256,
        source_fps=source_fps,
        total_frames=total,
        frame_indices=tuple(indices.tolist()),
        frame_hw=size,
        sampling=sampling.fingerprint,
    )


def load_frames(clip: ClipRef) -> npt.NDArray[np.uint8]:
    """Decode the frames of a clip.

    Returns:
        [F, H, W, 3] uint8 RGB, F = len(clip.frame_indices), (H, W) = clip.frame_hw.

    Raises:
        VideoError: the file is missing, broken, or not the file that was sampled.
    """
    digest = file_digest(clip.uri)
    if digest != clip.sha256:
        raise VideoError(
            f"{clip.uri}: found sha256 {digest[:12]}, wanted {clip.sha256[:12]}: "
            "the file changed after it was sampled"
        )
    reader = _open(clip.uri)
    if len(reader) != clip.total_frames:
        raise VideoError(f"{clip.uri}: found {len(reader)} frames, wanted {clip.total_frames}")
    try:  # decord raises bare RuntimeError and types of its own
        source = reader.get_batch(list(clip.frame_indices)).asnumpy()
    except Exception as error:
        raise VideoError(
            f"{clip.uri}: cannot decode frames {_brief(clip.frame_indices)}: {error}"
        ) from error
    return np.stack([_resize(frame, clip.frame_hw) for frame in source])


def processor_metadata(clip: ClipRef) -> dict[str, Any]:
    """Video metadata for Qwen's processors: true fps and indices, no second sampling.

    Without it the processors print wrong `<t seconds>` stamps, silently.
    """
    return {
        "fps": clip.source_fps,
        "duration": clip.duration_s,
        "total_num_frames": clip.total_frames,
        "frames_indices": list(clip.frame_indices),
        "video_backend": "decord",
        "do_sample_frames": False,
    }


def file_digest(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of a file, remembered per (path, size, mtime) in this process.

    Raises:
        VideoError: the file is missing, a folder, or empty.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror or error}") from error
    if not Path(path).is_file():
        raise VideoError(f"{path}: found a folder or device, wanted a video file")
    if stat.st_size == 0:
        raise VideoError(f"{path}: found 0 bytes, wanted a video file")
    return _digest(os.fspath(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=65_536)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    """`size` and `mtime_ns` are only the cache key."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: str | os.PathLike[str]) -> Any:
    file_digest(path)  # says clearly what decord would say in C++
    import decord

    try:
        return decord.VideoReader(os.fspath(path), ctx=decord.cpu(0), num_threads=1)
    except Exception as error:
        raise VideoError(f"{path}: cannot open as a video: {str(error).splitlines()[0]}") from error


def _shape_of_first_frame(reader: Any) -> tuple[int, int]:
    try:
        height, width, channels = reader[0].shape
    except Exception as error:
        raise VideoError(f"cannot decode the first frame: {str(error).splitlines()[0]}") from error
    if channels != 3:  # at widths 16, 24, 48 and 72 decord takes its row padding for channels
        raise VideoError(
            f"found {width}x{height} pixels, which decord misreads; re-encode it at another width"
        )
    return int(height), int(width)


def _resize(frame: npt.NDArray[np.uint8], frame_hw: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Antialiased bicubic, the filter of Qwen's processors."""
    height, width = frame_hw
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def _brief(indices: tuple[int, ...]) -> str:
    return f"{indices[0]}..{indices[-1]} ({len(indices)} frames)"
