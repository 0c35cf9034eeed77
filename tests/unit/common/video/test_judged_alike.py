"""Files that are refused: inspection, learner, replica, cache and cutting say the same of each."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from common.errors import VideoError
from common.video.cache import ClipCache
from common.video.frames import decode, file_digest, load_frames, probe, sample_clip
from common.video.loader import ClipLoader, ensure_entry
from common.video.roots import VideoRoots
from common.video.sampling import VideoSampling
from jobs.data.inspection.videos import Video, check
from jobs.data.preprocess import Part, Plan, make_entry
from jobs.ground.cut import cut
from tests.fixtures.clips import ffmpeg, make_clip

SAMPLING = VideoSampling(fps=4.0, min_pixels=32 * 32)
CARD = ("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=10:duration=2")
SINE = ("-f", "lavfi", "-i", "sine=duration=1")
REASONS = {
    "song.mp3": "found ['audio'] without moving pictures, wanted a video stream",
    "cover.flac": "found ['audio', 'video'] without moving pictures, wanted a video stream",
    "words.mkv": "found ['subtitle'] without moving pictures, wanted a video stream",
    "empty.mp4": "found 0 bytes, wanted a video file",
    "text.mp4": "PyAV cannot read it as a video: Invalid data found when processing input",
    "still.png": "PyAV cannot read it as a video: it is a picture, a playlist, or in a container",
    "list.m3u8": "PyAV cannot read it as a video: ",
    "half.mp4": "is damaged or cut off: the file is truncated",
    "half.ivf": "is damaged or cut off: the file is truncated",
    "headless.mp4": "PyAV cannot read it as a video: Invalid data found when processing input",
    "no_rate.obu": "found a raw libdav1d stream that names no frame rate, wanted times: put it",
    "joined.ts": "is damaged or cut off: the file is truncated, or packets were lost",
    "undecodable.ts": "PyAV cannot decode it: Invalid data found when processing input",
    "no_decoder.avi": "PyAV cannot decode it: Invalid argument",
    "mirrored.mp4": "found a display mirroring, wanted a rotation",
    "one.mp4": "found 1 frame(s), wanted at least one temporal patch of 2: the clip is too short",
    "sliver.mp4": "found 1024x4 pixels, wanted no side over 200 times the other",
}
ONLY_SAMPLED = ("one.mp4", "sliver.mp4")
"""Files that can be cut and not asked about."""


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    good = folder / "good.mp4"
    open_groups = "open-gop=1:keyint=6:min-keyint=6:scenecut=0:bframes=2"
    ffmpeg(*CARD, "-c:v", "libx264", "-x264-params", open_groups, "-pix_fmt", "yuv420p", good)
    ffmpeg(*SINE, folder / "song.mp3", folder / "song.wav")
    ffmpeg("-i", good, "-frames:v", "1", folder / "still.png")
    _sound_with_cover(folder)
    (folder / "words.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nwords\n")
    ffmpeg("-i", folder / "words.srt", folder / "words.mkv")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("This is not a video.\n" * 100)
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\ngood.mp4\n")
    ffmpeg("-i", good, "-c", "copy", "-movflags", "+faststart", folder / "fast.mp4")
    (folder / "half.mp4").write_bytes(_first(folder / "fast.mp4", 0.8))
    (folder / "headless.mp4").write_bytes(_first(good, 0.5))
    av1 = (*CARD, "-c:v", "libsvtav1", "-preset", "12", "-pix_fmt", "yuv420p")
    ffmpeg(*av1, folder / "whole.ivf")
    (folder / "half.ivf").write_bytes(_first(folder / "whole.ivf", 0.6))
    ffmpeg("-i", folder / "whole.ivf", "-c", "copy", folder / "no_rate.obu")
    ffmpeg("-i", good, "-c", "copy", folder / "whole.ts")
    (folder / "joined.ts").write_bytes((folder / "whole.ts").read_bytes() * 2)
    ffmpeg("-ss", "1", "-i", good, "-c", "copy", folder / "undecodable.ts")
    hevc = ("-c:v", "libx265", "-x265-params", "log-level=none:pools=1")
    ffmpeg(*CARD, *hevc, "-pix_fmt", "yuv420p", folder / "hevc.mkv")
    ffmpeg("-i", folder / "hevc.mkv", "-c", "copy", folder / "no_decoder.avi")
    ffmpeg("-display_hflip", "-i", good, "-c", "copy", folder / "mirrored.mp4")
    make_clip(folder / "one.mp4", num_frames=1)
    make_clip(folder / "sliver.mp4", num_frames=8, width_px=1024, height_px=4)
    return folder


def _sound_with_cover(folder: Path) -> None:
    both = ("-i", folder / "song.wav", "-i", folder / "still.png", "-map", "0", "-map", "1")
    ffmpeg(*both, "-c:v", "copy", "-disposition:v", "attached_pic", folder / "cover.flac")


def _first(file: Path, share: float) -> bytes:
    return file.read_bytes()[: int(file.stat().st_size * share)]


def error_of(judge: Callable[[], object]) -> str:
    with pytest.raises(VideoError) as caught:
        judge()
    return str(caught.value)


@pytest.mark.parametrize(("name", "reason"), REASONS.items())
def test_what_one_refuses_all_refuse_in_the_same_line(
    bad: Path, tmp_path: Path, name: str, reason: str
) -> None:
    file = bad / name
    loader = ClipLoader(
        sampling=SAMPLING,
        roots=VideoRoots([bad]),
        cache=ClipCache(tmp_path / "cache"),
        mode="prefer",
    )
    line = error_of(lambda: probe(file))
    assert line.startswith(f"{file}: ")
    assert reason in line
    assert "\n" not in line
    assert error_of(lambda: sample_clip(file, sampling=SAMPLING)) == line, "the learner"
    assert error_of(lambda: loader.sample(file)) == line, "the learner with a cache"
    assert error_of(lambda: decode(file, sampling=SAMPLING)) == line, "who fills the cache"
    plan = Plan(cache=tmp_path / "other", roots=(bad,), sampling=SAMPLING)
    made = make_entry(Part(name), plan)
    assert getattr(made, "detail", made) == line, "preprocess"
    if name not in (*ONLY_SAMPLED, "empty.mp4"):
        part = error_of(lambda: cut(file, span=(0.5, 1.0), output=tmp_path / "clip.mkv"))
        assert part == line, "ground --cut"


def test_inspection_says_so_too(bad: Path) -> None:
    videos = [Video(name, bad / name, None) for name in REASONS]
    found = {one.video: one for one in check(videos, root=bad, workers=1, timeout_s=60)}
    for name in REASONS:
        assert found[name].detail == error_of(lambda name=name: probe(bad / name))


def test_damage_inside_is_refused_alike_by_cache_and_replica(bad: Path, tmp_path: Path) -> None:
    """Packets are whole and promise pictures; that some are noise, decoding shows."""
    with av.open(str(bad / "good.mp4")) as container:
        packets = [(packet.size, packet.pos) for packet in container.demux(video=0)]
    size, place = max(found for found in packets[1:] if found[0])
    content = bytearray((bad / "good.mp4").read_bytes())
    half = size // 2  # behind the heads of its units
    noise = np.random.default_rng(0).integers(0, 256, half, np.uint8)
    content[place + size - half : place + size] = noise.tobytes()
    file = tmp_path / "damaged.mp4"
    file.write_bytes(content)
    clip = sample_clip(file, sampling=VideoSampling(fps=10.0, min_pixels=32 * 32))
    line = error_of(lambda: load_frames(clip))
    assert line.startswith(f"{file}: ")
    assert "\n" not in line
    cache = ClipCache(tmp_path / "cache")
    sampling = VideoSampling(fps=10.0, min_pixels=32 * 32)
    filled = error_of(
        lambda: ensure_entry(cache, file, sha256=file_digest(file), sampling=sampling)
    )
    assert filled == line
