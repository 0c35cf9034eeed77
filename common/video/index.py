"""What a video file shows: path → `VideoIndex`, the one judge of its pictures and their times.

Inspection, learner, replica, cache and cutting ask here, so what one refuses the others refuse for
the same reason. A packet is not a picture (`common.video.packets`): where packets show that each of
them is exactly one picture, they are listed and nothing but the first one is decoded; of any other
file every picture is decoded once, and what comes out is the index. `common.video.frames` decides
with it whether decord would read the file rightly. Who needs size and number of frames alone asks
`read_header`, which decodes nothing where the header tells.

Shapes: N frames of the file.
"""

import functools
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import VideoError
from common.video.mp4_boxes import IDENTITY, display_matrix, matrix_of, quarter_turns
from common.video.packets import look_into
from common.video.pyav_reader import RAW, VideoIndex, first_picture, opened, packets, pictures

logger = logging.getLogger(__name__)

STAMPED = frozenset({"mp4", "matroska", "flv"})
"""Containers whose packets have the times at which they are shown, one packet an access unit."""
REGULAR_WITHIN_FRAMES = 0.5
"""A frame further than this from its place on an even grid makes the frame rate variable."""
FIRST_PACKETS = 8
"""Leading pictures are stored right behind the key frame, so these show whether there are any."""
SLOW_S = 5.0
"""Decoding longer than this, to list what is shown, is said in the log."""
REMEMBERED_FILES = 64
"""An index of an hour takes 2 MB."""


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
    """Columns over the packets of one stream that are shown, in the order of the file."""

    pts: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    keys_start: bool = True
    """Decoders may start at each of them."""
    num_hidden: int = 0
    first: Any | None = None
    """The first picture."""


class _NoPicturesError(Exception):
    """Packets do not tell what is shown; says why."""


def index_frames(path: str | os.PathLike[str]) -> VideoIndex:
    """List what a file shows: from its packets, or by decoding it once.

    Remembered per (path, size, mtime) in this process.

    Raises:
        VideoError: PyAV cannot read the file, it has no video, ends early or has no times; the
            message leaves the path to the caller.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise VideoError(f"PyAV cannot read it as a video: {error.strerror}") from error
    return _remembered(os.fspath(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=REMEMBERED_FILES)
def _remembered(path: str, size: int, mtime_ns: int) -> VideoIndex:
    """`size` and `mtime_ns` are only the cache key."""
    try:
        with opened(path) as (container, stream):
            return _of_packets(container, stream)
    except _NoPicturesError as error:
        reason = str(error)
    began_s = time.perf_counter()
    with opened(path) as (container, stream):
        index = _of_pictures(container, stream, because=reason)
    if (took_s := time.perf_counter() - began_s) > SLOW_S:
        logger.warning(
            "a video was decoded to list its pictures; once in an mp4 or in the cache "
            "(tempsamp data preprocess) it need not be",
            extra={"video": path, "because": reason, "took_s": round(took_s, 1)},
        )
    return index


def read_header(path: str | os.PathLike[str]) -> VideoHeader:
    """Size and number of frames as `index_frames` finds them; of mp4 and mov from the header and
    the first packets, without decoding.

    Raises:
        VideoError: as `index_frames`.
    """
    with opened(path) as (container, stream):
        width_px, height_px = stream.width, stream.height
        total = _listed_frames(container, stream)
        if total and width_px and height_px:
            if quarter_turns(display_matrix(path, track_id=stream.id)) % 2:
                width_px, height_px = height_px, width_px
            return VideoHeader(
                width_px=width_px, height_px=height_px, total_frames=total, decoded=False
            )
    index = index_frames(path)
    return VideoHeader(
        width_px=index.width_px,
        height_px=index.height_px,
        total_frames=index.total_frames,
        decoded=True,
    )


def _of_packets(container: Any, stream: Any) -> VideoIndex:
    """Raises: _NoPicturesError, as soon as a packet is seen that is not a picture."""
    found = _read_packets(container, stream, packets(container, stream), decode=True)
    stamps = np.array(found.pts, np.int64)
    order = np.argsort(stamps, kind="stable")
    stamps = stamps[order]
    return _index(
        container,
        stream,
        first=found.first,
        stamps=stamps,
        times_s=_seconds(stamps, stream),
        last_length=found.lengths[order[-1]],
        header_fps=float(stream.average_rate or 0),
        num_hidden=found.num_hidden,
        keys_in_place=found.keys_start and all(order[key] == key for key in found.keys),
    )


def _read_packets(container: Any, stream: Any, listed: Iterable[Any], *, decode: bool) -> _Packets:
    """What packets say, if each of them is a picture, and the first picture if `decode`.

    Raises:
        _NoPicturesError: they are not; a packet that is may still be hidden by an edit list.
    """
    if STAMPED.isdisjoint(container.format.name.split(",")):
        raise _NoPicturesError(f"packets of {container.format.name} are not pictures")
    context = stream.codec_context
    look = look_into(context.codec.canonical_name, extradata=bytes(context.extradata or b""))
    if look is None:
        raise _NoPicturesError(f"packets of {context.codec.canonical_name} are not read")
    found, shifted, start = _Packets(), False, None
    for number, packet in enumerate(listed):
        shown = look(memoryview(packet))
        if packet.pts is None:
            raise _NoPicturesError(f"packet {number} has no time")
        if shown.pictures != 1:
            raise _NoPicturesError(f"packet {number} shows {shown.pictures} pictures")
        if start is None:
            if not shown.starts:
                raise _NoPicturesError("its first packet is no key frame")
            start = packet.pts
        elif shown.restarts:
            raise _NoPicturesError(f"it begins anew at packet {number}")
        if decode and found.first is None:
            found.first = first_picture(stream, packet)
        shifted = shifted or packet.pts != packet.dts
        if packet.is_discard:
            found.num_hidden += 1
            continue
        if packet.pts < start:
            raise _NoPicturesError(f"packet {number} is shown before the key frame ahead of it")
        if packet.is_keyframe:
            found.keys.append(len(found.pts))
            found.keys_start = found.keys_start and shown.starts
        found.pts.append(packet.pts)
        found.lengths.append(packet.duration or 0)
    _refuse_times(found, is_reordered=context.has_b_frames, shifted=shifted)
    return found


def _refuse_times(found: _Packets, *, is_reordered: bool, shifted: bool) -> None:
    if not found.pts:
        raise VideoError("found 0 frames, wanted at least one")
    if len(set(found.pts)) < len(found.pts):
        raise _NoPicturesError("two packets have one time")
    if is_reordered and not shifted:
        raise _NoPicturesError("its times are those of decoding")
    if found.first is not None and found.first.interlaced_frame:
        raise _NoPicturesError("its frames are of two fields, which may be packets of their own")


def _of_pictures(container: Any, stream: Any, *, because: str) -> VideoIndex:
    first: Any | None = None
    stamps: list[int | None] = []
    moments: list[int | None] = []
    num_hidden, length = 0, 0

    def on_packet(packet: Any) -> None:
        nonlocal num_hidden
        num_hidden += packet.is_discard
        if not packet.is_discard:
            moments.append(packet.dts)

    for picture in pictures(container, stream, on_packet=on_packet):
        first = first or picture
        stamps.append(picture.pts)
        length = picture.duration or 0
    is_raw = container.format.name in RAW
    header_fps = float((stream.codec_context.framerate if is_raw else stream.average_rate) or 0)
    own = None if is_raw else _ascending(stamps)
    if own is not None:
        times_s = _seconds(own, stream)
    elif is_raw:
        times_s = _counted(len(stamps), fps=header_fps, codec=stream.codec_context.name)
    else:
        times_s = _seconds(_decoding_times(moments, stamps=stamps), stream)
        _refuse_uneven(times_s)
    return _index(
        container,
        stream,
        first=first,
        stamps=own,
        times_s=times_s,
        last_length=length,
        header_fps=header_fps,
        num_hidden=num_hidden,
        keys_in_place=False,
        because=because,
    )


def _ascending(stamps: list[int | None]) -> npt.NDArray[np.int64] | None:
    """Times of pictures, if they follow each other."""
    known = [stamp for stamp in stamps if stamp is not None]
    found = np.array(known, np.int64)
    return found if len(known) == len(stamps) and bool((np.diff(found) >= 0).all()) else None


def _decoding_times(
    moments: list[int | None], *, stamps: list[int | None]
) -> npt.NDArray[np.int64]:
    """Without times of pictures (avi) those of decoding serve: they are the same set of moments.

    Raises:
        VideoError: there are others than pictures, or they go back.
    """
    found = _ascending(moments)
    if found is not None and len(found) == len(stamps):
        return found
    back = next((n for n in range(1, len(stamps)) if not _follows(stamps[n - 1], stamps[n])), 0)
    raise VideoError(
        f"found picture {back} shown before the one ahead of it (or at no time), wanted times that "
        "follow each other: give it new ones: ffmpeg -i FILE -fps_mode cfr FILE.mp4"
    )


def _refuse_uneven(times_s: npt.NDArray[np.float64]) -> None:
    """Moments of decoding run ahead of those of showing by some pictures: the same, if all are
    evenly spaced, and else unknown."""
    last_s = float(times_s[-1])
    if last_s > 0 and not _is_regular(times_s, fps=(len(times_s) - 1) / last_s):
        raise VideoError(
            "found uneven times of decoding and none of pictures, wanted those: encode the video "
            "anew from its source, into an mp4"
        )


def _follows(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and before <= after


def _counted(total: int, *, fps: float, codec: str) -> npt.NDArray[np.float64]:
    """Times at the rate that a raw stream names."""
    if fps <= 0:
        raise VideoError(
            f"found a raw {codec} stream that names no frame rate, wanted times: put it into a "
            "container at its rate: ffmpeg -r FPS -i FILE FILE.mp4"
        )
    return np.arange(total) / fps


def _seconds(stamps: npt.NDArray[np.int64], stream: Any) -> npt.NDArray[np.float64]:
    tick = stream.time_base
    times_s: npt.NDArray[np.float64] = (stamps - stamps[0]) * tick.numerator / tick.denominator
    return times_s


def _index(
    container: Any,
    stream: Any,
    *,
    first: Any,
    stamps: npt.NDArray[np.int64] | None,
    times_s: npt.NDArray[np.float64],
    last_length: int,
    header_fps: float,
    num_hidden: int,
    keys_in_place: bool,
    because: str | None = None,
) -> VideoIndex:
    last_s = _last_frame_s(times_s, claimed_s=float(last_length * stream.time_base))
    source_fps = _source_fps(times_s, header_fps=header_fps, last_frame_s=last_s)
    side_data = first.side_data.get("DISPLAYMATRIX")
    rotation_deg = 90 * quarter_turns(matrix_of(side_data) if side_data else IDENTITY)
    sides = (first.width, first.height)
    width_px, height_px = sides[::-1] if rotation_deg in (90, 270) else sides
    is_distinct = stamps is not None and bool((np.diff(stamps) > 0).all())
    times_s.flags.writeable = False
    return VideoIndex(
        codec=stream.codec_context.codec.canonical_name,
        width_px=width_px,
        height_px=height_px,
        rotation_deg=rotation_deg,
        source_fps=source_fps,
        variable_frame_rate=not _is_regular(times_s, fps=source_fps),
        times_s=times_s,
        stamps=stamps if is_distinct else None,
        starts_s=0.0 if stamps is None else float(int(stamps[0]) * stream.time_base),
        bits=max(channel.bits for channel in first.format.components),
        num_video_streams=len(container.streams.video),
        decoded_because=because,
        num_hidden=num_hidden,
        keys_in_place=keys_in_place,
    )


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
    try:
        _read_packets(container, stream, _beginning(container, stream), decode=False)
    except _NoPicturesError:
        return 0
    return sum(not entry.is_discard for entry in listed)


def _beginning(container: Any, stream: Any) -> Iterator[Any]:
    """The first packets, as many as tell: those that an edit list hides do not count."""
    shown = 0
    for packet in packets(container, stream):
        yield packet
        shown += not packet.is_discard
        if shown == FIRST_PACKETS:
            return
