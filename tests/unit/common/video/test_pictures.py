"""Every picture that a file shows is found at its time, whatever codec and container.

A matrix of small files (`films.py`), each set frame by frame against a plain sequential
decode: its number of pictures, their times, and the pixels that the chosen decoder gives for all of
them and for a scattered few.
"""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.video.reformatter import Interpolation

from common.errors import VideoError
from common.messages import ClipRef
from common.video.frames import decode, load_frames, probe, sample_clip
from common.video.index import index_frames, read_header
from common.video.sampling import VideoSampling
from jobs.ground.cut import cut
from tests.fixtures.clips import ffmpeg
from tests.unit.common.video.films import CARD, FILMS, NAMES, THINNED, make_films

SAMPLING = VideoSampling(fps=5.0, min_pixels=32 * 32, factor=16)
TICK_S = 2e-3
"""Matroska's millisecond, rounded twice."""
CASES = Path(__file__).resolve().parents[5] / "shared/data/cases"
COUNTED = (
    *("h264_avi.avi", "h264_wmv.wmv", "h264_whole.h264", "hevc_whole.hevc", "mpeg2_whole.m2v"),
    *("h264_timeless.mp4", "hevc_timeless.mp4", "mpeg4_raw.m4v"),
)
"""Files whose times, if they have any, are those of decoding."""
BY_DECORD = {"h264", "hevc", "vp9"}
WHY = {
    "h264_open_cut.mkv": "its first packet is no key frame",
    "h264_refresh_cut.mp4": "its first packet is no key frame",
    "h264_fields.mkv": "its frames are of two fields, which may be packets of their own",
    "hevc_open_cut.mkv": "packet 1 has no time",
    "hevc_open_unedited.mp4": "packet 1 is shown before the key frame ahead of it",
    "h264_timeless.mp4": "its times are those of decoding",
    "vp8_whole.webm": "packet 1 shows 0 pictures",
    "mpeg4_whole.mp4": "packets of mpeg4 are not read",
    "h264_whole.ts": "packets of mpegts are not pictures",
}
"""One of each kind that has to be decoded to be known."""
ORDINARY = [
    *("h264_whole.mp4", "h264_whole.mkv", "h264_whole.flv", "h264_cut.mp4", "h264_uneven.mkv"),
    *("h264_open.mp4", "hevc.mkv", "hevc_open.mp4", "hevc_open_cut.mp4", "hevc_10_whole.mp4"),
    *("vp9_whole.webm", "vp9_cut.mp4", "av1_whole.mp4", "av1_10_cut.mkv", "vp8_uneven.mkv"),
]
"""Files of which nothing but the first picture may be decoded to list them."""


def holds(name: str, suffix: str) -> bool:
    """Whether a container can hold a film, and the film has times to cut at."""
    codec = name.split(".")[0].split("_")[0]
    if name in COUNTED or codec in {"gif", "y4m", "wmv", "flv", "rv", "apng", "h263"}:
        return False
    if suffix == ".webm":
        return codec in {"vp8", "vp9", "av1"}
    return suffix == ".mkv" or codec not in {"vp8", "prores"}


@dataclass(frozen=True)
class Plain:
    """What a plain sequential decode gives."""

    pixels: npt.NDArray[np.uint8]
    """[N, H, W, C], upright."""
    times_s: list[float]
    """Since the first."""


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    make_films(folder)
    return folder


def plain(file: Path) -> Plain:
    """Nothing but PyAV's loop."""
    with av.open(str(file)) as container:
        frames = list(container.decode(container.streams.video[0]))
    turns = 1 if "turned" in file.name else 0
    pictures = [
        np.rot90(frame.to_ndarray(format="rgb24", interpolation=Interpolation.BICUBIC), turns)
        for frame in frames
    ]
    if file.name in COUNTED:
        rate = 25 if file.suffix == ".m2v" else 10
        times_s = [number / rate for number in range(len(frames))]
    else:
        times_s = [float((frame.pts - frames[0].pts) * frame.time_base) for frame in frames]
    return Plain(np.stack(pictures), times_s)


def every_frame(clip: ClipRef, *, numbers: list[int], size: tuple[int, int]) -> ClipRef:
    """A clip of given frames of its file, not resized."""
    chosen = {"frame_indices": tuple(numbers), "frame_times_s": (0.0,) * len(numbers)}
    return clip.model_copy(update={**chosen, "frame_hw": size})


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_is_found_at_its_time(films: Path, name: str) -> None:
    file = films / name
    shown, index = plain(file), index_frames(file)
    total, size = len(shown.pixels), (index.height_px, index.width_px)
    assert index.total_frames == total
    assert size == shown.pixels.shape[1:3] == ((64, 48) if "turned" in name else size)
    np.testing.assert_allclose(index.times_s, shown.times_s, atol=1e-9)
    assert index.variable_frame_rate == ("uneven" in name)
    assert index.bits == (10 if "_10" in name or "prores" in name else 8)
    header = read_header(file)
    assert (header.total_frames, header.height_px, header.width_px) == (total, *size)
    clip = sample_clip(file, sampling=SAMPLING)
    assert clip.frame_times_s == pytest.approx([shown.times_s[i] for i in clip.frame_indices])
    everything = every_frame(clip, numbers=list(range(total)), size=size)
    np.testing.assert_array_equal(load_frames(everything), shown.pixels)
    few = sorted({1, total // 3, total // 3 + 1, total // 2, total - 2, total - 1})
    scattered = every_frame(clip, numbers=few, size=size)
    np.testing.assert_array_equal(load_frames(scattered), shown.pixels[few])
    at_once = decode(file, sampling=SAMPLING)
    assert at_once.clip == clip
    assert np.array_equal(at_once.frames, load_frames(clip))
    assert clip.duration_s == pytest.approx(probe(file).duration_s)


@pytest.mark.parametrize("name", NAMES)
def test_decord_reads_eight_bits_whose_packets_are_pictures_and_nothing_else(
    films: Path, name: str
) -> None:
    index = index_frames(films / name)
    if probe(films / name).decoder == "decord":
        assert index.decoded_because is None
        assert index.bits == 8
        assert index.codec in BY_DECORD
        assert index.num_hidden == 0


def test_the_matrix_has_files_for_both_decoders(films: Path) -> None:
    by_decord = [name for name in NAMES if probe(films / name).decoder == "decord"]
    assert {index_frames(films / name).codec for name in by_decord} == BY_DECORD
    assert len(by_decord) >= 15


@pytest.mark.parametrize(("name", "why"), WHY.items())
def test_what_packets_do_not_tell_is_decoded_and_says_why(films: Path, name: str, why: str) -> None:
    assert index_frames(films / name).decoded_because == why


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_file_is_listed_from_its_packets(films: Path, name: str) -> None:
    assert index_frames(films / name).decoded_because is None


CUTS = [
    *((name, ".mkv") for name in NAMES if name.split(".")[0] in FILMS and holds(name, ".mkv")),
    *(
        (name, suffix)
        for name in NAMES
        for suffix in (".mp4", ".webm")
        if "_cut" in name and holds(name, suffix)
    ),
]


@pytest.mark.parametrize(("name", "suffix"), CUTS)
def test_a_copied_clip_shows_the_pictures_of_its_part(
    films: Path, tmp_path: Path, name: str, suffix: str
) -> None:
    source, wanted_s = films / name, (1.5, 2.1)
    made = cut(source, span=wanted_s, output=tmp_path / f"clip{suffix}")
    shown, clip = plain(source), plain(made.path)
    first = int(np.argmin(np.abs(np.array(shown.times_s) - made.start_s)))
    assert shown.times_s[first] == pytest.approx(made.start_s, abs=TICK_S)
    length = len(clip.pixels)
    np.testing.assert_array_equal(clip.pixels, shown.pixels[first : first + length])
    index = index_frames(made.path)
    found_s = np.array(shown.times_s[first : first + length]) - shown.times_s[first]
    np.testing.assert_allclose(index.times_s, found_s, atol=TICK_S)
    shown_until_s = max(time_s for time_s in shown.times_s if time_s < wanted_s[1] - TICK_S)
    assert made.start_s <= wanted_s[0]
    assert made.start_s + index.times_s[-1] >= shown_until_s - TICK_S


@pytest.mark.parametrize(
    ("name", "suffix", "reason"),
    [
        ("vp8.mkv", ".mp4", "found vp8 video, which mp4 cannot hold: write a .mkv"),
        ("gif.gif", ".mkv", "found gif video, which matroska cannot hold: .* re-encode"),
        ("y4m.y4m", ".mkv", "cannot copy it to .*clip.mkv: Invalid argument"),
        ("h264_whole.h264", ".mp4", "found no distinct times of its pictures.*re-encode"),
        ("h264_avi.avi", ".mp4", "found no distinct times of its pictures.*re-encode"),
    ],
)
def test_what_cannot_be_cut_is_refused_and_leaves_nothing(
    films: Path, tmp_path: Path, name: str, suffix: str, reason: str
) -> None:
    with pytest.raises(VideoError, match=rf"{name}: {reason}"):
        cut(films / name, span=(1.5, 2.1), output=tmp_path / f"clip{suffix}")
    assert not list(tmp_path.iterdir())


def test_uneven_pictures_whose_times_are_not_stored_are_refused(tmp_path: Path) -> None:
    """An avi with B-frames says when packets are decoded, some pictures ahead."""
    file = tmp_path / "uneven.avi"
    ffmpeg(*CARD, *THINNED, "-c:v", "libx264", "-bf", "3", "-pix_fmt", "yuv420p", file)
    with pytest.raises(VideoError, match=r"uneven\.avi: found uneven times of decoding"):
        probe(file)


class TestReportedFiles:
    """Files of `shared/data/cases`, where there are any."""

    @pytest.mark.parametrize(
        ("name", "total", "why"),
        [
            ("vp8_altref.webm", 120, "packet 1 shows 0 pictures"),
            ("hog_cut.mkv", 140, "packet 1 has no time"),
        ],
    )
    def test_what_is_shown_is_counted(self, name: str, total: int, why: str) -> None:
        file = CASES / name
        if not file.exists():
            pytest.skip(f"no {file}")
        index, found = index_frames(file), probe(file)
        assert (index.total_frames, index.source_fps) == (total, 10.0)
        assert index.decoded_because == why
        assert (found.duration_s, found.variable_frame_rate) == (total / 10, False)
        clip = sample_clip(file, sampling=SAMPLING)
        everything = every_frame(
            clip, numbers=list(range(total)), size=(index.height_px, index.width_px)
        )
        np.testing.assert_array_equal(load_frames(everything), plain(file).pixels)
        assert decode(file, sampling=SAMPLING).clip == clip
