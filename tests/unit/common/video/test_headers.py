"""Size and number of frames from headers: what `index_frames` finds by reading the file."""

import struct
from pathlib import Path

import numpy as np
import pytest

from common.errors import VideoError
from common.video import index as video_index
from common.video.frames import load_frames, sample_clip
from common.video.index import index_frames, read_header
from common.video.mp4_boxes import display_matrix
from common.video.pyav_reader import read_frames, stream_frames
from common.video.sampling import VideoSampling
from tests.fixtures.clips import ffmpeg


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames of 80x64 at 8 per second, a key frame every 16."""
    file = tmp_path_factory.mktemp("headers") / "source.mp4"
    card = "testsrc2=size=80x64:rate=8:duration=5"
    ffmpeg(
        *("-f", "lavfi", "-i", card, "-c:v", "libx264", "-g", "16", "-sc_threshold", "0"),
        *("-pix_fmt", "yuv420p", file),
    )
    return file


OPTIONS = {
    "plain.mp4": ("-c", "copy"),
    "plain.mov": ("-c", "copy"),
    "late_start.mp4": ("-ss", "1", "-c", "copy"),
    "fragments.mp4": ("-c", "copy", "-movflags", "frag_keyframe+empty_moov"),
    "copy.mkv": ("-c", "copy"),
    "mpeg4.avi": ("-c:v", "mpeg4"),
    "uneven.mp4": ("-vf", "select='not(mod(n,3))+lt(n,9)'", "-fps_mode", "vfr"),
    "odd.mp4": ("-vf", "scale=79:63", "-c:v", "libx264", "-pix_fmt", "yuv444p"),
}


TURNED = [(name, deg) for name in OPTIONS for deg in (0, 90, 180, 270)]
STORES_ROTATION = (".mp4", ".mov")


@pytest.mark.parametrize(
    ("name", "turned_deg"),
    [(name, deg) for name, deg in TURNED if not deg or name.endswith(STORES_ROTATION)],
)
def test_header_says_what_the_packets_say(source: Path, name: str, turned_deg: int) -> None:
    options = OPTIONS[name]
    seek = options[:2] if options[0] == "-ss" else ()
    turn = ("-display_rotation", str(turned_deg)) if turned_deg else ()
    file = source.with_name(f"{turned_deg}-{name}")
    ffmpeg(*seek, *turn, "-i", source, *options[len(seek) :], file)
    header, index = read_header(file), index_frames(file)
    assert (header.width_px, header.height_px) == (index.width_px, index.height_px)
    assert header.total_frames == index.total_frames
    told = name.endswith(STORES_ROTATION) and name != "fragments.mp4"
    assert header.decoded != told


def test_nothing_is_decoded_where_the_header_tells(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_index, "index_frames", lambda path: pytest.fail("was read"))
    assert read_header(source).total_frames == 40


def test_no_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match="cannot read it as a video"):
        read_header(tmp_path / "text.mp4")


def test_mirrored_video_is_refused_from_the_header_too(source: Path) -> None:
    file = source.with_name("mirrored.mp4")
    ffmpeg("-display_hflip", "-i", source, "-c", "copy", file)
    with pytest.raises(VideoError, match="mirroring"):
        read_header(file)


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def matrix_bytes(a: int, b: int, c: int, d: int) -> bytes:
    return struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)


def test_matrices_of_movie_and_track_are_multiplied_and_sizes_may_be_large(tmp_path: Path) -> None:
    """By hand: a quarter turn (0 1 / -1 0) twice is a half turn (-1 0 / 0 -1)."""
    quarter = matrix_bytes(0, 1, -1, 0)
    mvhd = box(b"mvhd", bytes([1, 0, 0, 0]) + bytes(16 + 4 + 8 + 16) + quarter + bytes(28))
    tkhd = bytes([0, 0, 0, 7]) + bytes(8) + struct.pack(">I", 3) + bytes(4 + 4 + 16) + quarter
    track = box(b"trak", box(b"tkhd", tkhd + bytes(8)))
    moov = mvhd + track
    large = struct.pack(">I4sQ", 1, b"moov", 16 + len(moov)) + moov
    file = tmp_path / "boxes.mp4"
    file.write_bytes(box(b"ftyp", b"isom") + large)
    assert display_matrix(file, track_id=3) == (-1, 0, 0, -1)
    assert display_matrix(file, track_id=4) == (0, 1, -1, 0)


@pytest.mark.parametrize("end", range(0, 200, 7))
def test_cut_headers_end(tmp_path: Path, source: Path, end: int) -> None:
    raw = source.read_bytes()
    start = raw.index(b"moov") - 4
    file = tmp_path / "cut.mp4"
    file.write_bytes(raw[start : start + end])
    assert display_matrix(file, track_id=1) in (
        (1, 0, 0, 1),
        (65536**2, 0, 0, 65536**2),
        (65536, 0, 0, 65536),
    )


def test_a_frame_may_be_asked_for_twice(source: Path) -> None:
    """Two equal frames are a picture to a model of frame pairs."""
    index = index_frames(source)
    seven = read_frames(source, index=index, indices=[7])[0]
    assert (read_frames(source, index=index, indices=[7, 7, 9, 9])[:2] == seven).all()
    clip = sample_clip(source, sampling=VideoSampling(min_pixels=1024))
    for decoder in ("decord", "pyav"):
        update = {"frame_indices": (7, 7), "frame_times_s": (0.875, 0.875), "decoder": decoder}
        both = load_frames(clip.model_copy(update={**update, "frame_hw": (64, 80)}))
        assert np.array_equal(both[0], both[1])
        assert np.abs(both[0].astype(int) - seven).mean() < 0.5


def test_frames_come_one_at_a_time_in_order(source: Path) -> None:
    index = index_frames(source)
    found = list(stream_frames(source, index=index, indices=[12, 3, 39]))
    assert [number for number, _ in found] == [3, 12, 39]
    assert np.array_equal(found[1][1], read_frames(source, index=index, indices=[12])[0])
