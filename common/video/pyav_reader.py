"""Pictures of a video file through PyAV: path → stream, → pictures in order, → wanted frames.

One reader for all: `common.video.index` lists with it what a file shows, and frames are taken out
of the same sequence, so a frame's number means the same picture everywhere. Read from the start,
without seeking: where decoders begin elsewhere, pictures of some files are not the same. Bicubic
chroma makes PyAV and decord give equal bytes. The only file of `common` that imports PyAV (FFmpeg).

Only container formats of single files are opened: a playlist would name other files.
Shapes: F wanted frames, H W pixels as displayed, C = 3 channels (RGB).
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import VideoError

RAW = frozenset({"h264", "hevc", "m4v", "mpegvideo", "obu"})
"""Streams without a container: no times, and a rate only where the stream itself names one."""
CONTAINERS = ",".join(
    (
        "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,live_flv,asf,ogg,mxf,nut,ivf,wtv,rm",
        "yuv4mpegpipe,gif,apng,mp3,wav,flac,aac",
        *sorted(RAW),
    )
)
"""FFmpeg's names; hls, concat, dash and image sequences are not among them. Those of sound alone
are, so that a song is refused for having no pictures."""

OnPacket = Callable[[Any], None]


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
    """[N] presentation times in the stream's ticks; None where the file has no distinct ones."""
    starts_s: float
    """When the first frame is shown by the file's own clock."""
    bits: int
    """Of a channel as stored: 8, 10, 12."""
    num_video_streams: int
    """Cover pictures included."""
    decoded_because: str | None
    """Why packets do not tell and every picture was decoded; None: each packet is a picture."""
    num_hidden: int
    """Packets that an edit list hides."""
    keys_in_place: bool
    """Every key frame is one that decoders may start at, and stands in the file where it stands in
    time: no open groups of pictures, no intra refresh."""

    @property
    def total_frames(self) -> int:
        """N."""
        return len(self.times_s)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """The container of a file and its stream of moving pictures, while both may be read.

    Raises:
        VideoError: PyAV cannot open the file, or it has no video; the message leaves the path to
            the caller.
    """
    import av

    try:
        # An absolute path cannot be taken for a protocol, as "concat:a|b" would be.
        container = av.open(
            os.path.abspath(path),
            options={"format_whitelist": CONTAINERS},
            metadata_errors="replace",
        )
    except av.ArgumentError as error:  # what FFmpeg says of a format that is not on the list
        raise VideoError(
            "PyAV cannot read it as a video: it is a picture, a playlist, or in a container that "
            "is not read here; put a video into another one: ffmpeg -i FILE -c copy FILE.mkv"
        ) from error
    except av.FFmpegError as error:
        raise VideoError(f"PyAV cannot read it as a video: {_reason(error)}") from error
    with container:
        yield container, _video_stream(container)


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream in the order of the file; empty ones show nothing and are left out.

    Raises:
        VideoError: one was cut off or damaged on its way, or cannot be read.
    """
    import av

    count = 0
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if packet.is_corrupt:
                raise VideoError(
                    f"packet {count} is damaged or cut off: the file is truncated, or packets were "
                    "lost on their way"
                )
            count += 1
            yield packet
    except av.FFmpegError as error:
        raise VideoError(f"PyAV cannot read it as a video: {_reason(error)}") from error


def pictures(container: Any, stream: Any, *, on_packet: OnPacket | None = None) -> Iterator[Any]:
    """Every picture that the file shows, in order: what a decoder gives from the first packet on.

    Those that cannot be decoded because the file begins in the middle of something (the leading
    pictures of a cut) are not shown: packets before the first whole picture may fail.

    Args:
        container: from `opened`.
        stream: its stream.
        on_packet: told about each packet before it is decoded.

    Raises:
        VideoError: nothing can be decoded, or a packet after the first picture cannot.
    """
    first_error: VideoError | None = None
    begun = False
    for packet in _and_end(packets(container, stream)):
        if packet is not None and on_packet is not None:
            on_packet(packet)
        try:
            found = _decoded(stream, packet)
        except VideoError as error:
            if begun:
                raise
            first_error = first_error or error
            continue
        for picture in found:
            begun = begun or not picture.is_corrupt
            if begun:
                yield picture
    if not begun:
        raise first_error or VideoError("found 0 frames, wanted at least one")


def first_picture(stream: Any, packet: Any) -> Any | None:
    """The picture of a packet that a decoder starts at; None if an edit list hides it.

    Frames held back are asked for at once, so nothing can be decoded afterwards.

    Raises:
        VideoError: it cannot be decoded.
    """
    found = _decoded(stream, packet)
    if not found and not packet.is_discard:
        found = _decoded(stream, None)
        if not found:
            raise VideoError("PyAV cannot decode the first frame")
    return found[0] if found else None


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
    wanted = {_key(i, index=index): i for i in indices}
    with opened(path) as (container, stream):
        for count, picture in enumerate(pictures(container, stream)):
            if not wanted:
                return
            found = wanted.pop(count if index.stamps is None else picture.pts, None)
            if found is not None:
                yield found, _upright(picture, index=index)
    if wanted:
        first = min(wanted.values())
        raise VideoError(
            f"PyAV found no frame {first}, which a packet promises at {index.times_s[first]:.2f} s "
            f"({len(wanted)} of {len(indices)} missing): the file is damaged there"
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
    if stream.codec_context is None:
        raise VideoError("found a codec that FFmpeg cannot decode, wanted one that it can")
    stream.thread_count = 1
    return stream


def _and_end(found: Iterator[Any]) -> Iterator[Any | None]:
    """Packets, and None for their end."""
    yield from found
    yield None


def _decoded(stream: Any, packet: Any | None) -> list[Any]:
    import av

    try:
        found: list[Any] = stream.codec_context.decode(packet)
    except av.FFmpegError as error:
        raise VideoError(f"PyAV cannot decode it: {_reason(error)}") from error
    return found


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


def _reason(error: Any) -> str:
    return str(error.strerror or error).splitlines()[0]
