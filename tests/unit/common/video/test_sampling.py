"""Frame counts, indices and sizes beside qwen-vl-utils 0.0.14 and the Hugging Face processors."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from common.config import Video
from common.errors import VideoError
from common.model import torchvision_cpu
from common.video.frames import load_frames, processor_metadata, sample_clip
from common.video.sampling import (
    MAX_RATIO,
    MIN_FRAMES,
    VideoSampling,
    check_source,
    frame_indices,
    frame_size,
    num_frames,
)
from tests.fixtures.clips import make_clip

torchvision_cpu.install()
import torch  # noqa: E402 - beside a torchvision that imports
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
    return sampling.model_dump(exclude={"factor"})


def fetched(
    file: Path, sampling: VideoSampling, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, dict[str, Any]]:
    """[F, C, H, W] frames and the metadata that the library itself reads from a file."""
    monkeypatch.setattr(vision_process, "get_video_reader_backend", lambda: "decord")
    found: tuple[torch.Tensor, dict[str, Any]] = vision_process.fetch_video(
        {"video": str(file), **library_settings(sampling)},
        image_patch_size=sampling.factor // 2,
        return_video_metadata=True,
    )
    return found


@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("max_frames", [16, 448, 768])
def test_number_of_frames_equals_the_librarys(fps: float, max_frames: int) -> None:
    sampling = VideoSampling(fps=fps, max_frames=max_frames)
    for duration_s, source_fps in itertools.product(DURATIONS_S, SOURCE_FPS):
        total = round(duration_s * source_fps)
        theirs = vision_process.smart_nframes(
            library_settings(sampling), total_frames=total, video_fps=source_fps
        )
        ours = num_frames(total, source_fps=source_fps, sampling=sampling)
        assert ours == theirs, (duration_s, source_fps)


@pytest.mark.parametrize("longest", [500, 20_000, 1_080_000])
def test_indices_are_rounded_as_the_library_rounds_them(longest: int) -> None:
    """It counts in float32: numpy's float64 chooses other frames of long files."""
    rng = np.random.default_rng(longest)
    other_in_float64 = 0
    for _ in range(1500):
        total = int(rng.integers(4, longest))
        frames = int(rng.integers(1, min(total, 768) // 2 + 1)) * 2
        theirs = torch.linspace(0, total - 1, frames).round().long().tolist()
        assert list(frame_indices(total, frames=frames)) == theirs, (total, frames)
        other_in_float64 += np.linspace(0, total - 1, frames).round().tolist() != theirs
    assert (other_in_float64 > 0) == (longest > 10_000)


@pytest.mark.parametrize("total", [4, 6, 10, 1001, 18_001, 90_001])
def test_places_halfway_between_two_frames_go_to_the_even_one(total: int) -> None:
    frames = 2 * (total - 1) // 3 // 2 * 2
    theirs = torch.linspace(0, total - 1, frames).round().long().tolist()
    assert list(frame_indices(total, frames=frames)) == theirs


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("size_px", SIZES_PX)
def test_frame_size_equals_what_the_library_resizes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: int, size_px: tuple[int, int]
) -> None:
    """`fetch_video` itself runs, on frames of that many and that size instead of a file's."""
    for frames, budget_tokens in itertools.product((4, 10, 128, 768), (40, 900, 14_336)):
        sampling = defaults(factor).model_copy(update={"total_pixels": budget_tokens * factor**2})
        source = torch.zeros(1).expand(frames, 3, *size_px)
        monkeypatch.setattr(vision_process, "get_video_reader_backend", lambda: "given")
        monkeypatch.setitem(
            vision_process.VIDEO_READER_BACKENDS, "given", lambda _, found=source: (found, {}, 2.0)
        )
        asked: list[tuple[int, ...]] = []
        monkeypatch.setattr(
            vision_process.transforms.functional,
            "resize",
            lambda video, size, asked=asked, **_: asked.append(tuple(size)) or video[:1],
        )
        vision_process.fetch_video(
            {"video": "given", **library_settings(sampling)}, image_patch_size=factor // 2
        )
        assert frame_size(size_px, frames=frames, sampling=sampling) == asked[0], sampling


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("frames", "fps", "size_px"),
    [(24, 8.0, (48, 64)), (75, 25.0, (120, 200)), (310, 30.0, (96, 80)), (9, 4.0, (200, 64))],
)
@pytest.mark.parametrize("budget_tokens", [40, 14_336])
def test_indices_and_size_equal_what_the_library_decodes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    factor: int,
    frames: int,
    fps: float,
    size_px: tuple[int, int],
    budget_tokens: int,
) -> None:
    height_px, width_px = size_px
    file = make_clip(
        tmp_path / "clip.mp4", num_frames=frames, fps=fps, height_px=height_px, width_px=width_px
    )
    sampling = defaults(factor).model_copy(update={"total_pixels": budget_tokens * factor**2})
    theirs, metadata = fetched(file, sampling, monkeypatch)
    ours = sample_clip(file, sampling=sampling)
    assert list(ours.frame_indices) == list(metadata["frames_indices"])
    assert ours.frame_hw == tuple(theirs.shape[-2:])
    assert math.isclose(ours.source_fps, metadata["fps"])
    # Both antialias bicubically, in torch and in Pillow: equal up to rounding and ringing.
    difference = load_frames(ours).astype(float) - theirs.permute(0, 2, 3, 1).numpy()
    assert np.abs(difference).mean() < 1.0


class TestBounds:
    def test_odd_min_frames_is_rounded_up_to_even(self) -> None:
        assert num_frames(100, source_fps=100.0, sampling=VideoSampling(min_frames=5)) == 6

    def test_one_frame_is_too_short(self) -> None:
        with pytest.raises(VideoError, match=r"found 1 frame\(s\), wanted at least .* 2: the clip"):
            check_source(1, source_hw=(64, 64))
        assert MIN_FRAMES == vision_process.FRAME_FACTOR

    def test_narrow_video_keeps_a_side_of_one_patch(self) -> None:
        """The library rounds the short side down to 0."""
        sampling = VideoSampling(max_pixels=40_000)
        assert vision_process.smart_resize(4000, 24, 32, 4096, 40_000)[1] == 0
        assert frame_size((4000, 24), frames=4, sampling=sampling)[1] == 32

    def test_extreme_aspect_ratio_is_refused(self) -> None:
        with pytest.raises(VideoError, match=r"6000x20 pixels, wanted no side over 200 times"):
            check_source(100, source_hw=(20, 6000))
        check_source(100, source_hw=(20, 4000))
        assert MAX_RATIO == vision_process.MAX_RATIO

    @pytest.mark.parametrize("size_px", [(1, 64), (64, 1), (1, 1)])
    def test_side_of_one_pixel_is_refused(self, size_px: tuple[int, int]) -> None:
        with pytest.raises(VideoError, match="wanted sides of at least 2"):
            check_source(100, source_hw=size_px)

    def test_contradicting_bounds_name_both(self) -> None:
        sampling = VideoSampling(min_pixels=8192, max_pixels=4096)
        with pytest.raises(VideoError, match=r"min_pixels 8192, max_pixels 4096"):
            frame_size((480, 640), frames=4, sampling=sampling)

    def test_infinite_rate_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="finite"):
            VideoSampling(fps=math.inf)


class TestFingerprint:
    def test_every_setting_changes_it(self) -> None:
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

    def test_section_of_a_run_file_has_that_of_its_settings(self) -> None:
        assert Video(fps=1.0).fingerprint == VideoSampling(fps=1.0).fingerprint


class TestProcessors:
    """Frames of our size go through the published processors as they are."""

    @pytest.mark.parametrize(("factor", "frames"), [(32, 6), (28, 6), (32, 130)])
    def test_grid_is_that_of_our_frames(self, tmp_path: Path, factor: int, frames: int) -> None:
        from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

        processor = Qwen3VLVideoProcessor() if factor == 32 else Qwen2VLVideoProcessor()
        file = make_clip(
            tmp_path / "clip.mp4", num_frames=frames, fps=2.0, height_px=120, width_px=200
        )
        sampling = defaults(factor).model_copy(
            update={"max_pixels": 24 * factor**2, "min_pixels": 8 * factor**2}
        )
        clip = sample_clip(file, sampling=sampling)
        metadata = processor_metadata(clip)
        metadata.pop("do_sample_frames")
        found = processor(
            [load_frames(clip)],
            video_metadata=[metadata],
            do_sample_frames=False,
            do_resize=False,
            return_tensors="pt",
        )
        patch = factor // 2
        assert found["video_grid_thw"].tolist() == [
            [frames // 2, clip.frame_hw[0] // patch, clip.frame_hw[1] // patch]
        ]

    @pytest.mark.parametrize("seconds", [2, 30, 400])
    @pytest.mark.parametrize("size_px", [(360, 640), (1080, 1920)])
    def test_qwen3s_own_resizing_would_change_nothing(
        self, seconds: int, size_px: tuple[int, int]
    ) -> None:
        """With our budget as its own: it counts pixels of the clip, we count those of a frame."""
        from transformers.models.qwen3_vl import video_processing_qwen3_vl as qwen3

        sampling = defaults(32)
        frames = num_frames(seconds * 30, source_fps=30.0, sampling=sampling)
        size = frame_size(size_px, frames=frames, sampling=sampling)
        assert size == qwen3.smart_resize(
            frames,
            *size,
            factor=32,
            min_pixels=sampling.min_pixels,
            max_pixels=sampling.total_pixels * 2,
        )
