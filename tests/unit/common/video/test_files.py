"""Files that decoders trip over: each ends in the frames a player shows, or in a VideoError.

The reference is the ffmpeg program: all frames, upright, in order.
"""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import VideoError
from common.video import frames as frames_module
from common.video.frames import (
    DecodedClip,
    decode,
    load_frames,
    probe,
    processor_metadata,
    sample_clip,
)
from common.video.index import index_frames, read_header
from common.video.pyav_reader import stream_frames
from common.video.sampling import VideoSampling
from jobs.ground.cut import cut
from tests.fixtures.clips import ffmpeg, make_clip, shown_frames

ROOT = Path(__file__).resolve().parents[4]
SAMPLING = VideoSampling(fps=4.0, min_pixels=32 * 32)
GROUPS_OF_8 = ("-g", "8", "-bf", "3")
OPEN_GROUPS = ("-x264-params", "open-gop=1:keyint=8:min-keyint=8:bframes=3:scenecut=0")
HOURS_10_S = 36_000

Make = Callable[[Path], Path]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames at 8 per second, 96 wide and 64 high: a test card that moves."""
    file = tmp_path_factory.mktemp("source") / "source.mp4"
    card = "testsrc2=size=80x64:rate=8:duration=5"
    ffmpeg("-f", "lavfi", "-i", card, "-c:v", "libx264", "-pix_fmt", "yuv420p", file)
    return file


def encoded(source: Path, name: str, *options: str | Path) -> Path:
    """The source once more, another way, beside itself."""
    target = source.with_name(name)
    ffmpeg("-i", source, *options, target)
    return target


def expected(file: Path, found: DecodedClip) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The reference's frames at the clip's indices and size."""
    shown = probe(file)
    frames = shown_frames(file, height_px=shown.height_px, width_px=shown.width_px)
    assert len(frames) == shown.total_frames
    height, width = found.clip.frame_hw
    return np.stack(
        [
            np.asarray(Image.fromarray(frames[i]).resize((width, height), Image.Resampling.BICUBIC))
            for i in found.clip.frame_indices
        ]
    )


def check_frames(file: Path) -> DecodedClip:
    """Decode, and compare with the reference and with the two-step way."""
    found = decode(file, sampling=SAMPLING)
    assert np.abs(found.frames.astype(int) - expected(file, found)).mean() < 0.5
    clip = sample_clip(file, sampling=SAMPLING)
    assert found.clip == clip
    assert load_frames(clip).tobytes() == found.frames.tobytes()
    return found


@pytest.mark.parametrize(
    ("name", "options", "decoder"),
    [
        ("b_frames.mp4", ("-c:v", "libx264", *GROUPS_OF_8), "decord"),
        ("b_frames.mkv", ("-c:v", "libx264", *GROUPS_OF_8), "decord"),
        ("vp9.webm", ("-c:v", "libvpx-vp9", "-b:v", "200k", "-deadline", "realtime"), "decord"),
        ("odd.mp4", ("-vf", "scale=175:143", "-c:v", "libx264", "-pix_fmt", "yuv444p"), "decord"),
        ("open.mp4", ("-c:v", "libx264", *OPEN_GROUPS), "pyav"),
        ("hevc.mp4", ("-c:v", "libx265", "-x265-params", "log-level=none:keyint=8"), "pyav"),
        ("vp8.webm", ("-c:v", "libvpx", "-b:v", "200k", "-deadline", "realtime"), "pyav"),
        ("mpeg4.avi", ("-c:v", "mpeg4", "-bf", "2", "-g", "8"), "pyav"),
        ("h264.avi", ("-c:v", "libx264", *GROUPS_OF_8), "pyav"),
        ("mpeg2.ts", ("-c:v", "mpeg2video", "-r", "25", "-bf", "2"), "pyav"),
    ],
)
def test_codec_and_container_give_the_shown_frames(
    source: Path, name: str, options: tuple[str, ...], decoder: str
) -> None:
    found = check_frames(encoded(source, name, *options))
    assert found.clip.decoder == decoder


@pytest.mark.parametrize("width_px", [16, 24, 48, 72])
def test_widths_that_decord_misreads_go_to_pyav(tmp_path: Path, width_px: int) -> None:
    file = make_clip(tmp_path / "narrow.mp4", num_frames=8, height_px=64, width_px=width_px)
    assert check_frames(file).clip.decoder == "pyav"


@pytest.mark.parametrize("anticlockwise_deg", [90, 180, 270])
def test_rotated_video_is_upright(source: Path, anticlockwise_deg: int) -> None:
    file = source.with_name(f"turned{anticlockwise_deg}.mp4")
    ffmpeg("-display_rotation", str(anticlockwise_deg), "-i", source, "-c", "copy", file)
    shown = probe(file)
    assert shown.rotation_deg == 360 - anticlockwise_deg
    assert (shown.width_px, shown.height_px) == ((80, 64) if anticlockwise_deg == 180 else (64, 80))
    assert check_frames(file).clip.decoder == "decord"


def test_title_that_is_no_text_does_not_matter(source: Path) -> None:
    file = encoded(source, "titled.mp4", "-c", "copy", "-metadata", "title=TITLE")
    file.write_bytes(file.read_bytes().replace(b"TITLE", b"\xff\xfeTLE"))
    assert check_frames(file).clip.total_frames == 40


def test_ten_bits_give_the_shown_frames_in_coarser_colours(source: Path) -> None:
    file = encoded(source, "ten_bits.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p10le")
    found = decode(file, sampling=SAMPLING)
    apart = np.abs(found.frames.astype(int) - expected(file, found))
    assert 0.5 < apart.mean() < 6.0


@pytest.mark.parametrize(
    ("option", "reason"),
    [(("-display_rotation", "45"), "rotation of 315 degrees"), (("-display_hflip",), "mirroring")],
)
def test_slanted_or_mirrored_video_is_refused(
    source: Path, option: tuple[str, ...], reason: str
) -> None:
    """Decoders take a mirroring for a half turn."""
    file = source.with_name("slanted.mp4")
    ffmpeg(*option, "-i", source, "-c", "copy", file)
    with pytest.raises(VideoError, match=rf"slanted\.mp4: found a display {reason}.*re-encode"):
        probe(file)


def test_frames_hidden_by_an_edit_list_are_not_counted(source: Path) -> None:
    file = source.with_name("cut.mp4")
    ffmpeg("-ss", "1", "-i", source, "-c", "copy", file)
    found = check_frames(file)
    assert found.clip.total_frames == 32
    assert found.clip.frame_times_s[0] == 0.0


def test_cover_picture_is_not_the_video(source: Path) -> None:
    cover = encoded(source, "cover.png", "-frames:v", "1")
    file = encoded(
        *(source, "covered.mp4", "-i", cover, "-map", "1", "-map", "0", "-c", "copy"),
        *("-disposition:v:0", "attached_pic"),
    )
    assert check_frames(file).clip.total_frames == 40


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def thinned(source: Path, request: pytest.FixtureRequest) -> Path:
    """The last 3 seconds of 5 have a third of the frames."""
    kept = "select='lt(n,16)+not(mod(n-16,3))'"
    options = ("-vf", kept, "-fps_mode", "vfr", "-c:v", "libx264")
    return encoded(source, f"variable.{request.param}", *options)


class TestVariableRate:
    def test_times_are_those_of_the_frames(self, thinned: Path) -> None:
        shown = probe(thinned)
        assert shown.variable_frame_rate
        assert shown.total_frames == 24
        assert shown.duration_s == pytest.approx(5.0, abs=0.3)  # Matroska leaves the last one open
        clip = check_frames(thinned).clip
        every = [index / 8 for index in range(16)] + [2 + index * 3 / 8 for index in range(8)]
        wanted = [every[index] for index in clip.frame_indices]
        assert clip.frame_times_s == pytest.approx(wanted, abs=0.001)

    def test_processor_prints_true_times(self, thinned: Path) -> None:
        from transformers import Qwen3VLProcessor

        clip = sample_clip(thinned, sampling=SAMPLING)
        metadata = processor_metadata(clip)
        stamps = Qwen3VLProcessor._calculate_timestamps(
            None, metadata["frames_indices"], metadata["fps"], 2
        )
        pairs = np.array(clip.frame_times_s).reshape(-1, 2)
        assert stamps == pytest.approx(pairs.mean(1).tolist(), abs=1e-6)
        even = np.array(clip.frame_indices).reshape(-1, 2).mean(1) / clip.source_fps
        assert np.abs(even - pairs.mean(1)).max() > 0.5, "whole indices would be wrong"


class TestHeaderThatLies:
    """10 hours in the header, 5 seconds in the file."""

    def check(self, file: Path) -> None:
        shown = probe(file)
        assert (shown.source_fps, shown.duration_s) == (8.0, 5.0)
        assert not shown.variable_frame_rate
        assert len(check_frames(file).clip.frame_indices) == 20

    def test_mp4(self, source: Path) -> None:
        content = bytearray(source.read_bytes())
        for box, ticks_at in ((b"mvhd", 12), (b"mdhd", 12)):
            at = content.index(box) + 4
            (ticks_per_s,) = struct.unpack_from(">I", content, at + ticks_at)
            struct.pack_into(">I", content, at + ticks_at + 4, HOURS_10_S * ticks_per_s)
        (movie_ticks,) = struct.unpack_from(">I", content, content.index(b"mvhd") + 20)
        struct.pack_into(">I", content, content.index(b"tkhd") + 24, movie_ticks)
        struct.pack_into(">I", content, content.index(b"elst") + 12, movie_ticks)
        file = source.with_name("lie.mp4")
        file.write_bytes(content)
        self.check(file)

    def test_matroska(self, source: Path) -> None:
        content = bytearray(encoded(source, "true.mkv", "-c", "copy").read_bytes())
        at = content.index(b"\x44\x89\x88") + 3
        struct.pack_into(">d", content, at, HOURS_10_S * 1000.0)
        file = source.with_name("lie.mkv")
        file.write_bytes(content)
        self.check(file)


class TestBeyondFourGigabytes:
    """A hole in front of the pictures: their places need more than 32 bits."""

    HOLE_BYTES = 2**32 + 4096

    @pytest.fixture
    def large(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        pieces = "frag_keyframe+empty_moov+default_base_moof+skip_trailer"
        content = encoded(source, "pieces.mp4", "-c", "copy", "-movflags", pieces).read_bytes()
        pictures = content.index(b"moof") - 4
        file = source.with_name("large.mp4")
        with file.open("wb") as made:
            made.write(content[:pictures])
            made.write(struct.pack(">I4sQ", 1, b"free", self.HOLE_BYTES))
            made.seek(pictures + self.HOLE_BYTES)
            made.write(content[pictures:])
        monkeypatch.setattr(frames_module, "_digest", lambda *_: "0" * 64)  # 4 GiB take seconds
        return file

    def test_pictures_and_cuts_are_found(self, source: Path, large: Path, tmp_path: Path) -> None:
        assert large.stat().st_size > 2**32
        assert read_header(large).total_frames == 40
        found, wanted = decode(large, sampling=SAMPLING), decode(source, sampling=SAMPLING)
        assert found.clip.decoder == "decord"
        assert found.clip.frame_times_s == wanted.clip.frame_times_s
        assert found.frames.tobytes() == wanted.frames.tobytes()
        by_pyav = found.clip.model_copy(update={"decoder": "pyav"})
        assert load_frames(by_pyav).tobytes() == wanted.frames.tobytes()
        assert cut(large, span=(1.0, 2.0), output=tmp_path / "clip.mp4").missing_s == 0


class TestBroken:
    def test_audio_alone(self, tmp_path: Path) -> None:
        file = tmp_path / "voice.mp4"
        ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", file)
        with pytest.raises(VideoError, match=r"voice\.mp4: found \['audio'\].*wanted a video"):
            probe(file)

    def test_audio_with_a_cover_picture(self, tmp_path: Path, source: Path) -> None:
        cover = encoded(source, "front.png", "-frames:v", "1")
        file = tmp_path / "song.m4a"
        ffmpeg(
            *("-f", "lavfi", "-i", "sine=duration=1", "-i", cover, "-map", "0", "-map", "1"),
            *("-c:a", "aac", "-c:v", "copy", "-disposition:v:0", "attached_pic", file),
        )
        with pytest.raises(VideoError, match=r"song\.m4a: .*without moving pictures"):
            probe(file)

    @pytest.mark.parametrize("kept", [0.4, 0.6, 0.8])
    def test_matroska_file_that_was_cut_is_a_shorter_video(self, source: Path, kept: float) -> None:
        """Nothing in it says how many frames there were; those that are there are right."""
        whole = encoded(source, "whole.mkv", "-c:v", "libx264", *GROUPS_OF_8)
        file = source.with_name("cut.mkv")
        file.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * kept)])
        clip = check_frames(file).clip
        assert 8 < clip.total_frames < 40
        at_once = sample_clip(whole, sampling=VideoSampling(fps=8.0, min_pixels=32 * 32))
        same = [round(time_s * 8) for time_s in clip.frame_times_s]
        assert (load_frames(at_once)[same] == load_frames(clip)).all()

    def test_damaged_files_end_in_an_error_that_names_them(self, source: Path) -> None:
        """In a process of their own: decord has been seen to hang and to abort."""
        files = damaged_files(source)
        outcomes = decode_elsewhere(list(files))
        assert set(outcomes) == {str(file) for file in files}
        for file, reason in files.items():
            found = outcomes[str(file)]
            assert found.startswith(f"VideoError: {file}: "), found
            assert reason in found
            assert "\n" not in found


def damaged_files(source: Path) -> dict[Path, str]:
    """Files that must not give frames, and what the error has to say."""
    last = source.read_bytes()  # its index follows the pictures
    first = encoded(source, "first.mp4", "-c", "copy", "-movflags", "+faststart").read_bytes()
    pictures = first.index(b"mdat") + 4
    middle = (pictures + len(first)) // 2
    contents = {
        "half_index_last.mp4": (last[: len(last) // 2], "PyAV cannot read it"),
        "half_index_first.mp4": (first[: (pictures + len(first)) // 2], "truncated"),
        "tenth.mp4": (last[: len(last) // 10], "PyAV cannot read it"),
        "nearly.mp4": (last[: len(last) * 95 // 100], "wanted a video stream"),
        "no_pictures.mp4": (first[:pictures], "found 0 frames"),
        "blank.mp4": (first[:pictures] + bytes(len(first) - pictures), "PyAV cannot decode it"),
        "blank_end.mp4": (first[:middle] + bytes(len(first) - middle), "cannot decode"),
        "noise.webm": (np.random.default_rng(0).bytes(20_000), "PyAV cannot read it"),
    }
    files = {}
    for name, (content, reason) in contents.items():
        file = source.with_name(name)
        file.write_bytes(content)
        files[file] = reason
    return files


def decode_elsewhere(files: list[Path]) -> dict[str, str]:
    """Outcome per file, from one process that is killed after 60 s."""
    code = (
        "import json, sys\n"
        "from common.video.frames import VideoError, decode\n"
        "from common.video.sampling import VideoSampling\n"
        "for file in sys.argv[1:]:\n"
        "    try:\n"
        "        outcome = str(decode(file, sampling=VideoSampling(fps=4.0)).frames.shape)\n"
        "    except VideoError as error:\n"
        "        outcome = f'VideoError: {error}'\n"
        "    print(json.dumps([file, outcome]), flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_a_file_of_more_than_4_gib_is_read_like_a_small_one(source: Path, tmp_path: Path) -> None:
    """Between its pictures and its header lies a box with a size of 64 bits, and nothing in it."""
    turned = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", "90", "-i", source, "-c", "copy", turned)
    small = turned.read_bytes()
    at = small.rindex(b"moov") - 4
    assert at > small.index(b"mdat"), "wanted the header behind the pictures, whose places stay"
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.write(small[:at])
        file.write(struct.pack(">I4sQ", 1, b"free", 5 * 2**30))
        file.seek(at + 5 * 2**30)
        file.write(small[at:])
    index, wanted = index_frames(large), index_frames(turned)
    assert large.stat().st_size > 2**32
    assert (index.width_px, index.height_px) == (wanted.width_px, wanted.height_px) == (64, 80)
    assert index.times_s.tolist() == wanted.times_s.tolist()
    frames = [pixels for _, pixels in stream_frames(large, index=index, indices=[0, 39])]
    small_frames = stream_frames(turned, index=wanted, indices=[0, 39])
    for frame, (_, pixels) in zip(frames, small_frames, strict=True):
        assert np.array_equal(frame, pixels)
