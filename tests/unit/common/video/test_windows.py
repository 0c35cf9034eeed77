"""Windows of longer files: which frames, which times, which cache entry."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from common.errors import VideoError
from common.messages import ClipRef, Window
from common.model import torchvision_cpu
from common.video.cache import ClipCache, SourceFile
from common.video.frames import (
    decode,
    file_digest,
    load_frames,
    processor_metadata,
    sample_clip,
)
from common.video.loader import ClipLoader, ensure_entry
from common.video.roots import VideoRoots
from common.video.sampling import VideoSampling, frame_indices
from common.video.windows import entry_key, frames_inside
from tests.fixtures.clips import make_clip

torchvision_cpu.install()
import torch  # noqa: E402 - beside a torchvision that imports
from qwen_vl_utils import vision_process  # noqa: E402 - it imports torchvision
from transformers.video_utils import VideoMetadata  # noqa: E402 - it imports torchvision

SAMPLING = VideoSampling(fps=4.0, min_frames=2)
WINDOW = (1.5, 4.25)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds at 8 frames per second."""
    return make_clip(tmp_path_factory.mktemp("windows") / "clip.mp4", num_frames=48)


def test_frames_and_places_are_the_librarys() -> None:
    """Its `video_start` and `video_end`, on even grids of common rates."""
    rng = np.random.default_rng(7)
    for _ in range(2000):
        fps = float(rng.choice([8.0, 12.5, 23.976, 25.0, 29.97, 30.0, 60.0]))
        total = int(rng.integers(50, 200_000))
        start_s, end_s = sorted(rng.uniform(0, total / fps, 2).round(int(rng.integers(1, 8))))
        if end_s - start_s < 3 / fps or end_s > total / fps:
            continue
        ele = {"video_start": start_s, "video_end": end_s}
        first, last, count = vision_process.calculate_video_frame_range(ele, total, fps)
        found = frames_inside((start_s, end_s), times_s=np.arange(total) / fps)
        on_the_edge = any(abs(edge * fps - round(edge * fps)) < 1e-4 for edge in (start_s, end_s))
        if not on_the_edge:  # its floor of 57.999999 frames misses the frame shown at that time
            assert found == (first, count), (ele, fps, total)
        frames = int(rng.integers(1, min(count, 768) // 2 + 1)) * 2
        theirs = torch.linspace(first, last, frames).round().long().tolist()
        assert list(frame_indices(count, frames=frames, first=first)) == theirs


@pytest.mark.parametrize(
    ("window", "found"),
    [
        ((0.0, None), (0, 48)),
        ((0.1, 0.5), (1, 4)),
        ((1.0, 2.0), (8, 9)),
        ((5.0, 6.9), (40, 8)),
        ((5.8, None), (47, 1)),
    ],
)
def test_frames_shown_at_the_edges_belong_to_the_window(
    window: Window, found: tuple[int, int]
) -> None:
    times_s = np.arange(48) / 8
    if found[1] < 2:
        with pytest.raises(VideoError, match=r"found 1 frame\(s\) in 5\.80 s to the end"):
            frames_inside(window, times_s=times_s)
    else:
        assert frames_inside(window, times_s=times_s) == found


@pytest.mark.parametrize("window", [(6.0, 7.0), (39.0, 84.7), (2.0, 8.5), (99.0, None)])
def test_window_that_the_file_does_not_have_is_refused(video: Path, window: Window) -> None:
    with pytest.raises(VideoError, match=r"clip\.mp4: found a file whose last frame is shown at 5"):
        sample_clip(video, sampling=SAMPLING, window=window)


def test_times_count_from_the_start_of_the_window(video: Path) -> None:
    clip = sample_clip(video, sampling=SAMPLING, window=WINDOW)
    assert (clip.frame_indices[0], clip.frame_indices[-1]) == (12, 34)
    assert clip.frame_times_s == tuple(index / 8 - 1.5 for index in clip.frame_indices)
    assert (clip.duration_s, clip.num_source_frames, clip.total_frames) == (2.75, 23, 48)


def test_window_ends_with_its_file(video: Path) -> None:
    assert sample_clip(video, sampling=SAMPLING, window=(2.0, 6.9)).duration_s == 4.0
    assert sample_clip(video, sampling=SAMPLING, window=(2.0, None)).duration_s == 4.0


def test_pixels_are_those_of_the_whole_file(video: Path) -> None:
    whole = sample_clip(video, sampling=SAMPLING)
    clip = sample_clip(video, sampling=SAMPLING, window=WINDOW)
    every = whole.model_copy(update={"frame_indices": tuple(range(48)), "frame_hw": clip.frame_hw})
    wanted = load_frames(every)[list(clip.frame_indices)]
    np.testing.assert_array_equal(load_frames(clip), wanted)
    decoded = decode(video, sampling=SAMPLING, window=WINDOW)
    assert decoded.clip == clip
    np.testing.assert_array_equal(decoded.frames, wanted)


def test_file_that_pyav_reads_has_windows_too(tmp_path: Path) -> None:
    narrow = make_clip(tmp_path / "narrow.mp4", num_frames=48, width_px=8)
    clip = sample_clip(narrow, sampling=SAMPLING, window=WINDOW)
    assert clip.decoder == "pyav"
    assert decode(narrow, sampling=SAMPLING, window=WINDOW).clip == clip
    assert len(load_frames(clip)) == len(clip.frame_times_s)


@pytest.mark.parametrize("start_s", [0.0, 1.5, 1.52, 1.59])
def test_processors_print_times_of_the_window(video: Path, start_s: float) -> None:
    clip = sample_clip(video, sampling=SAMPLING, window=(start_s, 5.0))
    metadata = processor_metadata(clip)
    metadata.pop("do_sample_frames")
    theirs = VideoMetadata(**metadata)
    assert theirs.timestamps == pytest.approx(clip.frame_times_s, abs=0.5 / 8)
    assert theirs.sampled_fps == pytest.approx(len(clip.frame_indices) / clip.num_source_frames * 8)


class TestWire:
    def test_clip_of_a_whole_file_travels_as_before(self, video: Path) -> None:
        document = json.loads(sample_clip(video, sampling=SAMPLING).model_dump_json())
        assert "window_s" not in document

    @pytest.mark.parametrize("window", [WINDOW, (1.5, None)])
    def test_window_survives_the_wire(self, video: Path, window: Window) -> None:
        clip = sample_clip(video, sampling=SAMPLING, window=window)
        assert ClipRef.model_validate_json(clip.model_dump_json()) == clip

    @pytest.mark.parametrize("window", [[-1, 2], [2, 2], [3, 1], [6, None], [math.nan, 3]])
    def test_window_without_a_length_is_refused(self, video: Path, window: list[float]) -> None:
        document = sample_clip(video, sampling=SAMPLING).model_dump() | {"window_s": window}
        with pytest.raises(ValueError, match="window_s"):
            ClipRef.model_validate(document)


class TestCache:
    @pytest.fixture
    def cache(self, tmp_path: Path) -> ClipCache:
        return ClipCache(tmp_path / "cache")

    @staticmethod
    def strict(cache: ClipCache, video: Path) -> ClipLoader:
        return ClipLoader(
            sampling=SAMPLING, roots=VideoRoots([video.parent]), cache=cache, mode="strict"
        )

    def put(self, cache: ClipCache, video: Path, window: Window | None) -> Path:
        sha256 = file_digest(video)
        assert ensure_entry(cache, video, sha256=sha256, sampling=SAMPLING, window=window)
        assert not ensure_entry(cache, video, sha256=sha256, sampling=SAMPLING, window=window)
        cache.remember(SourceFile.of(video), sha256=sha256)
        return cache.path(sha256, sampling=entry_key(SAMPLING.fingerprint, window=window))

    def test_each_window_has_an_entry_of_its_own(self, cache: ClipCache, video: Path) -> None:
        windows: list[Window | None] = [None, WINDOW, (1.5, None), (0.0, 4.25)]
        assert len({self.put(cache, video, window) for window in windows}) == 4
        strict = self.strict(cache, video)
        for window in windows:
            clip = strict.sample(video, window)
            assert clip == sample_clip(video, sampling=SAMPLING, window=window)
            np.testing.assert_array_equal(strict.load(clip), load_frames(clip))
        assert strict.counts["hits"] == 4

    def test_whole_file_does_not_stand_in_for_a_window(self, cache: ClipCache, video: Path) -> None:
        self.put(cache, video, None)
        strict = self.strict(cache, video)
        with pytest.raises(VideoError, match="are of other parts of it") as refused:
            strict.sample(video, WINDOW)
        assert "1.50 to 4.25 s of it" in str(refused.value)
        with pytest.raises(VideoError, match="are of other parts of it"):
            strict.load(sample_clip(video, sampling=SAMPLING, window=WINDOW))

    def test_damaged_entry_of_a_window_is_mended(self, cache: ClipCache, video: Path) -> None:
        path = self.put(cache, video, WINDOW)
        content = bytearray(path.read_bytes())
        content[-7] ^= 1
        path.write_bytes(content)
        strict = self.strict(cache, video)
        clip = strict.sample(video, WINDOW)
        np.testing.assert_array_equal(strict.load(clip), load_frames(clip))
        strict.load(clip)
        assert (strict.counts["corrupt"], strict.counts["hits"]) == (1, 1)
