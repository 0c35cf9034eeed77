"""What a video file really holds: path → `VideoIndex`, and (path, indices) → frames.

The index lists the packets of the file, without decoding more than the first frame: true times,
rotation, rate. `common.video.frames` decides with it whether decord would read the file rightly,
and otherwise reads frames here. Bicubic chroma makes both decoders give equal bytes. Who needs size
and number of frames alone asks `read_header`, which decodes nothing where the header tells. The
only file of `common` that imports PyAV (FFmpeg).

Only container formats of single files are opened: a playlist would name other files.
Shapes: N frames of the file, F wanted frames, H W pixels as displayed, C = 3 channels (RGB).
"""

import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import VideoError
from common.video.mp4_boxes import IDENTITY, Matrix, display_matrix

CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
"""FFmpeg's names; hls, concat, dash and image sequences are not among them."""
UNSTAMPED = frozenset({"avi"})
"""Containers that store no presentation times: their frames are counted, not looked up."""
REGULAR_WITHIN_FRAMES = 0.5
"""A frame further than this from its place on an even grid makes the frame rate variable."""


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """The frames of a video file in order of presentation."""

    codec: str
    """FFmpeg's name, such as h264."""
    width_px: int
    """As displayed, after rotation."""
    height_px: int
    rotation_deg: int
    """0, 90, 180 or 270: clockwise turn from stored to displayed."""
    source_fps: float
    """Frames per second: the header's if the frames keep it, else what the frames keep."""
    variable_frame_rate: bool
    """Frames lie over half a frame away from their places at `source_fps`."""
    times_s: npt.NDArray[np.float64] = field(repr=False)
    """[N] seconds since the first frame."""
    stamps: npt.NDArray[np.int64] | None = field(repr=False)
    """[N] presentation times in the stream's ticks; None where the container has none."""
    num_video_streams: int
    """Cover pictures included."""
    num_hidden: int
    """Packets that an edit list hides."""
    keys_in_place: bool
    """Every key frame stands in the file where it stands in time: no open groups of pictures."""

    @property
    def total_frames(self) -> int:
        """N."""
        return len(self.times_s)


@dataclass(frozen=True, kw_only=True)
class VideoHeader:
    """What `index_frames` would say of size and number."""

    width_px: int
    """As displayed, after rotation."""
    height_px: int
    total_frames: int
    decoded: bool
    """Whether packets had to be read, because the header does not tell."""


@dataclass
class _Packets:
    """Columns over the packets of one stream, in file order."""

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    durations: list[int | None] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    num_hidden: int = 0


def index_frames(path: str | os.PathLike[str]) -> VideoIndex:
    """Read the packets of a file and decode its first frame.

    Raises:
        VideoError: PyAV cannot open the file, it has no video, or it ends early; the message
            leaves the path to the caller.
    """
    import av

    try:
        with _open(path) as container:
            stream = _video_stream(container)
            packets, first = _read_packets(container, stream)
            return _index(container, stream, packets=packets, first=first)
    except av.FFmpegError as error:
        raise VideoError(f"PyAV cannot read it as a video: {_reason(error)}") from error


def read_header(path: str | os.PathLike[str]) -> VideoHeader:
    """Size and number of frames as `index_frames` finds them; of mp4 and mov from the header alone.

    Raises:
        VideoError: as `index_frames`.
    """
    import av

    try:
        with _open(path) as container:
            stream = _video_stream(container)
            width_px, height_px = stream.width, stream.height
            total = _listed_frames(container, stream)
            if total and width_px and height_px:
                if _quarter_turns(display_matrix(path, track_id=stream.id)) % 2:
                    width_px, height_px = height_px, width_px
                return VideoHeader(
                    width_px=width_px, height_px=height_px, total_frames=total, decoded=False
                )
    except av.FFmpegError as error:
        raise VideoError(f"PyAV cannot read it as a video: {_reason(error)}") from error
    index = index_frames(path)
    return VideoHeader(
        width_px=index.width_px,
        height_px=index.height_px,
        total_frames=index.total_frames,
        decoded=True,
    )


def read_frames(
    path: str | os.PathLike[str], *, index: VideoIndex, indices: Sequence[int]
) -> npt.NDArray[np.uint8]:
    """Decode wanted frames in one pass; memory holds nothing else.

    Args:
        path: the file of `index`.
        index: what `index_frames` found there.
        indices: ascending frames, in order of presentation; one may stand there several times.

    Returns:
        [F, H, W, C] uint8 RGB, upright.

    Raises:
        VideoError: a wanted frame is missing or damaged; never a stand-in for it.
    """
    slots: dict[int, list[int]] = {}
    for slot, i in enumerate(indices):
        slots.setdefault(i, []).append(slot)
    frames_FHWC = np.empty((len(indices), index.height_px, index.width_px, 3), np.uint8)
    for i, pixels in stream_frames(path, index=index, indices=list(slots)):
        frames_FHWC[slots[i]] = pixels
    return frames_FHWC


def stream_frames(
    path: str | os.PathLike[str], *, index: VideoIndex, indices: Sequence[int]
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Decode wanted frames in one pass, one at a time, in order of presentation.

    Args:
        path: the file of `index`.
        index: what `index_frames` found there.
        indices: distinct frames.

    Yields:
        The frame's number and its [H, W, C] uint8 RGB, upright.

    Raises:
        VideoError: as `read_frames`, when all that is there has been yielded.
    """
    import av

    wanted = {_key(i, index=index): i for i in indices}
    try:
        with _open(path) as container:
            for count, frame in enumerate(container.decode(_video_stream(container))):
                if not wanted:
                    return
                found = wanted.pop(count if index.stamps is None else frame.pts, None)
                if found is not None:
                    yield found, _upright(frame, index=index)
    except av.FFmpegError as error:
        raise VideoError(f"PyAV cannot decode it: {_reason(error)}") from error
    if wanted:
        missing = list(wanted.values())
        raise VideoError(
            f"PyAV found no frame {missing[0]} ({len(missing)} of {len(indices)} missing)"
        )


def _open(path: str | os.PathLike[str]) -> Any:
    import av

    # An absolute path cannot be taken for a protocol, as "concat:a|b" would be.
    return av.open(
        os.path.abspath(path), options={"format_whitelist": CONTAINERS}, metadata_errors="replace"
    )


def _video_stream(container: Any) -> Any:
    """FFmpeg's choice among the video streams that are no cover pictures."""
    from av.stream import Disposition

    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not films:
        found = sorted({stream.type for stream in container.streams}) or "no stream"
        raise VideoError(f"found {found} without moving pictures, wanted a video stream")
    best = container.streams.best("video")
    stream = best if best in films else films[0]
    stream.thread_count = 1
    return stream


def _read_packets(container: Any, stream: Any) -> tuple[_Packets, Any]:
    packets = _Packets()
    first: list[Any] = []
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.is_corrupt:
            raise VideoError(f"packet {len(packets.pts)} is cut off: the file is truncated")
        if not first:
            first = stream.codec_context.decode(packet)
        if not first and not packet.is_discard:
            # A decoder holds frames back. From here on only packets are read.
            first = stream.codec_context.decode(None)
            if not first:
                raise VideoError("PyAV cannot decode the first frame")
        if packet.is_discard:
            packets.num_hidden += 1
            continue
        if packet.is_keyframe:
            packets.keys.append(len(packets.pts))
        packets.pts.append(packet.pts)
        packets.dts.append(packet.dts)
        packets.durations.append(packet.duration)
    if not packets.pts:
        raise VideoError("found 0 frames, wanted at least one")
    return packets, first[0]


def _index(container: Any, stream: Any, *, packets: _Packets, first: Any) -> VideoIndex:
    stamps, order = _presentation(packets, stamped=container.format.name not in UNSTAMPED)
    tick = stream.time_base
    times_s = (stamps - stamps[0]) * tick.numerator / tick.denominator
    length = packets.durations[order[-1]] or 0
    last_s = _last_frame_s(times_s, claimed_s=float(length * tick))
    header_fps = float(stream.average_rate or 0)
    source_fps = _source_fps(times_s, header_fps=header_fps, last_frame_s=last_s)
    rotation_deg = _rotation_deg(first)
    sides = (first.width, first.height)
    width_px, height_px = sides[::-1] if rotation_deg in (90, 270) else sides
    unique = bool((np.diff(stamps) > 0).all())
    return VideoIndex(
        codec=stream.codec_context.name,
        width_px=width_px,
        height_px=height_px,
        rotation_deg=rotation_deg,
        source_fps=source_fps,
        variable_frame_rate=not _is_regular(times_s, fps=source_fps),
        times_s=times_s,
        stamps=stamps if unique and container.format.name not in UNSTAMPED else None,
        num_video_streams=len(container.streams.video),
        num_hidden=packets.num_hidden,
        keys_in_place=all(order[key] == key for key in packets.keys),
    )


def _presentation(
    packets: _Packets, *, stamped: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Stamps in order of presentation, and each one's place in the file.

    Without presentation times the decoding times serve: they are the same set of moments.
    """
    pts = [stamp for stamp in packets.pts if stamp is not None]
    dts = [stamp for stamp in packets.dts if stamp is not None]
    total = len(packets.pts)
    if stamped and len(pts) == total:
        stamps = np.array(pts, np.int64)
    elif len(dts) == total:
        stamps = np.array(dts, np.int64)
    else:
        raise VideoError(f"found times on {max(len(pts), len(dts))} of {total} packets, wanted all")
    order = np.argsort(stamps, kind="stable")
    return stamps[order], order


def _last_frame_s(times_s: npt.NDArray[np.float64], *, claimed_s: float) -> float:
    """How long the last frame stays: what the file claims, but no longer than any other frame.

    A header that lies about its duration lies here too.
    """
    if len(times_s) < 2:
        return claimed_s
    gaps_s = np.diff(times_s)
    longest_s = float(gaps_s.max())
    return min(claimed_s, longest_s) if claimed_s > 0 else float(gaps_s.mean())


def _source_fps(
    times_s: npt.NDArray[np.float64], *, header_fps: float, last_frame_s: float
) -> float:
    total, last_s = len(times_s), float(times_s[-1])
    for fps in (header_fps, (total - 1) / last_s if last_s > 0 else 0.0):
        if fps > 0 and _is_regular(times_s, fps=fps):
            return fps
    if last_s + last_frame_s <= 0:
        raise VideoError(f"found {total} frame(s) that last 0 s, wanted a length above 0")
    return total / (last_s + last_frame_s)


def _is_regular(times_s: npt.NDArray[np.float64], *, fps: float) -> bool:
    drift = np.abs(times_s * fps - np.arange(len(times_s)))
    return bool(drift.max() <= REGULAR_WITHIN_FRAMES)


def _listed_frames(container: Any, stream: Any) -> int:
    """Frames that the header of an mp4 or mov lists as shown; 0 where no header tells."""
    if "mp4" not in container.format.name.split(","):
        return 0
    listed = stream.index_entries
    if len(listed) != stream.frames:
        return 0  # fragments, which are listed as they come
    return sum(not entry.is_discard for entry in listed)


def _rotation_deg(frame: Any) -> int:
    side_data = frame.side_data.get("DISPLAYMATRIX")
    matrix = IDENTITY
    if side_data:
        x_to_x, x_to_y, _, y_to_x, y_to_y = struct.unpack_from("=5i", side_data)
        matrix = (x_to_x, x_to_y, y_to_x, y_to_y)
    return 90 * _quarter_turns(matrix)


def _quarter_turns(matrix: Matrix) -> int:
    """Clockwise turns from stored to displayed, 0 to 3."""
    x_to_x, x_to_y, y_to_x, y_to_y = matrix
    rotation_deg = round(math.degrees(math.atan2(x_to_y, x_to_x))) % 360
    mirrored = x_to_x * y_to_y < x_to_y * y_to_x
    if mirrored or rotation_deg % 90:
        raise VideoError(
            f"found a display {'mirroring' if mirrored else f'rotation of {rotation_deg} degrees'}"
            ", wanted a rotation by a multiple of 90 degrees: re-encode the video upright"
        )
    return rotation_deg // 90


def _key(frame_index: int, *, index: VideoIndex) -> int:
    return frame_index if index.stamps is None else int(index.stamps[frame_index])


def _upright(frame: Any, *, index: VideoIndex) -> npt.NDArray[np.uint8]:
    from av.video.reformatter import Interpolation

    if frame.is_corrupt:
        raise VideoError(f"the frame at {frame.time} s is damaged")
    pixels = frame.to_ndarray(format="rgb24", interpolation=Interpolation.BICUBIC)
    upright: npt.NDArray[np.uint8] = np.rot90(pixels, -index.rotation_deg // 90)
    wanted = (index.height_px, index.width_px)
    if upright.shape[:2] != wanted:
        raise VideoError(
            f"the frame at {frame.time} s is {upright.shape[1]}x{upright.shape[0]} pixels, "
            f"the first one {wanted[1]}x{wanted[0]}: re-encode the video at one size"
        )
    return upright


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0]
