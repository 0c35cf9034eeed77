"""Cut a span out of a video by copying its packets: `cut(video, span, output) -> Cut`.

Nothing is decoded or encoded, so the clip's frames are the source's own and a long film takes as
long as reading it. A copied clip can only start at a key frame: `Cut.lead_s` says how much earlier
that is than asked. Which pictures there are, and when, says `common.video.index`, of the source as
of the clip. Sound is moved by the same time as the pictures, so they stay in sync.
Neighbour: `jobs.ground.command`, which asks a model where to cut.

Times are seconds since the first frame of the source, as in a `ClipRef`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from common.answers.spans import Span
from common.errors import ConfigError, OutputError, VideoError
from common.queue.disk import FULL, check_file, reason
from common.video.index import index_frames
from common.video.pyav_reader import VideoIndex, opened
from jobs.ground.candidates import ROUNDING_S

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")
"""Containers whose clips start at time 0 and keep every frame's own time; avi and ts do not."""
SAME_TICK = 1e-3
"""Ticks: 0.1 s has no exact binary form, and may not fall before the frame shown at 0.1 s."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A clip that was written."""

    path: Path
    wanted_s: Span
    """Start and end as asked for."""
    start_s: float
    """When the clip's first frame is shown in the source: a key frame."""
    end_s: float
    """When its last frame ends in the source."""
    has_audio: bool

    @property
    def lead_s(self) -> float:
        """How much earlier than asked the clip starts."""
        return max(0.0, self.wanted_s[0] - self.start_s)

    @property
    def missing_s(self) -> float:
        """How much of what was asked the video does not have."""
        before_s, after_s = self.start_s - self.wanted_s[0], self.wanted_s[1] - self.end_s
        return max(0.0, before_s) + max(0.0, after_s)

    @property
    def in_words(self) -> str:
        """What of the video is in it, and how that differs from what was asked for."""
        words = f"{self.start_s:.2f} to {self.end_s:.2f} s of the video"
        if self.lead_s >= ROUNDING_S:
            words += f"; starts {self.lead_s:.2f} s early, at a key frame"
        if self.missing_s >= ROUNDING_S:
            words += f"; {self.missing_s:.2f} s of the answer are not in the video"
        return words


class _Stamp(NamedTuple):
    """A packet without its bytes; times in ticks."""

    pts: int
    duration: int
    is_key: bool
    is_shown: bool
    """Not hidden by an edit list, no reference frame that nobody sees, and decodable."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The packets of a clip; times in ticks of the source's video stream."""

    zero: int
    """When the source's first frame is shown."""
    first: int
    """When the key frame is shown that the clip starts with."""
    end: int
    """When the last copied frame ends."""
    num_packets: int
    """Video packets from the start of the file to the last copied one."""
    tick_s: Fraction

    def seconds(self, stamp: int) -> float:
        """Seconds since the first frame of the source."""
        return float((stamp - self.zero) * self.tick_s)


def check_output(source: str | os.PathLike[str], *, output: Path) -> None:
    """Refuse an output that cannot be written, before anything slow is done.

    Raises:
        ConfigError: its suffix is unknown, or `check_file` refuses it.
    """
    if output.suffix.lower() not in SUFFIXES:
        wanted = ", ".join(SUFFIXES)
        raise ConfigError(
            f"--cut: found suffix {output.suffix!r} in {output.name}, wanted one of {wanted}"
        )
    check_file(output, knob="--cut", inputs=[Path(source)])


def cut(source: str | os.PathLike[str], *, span: Span, output: Path) -> Cut:
    """Copy the pictures and the sound of a span into a new file.

    Args:
        source: the video.
        span: start and end in seconds; what lies outside the video is left out and reported.
        output: the new file; its suffix chooses the container. A file that is there is replaced
            once the new one is complete.

    Raises:
        ConfigError: an output that `check_output` refuses.
        VideoError: the span is empty or lies wholly outside the video, the source cannot be read,
            or the container cannot hold its streams.
        OutputError: there is no room for it.
    """
    import av

    check_output(source, output=output)
    if not span[0] < span[1]:
        raise VideoError(f"{source}: found span {_shown(span)}, wanted a start before its end")
    partial = output.with_name(f".{output.stem}.{os.getpid()}.partial{output.suffix}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        part = _part(source, span=span)
        has_audio = _copy(source, part=part, output=partial)
        part = _shown_part(part, clip=index_frames(partial))
        os.replace(partial, output)
    except VideoError as error:
        raise VideoError(f"{source}: {error}") from error
    except (av.FFmpegError, OSError) as error:
        if error.errno in FULL:
            why = reason(OSError(error.errno, error.strerror), output)
            raise OutputError(f"--cut: {output}: {why}") from error
        raise VideoError(f"{source}: cannot copy it to {output}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return Cut(
        path=output,
        wanted_s=span,
        start_s=part.seconds(part.first),
        end_s=part.seconds(part.end),
        has_audio=has_audio,
    )


def _part(source: str | os.PathLike[str], *, span: Span) -> _Part:
    """Which packets show the span: from a key frame to the last one that a wanted frame needs."""
    index = index_frames(source)
    stamps, tick_s = _stamps(source, index=index)
    zero = int(_times(index)[0])
    keys = [stamp.pts for stamp in stamps if stamp.is_key and stamp.is_shown]
    # A cut by an edit list leaves its key frame in the file, before the first one that is shown.
    keys = keys if zero in keys else [*(s.pts for s in stamps if s.is_key and s.pts < zero), *keys]
    if not keys:
        raise VideoError(f"found {len(stamps)} packets and no key frame, wanted one")
    start, end = (float(time_s / tick_s) + zero for time_s in span)
    source_end = max(stamp.pts + stamp.duration for stamp in stamps if stamp.is_shown)
    first = max((key for key in keys if key <= start + SAME_TICK), default=min(keys))
    if start >= source_end or first >= end - SAME_TICK:
        inside = f"{float((min(keys) - zero) * tick_s):.2f} to "
        inside += f"{float((source_end - zero) * tick_s):.2f} s"
        raise VideoError(f"found span {_shown(span)}, wanted a part of {inside}")
    num_packets = _packets_before(stamps, end=end - SAME_TICK)
    copied = [stamp for stamp in stamps[:num_packets] if stamp.pts >= first]
    last = max(stamp.pts + stamp.duration for stamp in copied)
    return _Part(zero=zero, first=first, end=last, num_packets=num_packets, tick_s=tick_s)


def _shown_part(part: _Part, *, clip: VideoIndex) -> _Part:
    """The part of which the clip shows pictures: after a key frame that is none to every decoder
    (intra refresh) they begin later."""
    late = round(clip.starts_s / float(part.tick_s))
    return replace(part, first=part.first + late)


def _times(index: VideoIndex) -> npt.NDArray[np.int64]:
    """Raises: VideoError: packets cannot be chosen by the time of their pictures."""
    if index.stamps is None:
        raise VideoError(
            "found no distinct times of its pictures, wanted some to cut at: re-encode it first: "
            "ffmpeg -i FILE FILE.mkv"
        )
    return index.stamps


def _packets_before(stamps: list[_Stamp], *, end: float) -> int:
    """How many packets hold all frames before `end`, what they depend on, and leave no gap.

    A frame may depend on one that is shown later and stored earlier; the frames between the two
    then belong to the clip as well.
    """
    count = 0
    while (wanted := 1 + max(k for k, stamp in enumerate(stamps) if stamp.pts < end)) > count:
        count = wanted
        end = max(end, *(stamp.pts for stamp in stamps[:count]))
    return count


def _stamps(source: str | os.PathLike[str], *, index: VideoIndex) -> tuple[list[_Stamp], Fraction]:
    """The video packets that have a time, in the order of the file, and the length of a tick in
    seconds."""
    shown = set(_times(index).tolist())
    stamps: list[_Stamp] = []
    with opened(source) as (container, stream):
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None:
                is_shown = packet.pts in shown and not packet.is_discard
                stamps.append(
                    _Stamp(packet.pts, packet.duration or 0, packet.is_keyframe, is_shown)
                )
        return stamps, Fraction(stream.time_base)


def _copy(source: str | os.PathLike[str], *, part: _Part, output: Path) -> bool:
    """Write the part; returns whether there is sound in it."""
    import av

    has_audio = False
    with opened(source) as (container, video), av.open(str(output), "w") as clip:
        # Beside the pictures, FFmpeg's choice of a sound track if there is one.
        sound = container.streams.best("audio")
        streams = [video, *([] if sound is None else [sound])]
        copies = {stream.index: _add_copy(clip, stream) for stream in streams}
        for packet in _packets(container, streams=streams, part=part):
            has_audio = has_audio or packet.stream.type == "audio"
            shift = round(part.first * part.tick_s / packet.time_base)
            packet.pts -= shift
            packet.dts = None if packet.dts is None else packet.dts - shift
            packet.stream = copies[packet.stream.index]
            clip.mux(packet)
    return has_audio


def _packets(container: Any, *, streams: list[Any], part: _Part) -> Iterator[Any]:
    """Packets to copy, in the order of the file, read from its start.

    Not from a seek: sound may be stored before the key frame that it is heard with.
    """
    num_video = 0
    for packet in container.demux(*streams):
        if not packet.size or packet.pts is None:
            continue
        if packet.stream.type == "video":
            num_video += 1
            if num_video <= part.num_packets and packet.pts >= part.first:
                yield packet
        elif part.first <= packet.pts * packet.time_base / part.tick_s < part.end:
            yield packet


def _add_copy(clip: Any, stream: Any) -> Any:
    try:
        # Opaque: only what packets need. Of some codecs there is a decoder here and no encoder.
        return clip.add_stream_from_template(stream, opaque=True)
    except ValueError as error:
        codec = stream.codec_context.codec.canonical_name
        raise VideoError(
            f"found {codec} {stream.type}, which {clip.format.name} cannot hold: write a .mkv, "
            "which holds most codecs, or re-encode the video first"
        ) from error


def _shown(span: Span) -> str:
    return f"{span[0]:.2f} to {span[1]:.2f} s"
