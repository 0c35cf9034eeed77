"""Clip sampling beside qwen-vl-utils 0.0.14, decoding, and files that are no videos."""

import hashlib
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import torchvision_cpu, video
from common.errors import VideoError
from common.video import VideoSampling, load_frames, sample_clip
from tests.fixtures.clips import make_clip

torchvision_cpu.install()
from qwen_vl_utils import vision_process  # noqa: E402 - it imports torchvision

FACTORS = (28, 32)
DURATIONS_S = (0.5, 1.0, 2.04, 7.3, 16.0, 31.7, 95.0, 224.0, 600.0, 3600.0)
SOURCE_FPS = (8.0, 23.976, 25.0, 30.0, 60.0)
SIZES_PX = ((64, 64), (48, 200), (240, 320), (360, 640), (1080, 1920), (1920, 1080), (33, 47))


def defaults(factor: int) -> VideoSampling:
    """The published training settings (SPEC A8), for either patch size."""
    pixels = factor * factor
    return VideoSampling(
        factor=factor,
        fps=2.0,
        max_frames=768,
        min_pixels=4 * pixels,
        max_pixels=768 * pixels,
        total_pixels=14_336 * pixels,
    )


def library_settings(sampling: VideoSampling) -> dict[str, Any]:
    """The same settings as an element of a chat message for the library."""
    return {
        "fps": sampling.fps,
        "min_frames": sampling.min_frames,
        "max_frames": sampling.max_frames,
        "min_pixels": sampling.min_pixels,
        "max_pixels": sampling.max_pixels,
        "total_pixels": sampling.total_pixels,
    }


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds at 8 frames per second, 64 wide and 48 high."""
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", num_frames=24)


@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("max_frames", [16, 448, 768])
def test_number_of_frames_equals_the_librarys(fps: float, max_frames: int) -> None:
    sampling = VideoSampling(fps=fps, max_frames=max_frames)
    compared = 0
    for duration_s, source_fps in itertools.product(DURATIONS_S, SOURCE_FPS):
        total = round(duration_s * source_fps)
        if total < sampling.min_frames:
            continue  # the library cannot take fewer than its minimum
        theirs = vision_process.smart_nframes(
            library_settings(sampling), total_frames=total, video_fps=source_fps
        )
        assert video.num_frames(total, source_fps, sampling) == theirs, (duration_s, source_fps)
        compared += 1
    assert compared > 40


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("size_px", SIZES_PX)
@pytest.mark.parametrize("frames", [4, 10, 32, 128, 448, 768])
def test_frame_size_equals_the_librarys(factor: int, size_px: tuple[int, int], frames: int) -> None:
    sampling = defaults(factor)
    settings = library_settings(sampling)
    height_px, width_px = size_px
    # The arithmetic inside vision_process.fetch_video, SPEC A4.
    budget = max(
        min(
            video.MAX_TOKENS_PER_FRAME * factor**2,
            settings["total_pixels"] / frames * vision_process.FRAME_FACTOR,
        ),
        int(settings["min_pixels"] * 1.05),
    )
    theirs = vision_process.smart_resize(
        height_px,
        width_px,
        factor=factor,
        min_pixels=settings["min_pixels"],
        max_pixels=min(budget, settings["max_pixels"]),
    )
    assert video.frame_size(height_px, width_px, frames, sampling) == theirs


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("num_frames", "fps", "size_px"),
    [(24, 8.0, (48, 64)), (75, 25.0, (120, 200)), (310, 30.0, (96, 80)), (9, 4.0, (200, 64))],
)
@pytest.mark.parametrize("budget_tokens", [40, 14_336])
def test_indices_and_size_equal_what_the_library_decodes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    factor: int,
    num_frames: int,
    fps: float,
    size_px: tuple[int, int],
    budget_tokens: int,
) -> None:
    height_px, width_px = size_px
    file = make_clip(
        tmp_path / "clip.mp4",
        num_frames=num_frames,
        fps=fps,
        height_px=height_px,
        width_px=width_px,
    )
    sampling = defaults(factor).model_copy(update={"total_pixels": budget_tokens * factor**2})
    monkeypatch.setattr(vision_process, "FORCE_QWENVL_VIDEO_READER", "decord")
    vision_process.get_video_reader_backend.cache_clear()
    (frames, metadata), _ = vision_process.fetch_video(
        {"video": str(file), **library_settings(sampling)},
        image_patch_size=factor // 2,
        return_video_sample_fps=True,
        return_video_metadata=True,
    )
    vision_process.get_video_reader_backend.cache_clear()
    ours = sample_clip(file, sampling=sampling)
    assert list(ours.frame_indices) == list(metadata["frames_indices"])
    assert ours.frame_hw == tuple(frames.shape[-2:])
    assert math.isclose(ours.source_fps, metadata["fps"])
    # Both antialias bicubically, in torch and in Pillow: equal up to rounding and ringing.
    difference = load_frames(ours).astype(float) - frames.permute(0, 2, 3, 1).numpy()
    assert np.abs(difference).mean() < 1.0


class TestSampling:
    def test_frames_are_even_in_number_and_span_the_clip(self, clip: Path) -> None:
        ref = sample_clip(clip, sampling=VideoSampling(fps=2.0))
        assert len(ref.frame_indices) == 6
        assert (ref.frame_indices[0], ref.frame_indices[-1]) == (0, 23)
        assert ref.duration_s == 3.0

    def test_reference_names_file_content_and_settings(self, clip: Path) -> None:
        sampling = VideoSampling(fps=2.0)
        ref = sample_clip(clip, sampling=sampling)
        assert ref.uri == str(clip)
        assert ref.sha256 == hashlib.sha256(clip.read_bytes()).hexdigest()
        assert ref.sampling == sampling.fingerprint

    def test_every_setting_changes_the_fingerprint(self) -> None:
        values = {
            "fps": 1.0,
            "min_frames": 6,
            "max_frames": 16,
            "min_pixels": 5000,
            "max_pixels": 5000,
            "total_pixels": 5000,
            "factor": 28,
        }
        assert values.keys() == VideoSampling.model_fields.keys()
        changed = {VideoSampling(**{key: value}).fingerprint for key, value in values.items()}
        assert len(changed | {VideoSampling().fingerprint}) == len(values) + 1

    def test_odd_min_frames_is_rounded_up_to_even(self) -> None:
        assert video.num_frames(100, 100.0, VideoSampling(min_frames=5)) == 6

    def test_extreme_aspect_ratio_is_refused(self) -> None:
        with pytest.raises(VideoError, match=r"aspect ratio of 6000x20 is over 200:1"):
            video.frame_size(20, 6000, 4, VideoSampling())


class TestLoading:
    def test_frames_have_the_promised_shape_and_are_the_sampled_ones(self, clip: Path) -> None:
        sampling = VideoSampling(fps=2.0, min_pixels=32 * 32, max_pixels=64 * 64)
        ref = sample_clip(clip, sampling=sampling)
        frames = load_frames(ref)
        assert frames.dtype == np.uint8
        assert frames.shape == (6, *ref.frame_hw, 3)
        brightness = frames.mean(axis=(1, 2, 3))
        assert (np.diff(brightness) > 10).all(), "the clip gets lighter from frame to frame"

    def test_twice_gives_equal_bytes(self, clip: Path) -> None:
        ref = sample_clip(clip, sampling=VideoSampling())
        assert load_frames(ref).tobytes() == load_frames(ref).tobytes()

    def test_changed_file_is_refused(self, tmp_path: Path) -> None:
        file = make_clip(tmp_path / "clip.mp4", num_frames=24)
        ref = sample_clip(file, sampling=VideoSampling())
        make_clip(file, num_frames=32)
        with pytest.raises(VideoError, match=r"clip\.mp4: found sha256 .*wanted .*changed"):
            load_frames(ref)

    def test_vanished_file_is_named(self, tmp_path: Path) -> None:
        file = make_clip(tmp_path / "clip.mp4", num_frames=24)
        ref = sample_clip(file, sampling=VideoSampling())
        file.unlink()
        with pytest.raises(VideoError, match=r"clip\.mp4: No such file"):
            load_frames(ref)

    def test_metadata_forbids_a_second_sampling(self, clip: Path) -> None:
        ref = sample_clip(clip, sampling=VideoSampling(fps=2.0))
        metadata = video.processor_metadata(ref)
        assert metadata["do_sample_frames"] is False
        assert metadata["frames_indices"] == list(ref.frame_indices)
        assert (metadata["fps"], metadata["duration"]) == (8.0, 3.0)


class TestNotAVideo:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(VideoError, match=r"none\.mp4: No such file"):
            sample_clip(tmp_path / "none.mp4", sampling=VideoSampling())

    def test_zero_bytes(self, tmp_path: Path) -> None:
        file = tmp_path / "empty.mp4"
        file.touch()
        with pytest.raises(VideoError, match=r"empty\.mp4: found 0 bytes"):
            sample_clip(file, sampling=VideoSampling())

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(VideoError, match="found a folder or device"):
            sample_clip(tmp_path, sampling=VideoSampling())

    def test_text(self, tmp_path: Path) -> None:
        file = tmp_path / "prose.mp4"
        file.write_text("This is not a video.\n" * 100)
        with pytest.raises(VideoError, match=r"prose\.mp4: cannot open as a video"):
            sample_clip(file, sampling=VideoSampling())

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
    def test_truncated(self, tmp_path: Path, clip: Path, kept: float) -> None:
        content = clip.read_bytes()
        file = tmp_path / "truncated.mp4"
        file.write_bytes(content[: int(len(content) * kept)])
        with pytest.raises(VideoError, match=r"truncated\.mp4: "):
            load_frames(sample_clip(file, sampling=VideoSampling()))

    @pytest.mark.parametrize("width_px", [48, 72])
    def test_width_that_decord_misreads(self, tmp_path: Path, width_px: int) -> None:
        file = make_clip(tmp_path / "odd.mp4", num_frames=8, height_px=64, width_px=width_px)
        with pytest.raises(VideoError, match=rf"odd\.mp4: found {width_px}x64 pixels, .*re-encode"):
            sample_clip(file, sampling=VideoSampling())

    def test_one_frame(self, tmp_path: Path) -> None:
        file = make_clip(tmp_path / "one.mp4", num_frames=1)
        with pytest.raises(VideoError, match=r"one\.mp4: found 1 frame\(s\), wanted at least 2"):
            sample_clip(file, sampling=VideoSampling())
