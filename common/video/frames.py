"""Clips: `sample_clip(path) -> ClipRef` chooses frames, `load_frames(ClipRef)` decodes them.

The learner's feed samples, rollout and learner load; both get equal bytes because everything that
decides a pixel is in the `ClipRef`. `decode` does both at once, for offline preprocessing; `probe`
says what a file holds. Which frames, at which size: `common.video.sampling`. Which pictures a file
shows, and when: `common.video.index`; what decord would misread: `common.video.pyav_reader`. The
only file that imports decord.

Shapes: F frames, H W pixels, C = 3 channels (RGB). Time 0 is the first frame of the file, or the
start of the window that a row names.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.errors import VideoError
from common.messages import ClipRef, Decoder, Window
from common.video.index import REGULAR_WITHIN_FRAMES, index_frames
from common.video.pyav_reader import VideoIndex, read_frames
from common.video.sampling import (
    VideoSampling,
    check_source,
    frame_indices,
    frame_size,
    num_frames,
)
from common.video.windows import ROW_KNOBS, frames_inside

DECORD_CODECS = frozenset({"h264", "hevc", "vp9"})
"""Codecs of which decord 0.6 was seen to give PyAV's bytes, where each packet is a picture."""
DECORD_BITS = 8
"""More are rounded otherwise than by PyAV: 4 levels apart on average where colours meet."""
ROW_ALIGNMENTS_BYTES = (16, 32, 64)
"""Row alignments of FFmpeg builds: SSE, AVX, AVX-512."""
NO_STAND_INS = "0.000001"
"""decord's fault_tol: less than one frame may be a repeated neighbour."""
REMEMBERED_CLIPS = 16_384
_DLPACK_CPU = 1

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a video file holds."""

    path: str
    sha256: str
    decoder: Decoder
    width_px: int
    """As displayed, after rotation."""
    height_px: int
    total_frames: int
    source_fps: float
    """The average where the rate is variable."""
    duration_s: float
    rotation_deg: int
    """0, 90, 180 or 270: clockwise turn from stored to displayed."""
    variable_frame_rate: bool


@dataclass(frozen=True, kw_only=True)
class DecodedClip:
    """A clip and its pixels."""

    clip: ClipRef
    frames: Frames
    """[F, H, W, C] uint8 RGB."""


def probe(path: str | os.PathLike[str]) -> Probe:
    """What the index of a file says of it.

    Raises:
        VideoError: the file is missing, empty, not a video, or no clip can be sampled from it;
            names the path.
    """
    path = os.fspath(path)
    sha256 = file_digest(path)
    index = _index(path)
    decoder = _choose_decoder(path, index=index)
    return Probe(
        path=path,
        sha256=sha256,
        decoder=decoder,
        width_px=index.width_px,
        height_px=index.height_px,
        total_frames=index.total_frames,
        source_fps=index.source_fps,
        duration_s=index.total_frames / index.source_fps,
        rotation_deg=index.rotation_deg,
        variable_frame_rate=index.variable_frame_rate,
    )


def sample_clip(
    path: str | os.PathLike[str],
    *,
    sampling: VideoSampling,
    window: Window | None = None,
    window_knobs: str = ROW_KNOBS,
) -> ClipRef:
    """Probe a file and decide which frames, at which size, stand for it or for a window of it.

    Remembered per file content, sampling and window: the rows of one clip probe it once. What the
    window was named by, `window_knobs`, stands in errors.

    Raises:
        VideoError: the file is missing, empty, not a video or too short, or does not have the
            window; names the path.
    """
    return _sample_clip(os.fspath(path), file_digest(path), sampling, window, window_knobs)


@functools.lru_cache(maxsize=REMEMBERED_CLIPS)
def _sample_clip(
    path: str, sha256: str, sampling: VideoSampling, window: Window | None, window_knobs: str
) -> ClipRef:
    index = _index(path)
    decoder = _choose_decoder(path, index=index)
    clip = _clip(
        path,
        sha256=sha256,
        index=index,
        sampling=sampling,
        window=window,
        window_knobs=window_knobs,
    )
    return clip if clip.decoder == decoder else clip.model_copy(update={"decoder": decoder})


def load_frames(clip: ClipRef) -> Frames:
    """Decode the frames of a clip.

    Returns:
        [F, H, W, C] uint8 RGB, F = len(clip.frame_indices), (H, W) = clip.frame_hw.

    Raises:
        VideoError: the file is missing, broken, or not the file that was sampled.
    """
    digest = file_digest(clip.uri)
    if digest != clip.sha256:
        raise VideoError(
            f"{clip.uri}: found sha256 {digest[:12]}, wanted {clip.sha256[:12]}: "
            "the file changed after it was sampled"
        )
    try:
        if clip.decoder == "decord":
            reader = _decord_reader(clip.uri, total_frames=clip.total_frames)
            source = _decord_batch(reader, clip.frame_indices)
        else:
            index = index_frames(clip.uri)
            source = read_frames(clip.uri, index=index, indices=clip.frame_indices)
    except VideoError as error:
        raise _named(clip.uri, error) from error
    return _resize(source, clip.frame_hw)


def decode(
    path: str | os.PathLike[str], *, sampling: VideoSampling, window: Window | None = None
) -> DecodedClip:
    """`sample_clip` and `load_frames` in one pass over the file, with equal results.

    Raises:
        VideoError: as those two.
    """
    path = os.fspath(path)
    sha256 = file_digest(path)
    index = _index(path)
    clip = _clip(path, sha256=sha256, index=index, sampling=sampling, window=window)
    try:
        if _decord_misreads(index) is None:
            reader = _decord_reader(path, total_frames=index.total_frames)
            source = _decord_batch(reader, clip.frame_indices)
            return DecodedClip(clip=clip, frames=_resize(source, clip.frame_hw))
    except VideoError as error:
        # The batch holds the first frame: without it decord was never the decoder of this file.
        if _choose_decoder(path, index=index) == "decord":
            raise _named(path, error) from error
    try:
        source = read_frames(path, index=index, indices=clip.frame_indices)
    except VideoError as error:
        raise _named(path, error) from error
    clip = clip.model_copy(update={"decoder": "pyav"})
    return DecodedClip(clip=clip, frames=_resize(source, clip.frame_hw))


def processor_metadata(clip: ClipRef) -> dict[str, Any]:
    """Video metadata for Qwen's processors: true fps and indices, no second sampling.

    Without it the processors print wrong `<t seconds>` stamps, silently. They take index / fps
    for a frame's time, so unevenly spaced frames get fractional indices: their times x fps. Those
    of a window count from its start.
    """
    places = [time_s * clip.source_fps for time_s in clip.frame_times_s]
    before = 0 if clip.window_s is None else round(clip.window_s[0] * clip.source_fps)
    indices = [index - before for index in clip.frame_indices]
    drifts = (abs(place - i) for place, i in zip(places, indices, strict=True))
    even = max(drifts, default=0.0) <= REGULAR_WITHIN_FRAMES
    return {
        "fps": clip.source_fps,
        "duration": clip.duration_s,
        "total_num_frames": clip.num_source_frames,
        "frames_indices": indices if even else places,
        "video_backend": clip.decoder,
        "do_sample_frames": False,
    }


def file_digest(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of a file, remembered per (path, size, mtime) in this process.

    Raises:
        VideoError: the file is missing, a folder, or empty.
    """
    try:
        stat = os.stat(path)
    except (OSError, ValueError) as error:
        raise VideoError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
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


def _index(path: str) -> VideoIndex:
    """Of a file that a clip can be sampled from."""
    try:
        index = index_frames(path)
        check_source(index.total_frames, source_hw=(index.height_px, index.width_px))
    except VideoError as error:
        raise _named(path, error) from error
    return index


def _clip(
    path: str,
    *,
    sha256: str,
    index: VideoIndex,
    sampling: VideoSampling,
    window: Window | None,
    window_knobs: str = ROW_KNOBS,
) -> ClipRef:
    """The clip as decord would read it."""
    try:
        first, total = 0, index.total_frames
        if window is not None:
            first, total = frames_inside(window, times_s=index.times_s, knobs=window_knobs)
        frames = num_frames(total, source_fps=index.source_fps, sampling=sampling)
        size = frame_size((index.height_px, index.width_px), frames=frames, sampling=sampling)
    except VideoError as error:
        raise _named(path, error) from error
    indices = frame_indices(total, frames=frames, first=first)
    start_s = 0.0 if window is None else window[0]
    return ClipRef(
        uri=path,
        sha256=sha256,
        decoder="decord",
        source_fps=index.source_fps,
        total_frames=index.total_frames,
        frame_indices=indices,
        frame_times_s=tuple(round(float(index.times_s[i]) - start_s, 6) for i in indices),
        frame_hw=size,
        sampling=sampling.fingerprint,
        window_s=window,
    )


def _choose_decoder(path: str, *, index: VideoIndex) -> Decoder:
    """decord if it reads this file rightly and decodes its first frame."""
    if _decord_misreads(index) is not None:
        return "pyav"
    try:
        reader = _decord_reader(path, total_frames=index.total_frames)
        _decord_batch(reader, [0])
    except VideoError:
        return "pyav"
    return "decord"


def _decord_misreads(index: VideoIndex) -> str | None:
    """Why decord 0.6 would give wrong frames without an error; None where it gives the right ones.

    It numbers packets, and takes their number for the frame's: a hidden packet, one that is no
    picture, or a key frame that is not shown in the order of the file (open groups of pictures,
    usual in HEVC), shifts all that follows. On narrow frames it takes the padding of a row for
    channels, and more than 8 bits it rounds otherwise than PyAV.
    """
    reasons = {
        f"its codec is {index.codec}": index.codec not in DECORD_CODECS,
        f"it has {index.num_video_streams} video streams": index.num_video_streams > 1,
        f"{index.decoded_because}": index.decoded_because is not None,
        f"it has {index.bits} bits a channel": index.bits > DECORD_BITS,
        f"an edit list hides {index.num_hidden} packets": index.num_hidden > 0,
        "it stores no distinct times": index.stamps is None,
        "its key frames are out of place": not index.keys_in_place,
        f"its frames are {index.width_px} pixels wide": _pads_rows(index.width_px),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _pads_rows(width_px: int) -> bool:
    """Whether FFmpeg pads this row, on some machine, to a multiple of the width."""
    for alignment in ROW_ALIGNMENTS_BYTES:
        padded = width_px
        grain = 1
        while padded * 3 % alignment:
            grain *= 2
            padded = -(-width_px // grain) * grain
        if padded != width_px and padded * 3 % width_px == 0:
            return True
    return False


def _decord_reader(path: str, *, total_frames: int) -> Any:
    try:  # decord raises bare RuntimeError and types of its own; it has no wheel but for x86-64
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        reader = decord.VideoReader(
            os.path.abspath(path), ctx=decord.cpu(0), num_threads=1, fault_tol=NO_STAND_INS
        )
    except Exception as error:
        raise VideoError(f"decord cannot open it: {_first_line(error)}") from error
    if len(reader) != total_frames:
        raise VideoError(f"decord found {len(reader)} frames, wanted {total_frames}")
    return reader


def _decord_batch(reader: Any, indices: Sequence[int]) -> Frames:
    try:
        frames: Any = np.from_dlpack(_Batch(reader.get_batch(list(indices))))
    except Exception as error:
        raise VideoError(
            f"decord cannot decode frames {indices[0]}..{indices[-1]} ({len(indices)} frames): "
            f"{_first_line(error)}"
        ) from error
    if frames.shape[-1] != 3:
        raise VideoError(f"decord found {frames.shape[-1]} channels, wanted 3")
    found: Frames = frames
    return found


@dataclass(frozen=True)
class _Batch:
    """decord's array as NumPy can take it over, read-only; `asnumpy` would copy it."""

    array: Any

    def __dlpack__(self, **_: object) -> Any:
        return self.array.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_DLPACK_CPU, 0)


def _resize(frames: Frames, frame_hw: tuple[int, int]) -> Frames:
    """Antialiased bicubic, the filter of Qwen's processors; the caller's own array."""
    height, width = frame_hw
    if frames.shape[1:3] == frame_hw:
        return frames if frames.flags.writeable else frames.copy()
    resized = np.empty((len(frames), height, width, 3), np.uint8)
    for slot, frame in enumerate(frames):
        picture = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
        resized[slot] = np.asarray(picture)
    return resized


def _named(path: str, error: VideoError) -> VideoError:
    return VideoError(f"{path}: {error}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
