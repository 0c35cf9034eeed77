"""A matrix of small videos: codec x container x group of pictures x cut x rate x turn x bits.

Made by the ffmpeg program, all of one moving test card, 64x48: 40 pictures at 10 per second, a key
frame every 12. One process encodes a film, one copies it into its containers, one cuts the copies.
"""

from dataclasses import dataclass
from pathlib import Path

from tests.fixtures.clips import ffmpeg

CARD = ("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=10:duration=4")
THINNED = ("-vf", "select='lt(n,16)+not(mod(n-16,3))'", "-fps_mode", "vfr")
"""The last 2.4 s of 4 have a third of the pictures."""
CUT = ("-ss", "1.9")
"""Packets from the key frame at 1.2 s on."""

_X264 = ("-c:v", "libx264", "-preset", "veryfast", "-x264-params")
_X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params")
_GROUPS = "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"
_HEVC = f"log-level=none:pools=1:frame-threads=1:{_GROUPS}"
_ALT_REF = ("-b:v", "100k", "-auto-alt-ref", "1", "-lag-in-frames", "12", "-g", "12")
_EIGHT, _TEN = ("-pix_fmt", "yuv420p"), ("-pix_fmt", "yuv420p10le")


@dataclass(frozen=True)
class Film:
    """One way to encode the card, and the containers it is put into."""

    codec: tuple[str, ...]
    containers: tuple[str, ...]
    cut_into: tuple[str, ...] = ()
    is_thinned: bool = False
    has_two_passes: bool = False
    home: str = "mkv"
    """What it is encoded into: cuts of an mp4 keep leading pictures, which Matroska's lose."""


FILMS = {
    "mpeg4": Film(
        (*_EIGHT, "-c:v", "mpeg4", "-bf", "2", "-g", "12"),
        ("mp4", "mov", "mkv", "avi", "3gp"),
        ("mp4", "mkv", "avi"),
    ),
    "mpeg2": Film(
        (*_EIGHT, "-r", "25", "-c:v", "mpeg2video", "-bf", "2", "-g", "12"),
        ("mpg", "ts", "mkv", "mxf", "m2v", "wtv"),
        ("mpg", "ts", "mkv"),
    ),
    "h264": Film(
        (*_EIGHT, *_X264, _GROUPS),
        ("mp4", "mov", "mkv", "flv", "ts", "3gp", "h264"),
        ("mp4", "mkv", "ts", "flv"),
    ),
    "h264_open": Film(
        (*_EIGHT, *_X264, f"open-gop=1:{_GROUPS}"),
        ("mkv", "ts"),
        ("mp4", "mkv", "flv"),
        home="mp4",
    ),
    "h264_refresh": Film(
        (*_EIGHT, *_X264, "intra-refresh=1:keyint=12:bframes=0"), ("mp4",), ("mp4", "mkv")
    ),
    "h264_fields": Film((*_EIGHT, *_X264, f"tff=1:{_GROUPS}"), ("mp4", "ts"), ("mkv",)),
    "h264_uneven": Film((*_EIGHT, *_X264, _GROUPS), ("mp4", "ts"), ("mkv",), is_thinned=True),
    "h264_10": Film((*_TEN, *_X264, _GROUPS), ("mp4",), ("mkv",)),
    "hevc": Film((*_EIGHT, *_X265, f"open-gop=0:{_HEVC}"), ("mp4", "mkv", "ts", "hevc"), ("mkv",)),
    "hevc_open": Film(
        (*_EIGHT, *_X265, f"open-gop=1:{_HEVC}"), ("mkv", "ts"), ("mp4", "mkv", "ts"), home="mp4"
    ),
    "hevc_uneven": Film((*_EIGHT, *_X265, _HEVC), ("mp4",), ("mkv",), is_thinned=True),
    "hevc_10": Film((*_TEN, *_X265, _HEVC), ("mp4",), ("mkv",)),
    "vp8": Film(
        (*_EIGHT, "-c:v", "libvpx", *_ALT_REF),
        ("webm", "avi", "ivf"),
        ("webm", "ivf"),
        has_two_passes=True,
    ),
    "vp8_uneven": Film((*_EIGHT, "-c:v", "libvpx", *_ALT_REF), ("webm",), (), is_thinned=True),
    "vp9": Film(
        (*_EIGHT, "-c:v", "libvpx-vp9", "-deadline", "realtime", *_ALT_REF),
        ("webm", "mp4", "ivf"),
        ("webm", "mp4"),
    ),
    "vp9_10": Film((*_TEN, "-c:v", "libvpx-vp9", *_ALT_REF), ("webm",), ("webm",)),
    "av1": Film(
        (*_EIGHT, "-c:v", "libsvtav1", "-preset", "12", "-g", "12"),
        ("webm", "mp4", "ivf"),
        ("webm", "mp4"),
    ),
    "av1_10": Film((*_TEN, "-c:v", "libsvtav1", "-preset", "12", "-g", "12"), ("mp4",), ("mkv",)),
    "prores": Film(("-c:v", "prores", "-pix_fmt", "yuv422p10le"), ("mov",)),
    "h264_avi": Film((*_EIGHT, *_X264, _GROUPS), (), home="avi"),
    "h264_wmv": Film((*_EIGHT, *_X264, _GROUPS), (), home="wmv"),
    "wmv": Film(("-c:v", "wmv2"), (), home="wmv"),
    "flv": Film(("-c:v", "flv"), (), home="flv"),
    "ffv1": Film((*_EIGHT, "-c:v", "ffv1"), ("nut",)),
    "theora": Film((*_EIGHT, "-c:v", "libtheora"), (), home="ogv"),
    "h263": Film(("-vf", "scale=128:96", "-c:v", "h263"), (), home="3gp"),
    "rv": Film(("-c:v", "rv20"), (), home="rm"),
    "apng": Film(("-c:v", "apng"), (), home="apng"),
    "gif": Film(("-c:v", "gif"), (), home="gif"),
    "y4m": Film(_EIGHT, (), home="y4m"),
}
TURNED = (("h264", "mp4"), ("hevc", "mov"), ("av1", "mp4"), ("h264", "mkv"))
"""Films that are stored on their side, with a note how to turn them."""
ODD = {
    "h264_open_unedited.mp4": (*CUT, "-i", "h264_open.mp4", "-use_editlist", "0"),
    "hevc_open_unedited.mp4": (*CUT, "-i", "hevc_open.mp4", "-use_editlist", "0"),
    "h264_refresh_unedited.mp4": (*CUT, "-i", "h264_refresh.mkv", "-use_editlist", "0"),
    "mpeg4_raw.m4v": ("-i", "mpeg4.mkv", "-bsf:v", "dump_extra", "-f", "m4v"),
    "h264_timeless.mp4": ("-i", "h264_whole.h264"),
    "hevc_timeless.mp4": ("-i", "hevc_whole.hevc"),
    "h264_pieces.mp4": ("-i", "h264.mkv", "-movflags", "frag_keyframe+empty_moov"),
    "h264_late.mkv": ("-itsoffset", "1.5", "-i", "h264.mkv", "-f", "lavfi", "-i", "sine=d=3"),
}
"""Copies: leading pictures without an edit list, decoding times for those of pictures, fragments,
pictures that begin after the sound."""
NAMES = (
    *(f"{film}.{made.home}" for film, made in FILMS.items()),
    *(f"{film}_whole.{suffix}" for film, made in FILMS.items() for suffix in made.containers),
    *(f"{film}_cut.{suffix}" for film, made in FILMS.items() for suffix in made.cut_into),
    *(f"{film}_turned.{suffix}" for film, suffix in TURNED),
    *ODD,
)


def make_films(folder: Path) -> None:
    """All files of `NAMES`, in an empty folder."""
    for name, film in FILMS.items():
        home = folder / f"{name}.{film.home}"
        _encode(film, home=home, log=folder / name)
        for kind, seek, suffixes in (("whole", (), film.containers), ("cut", CUT, film.cut_into)):
            copies = [part for suffix in suffixes for part in _copy(home, kind, suffix)]
            if copies:
                ffmpeg(*seek, "-i", home, *copies)
    for name, suffix in TURNED:
        source = folder / f"{name}.{FILMS[name].home}"
        turned = folder / f"{name}_turned.{suffix}"
        ffmpeg("-display_rotation", "90", "-i", source, "-c", "copy", turned)
    for odd, options in ODD.items():
        read = [folder / part if (folder / part).is_file() else part for part in options]
        ffmpeg(*read, "-c:v", "copy", folder / odd)


def _encode(film: Film, *, home: Path, log: Path) -> None:
    how = (*(THINNED if film.is_thinned else ()), *film.codec)
    if film.has_two_passes:
        first = ("-pass", "1", "-passlogfile", log, "-f", "null", "-")
        ffmpeg(*CARD, *how, *first)
        how = (*how, "-pass", "2", "-passlogfile", str(log))
    ffmpeg(*CARD, *how, home)


def _copy(home: Path, kind: str, suffix: str) -> tuple[str | Path, ...]:
    return ("-c", "copy", home.with_name(f"{home.stem}_{kind}.{suffix}"))
