"""The bound on a clip's tokens, against the arithmetic that both sides of the ring use."""

import pytest

from common.config import Shared
from common.messages import Sampling
from common.model.architecture import PUBLISHED
from common.video.sampling import VideoSampling, frame_size
from jobs.recipes.tokens import group_tokens, longest_clip, visual_tokens

QWEN3 = VideoSampling()
QWEN2_5 = VideoSampling(min_pixels=12_544, max_pixels=602_112, total_pixels=11_239_424, factor=28)
SHAPES = [(h, w) for h in (90, 240, 480, 1080) for w in (90, 320, 640, 1920)]


def real_tokens(frames: int, source_hw: tuple[int, int], sampling: VideoSampling) -> int:
    height, width = frame_size(source_hw, frames=frames, sampling=sampling)
    return frames // 2 * (height // sampling.factor) * (width // sampling.factor)


@pytest.mark.parametrize("sampling", [QWEN3, QWEN2_5], ids=["factor 32", "factor 28"])
@pytest.mark.parametrize("frames", [4, 56, 128, 446, 768])
def test_no_clip_has_more_tokens_than_the_bound(sampling: VideoSampling, frames: int) -> None:
    bound = visual_tokens(frames, sampling=sampling)
    found = max(real_tokens(frames, shape, sampling) for shape in SHAPES)
    assert 0.9 * bound <= found <= bound


def test_small_budgets_are_bounded_from_below_by_min_pixels() -> None:
    floor = VideoSampling(min_pixels=65_536, total_pixels=14_680_064)
    # 68,812 pixels a frame: 67 tokens a temporal patch, beyond the 14,336 of total_pixels.
    assert visual_tokens(768, sampling=floor) == 384 * 67


def test_longest_prompt_is_not_the_clip_with_most_visual_tokens() -> None:
    assert longest_clip(QWEN3, stamp=0)[1] == 14_336
    assert longest_clip(QWEN3, stamp=10) == (754, 377 * 38)


@pytest.mark.parametrize("stamp", [0, 10])
@pytest.mark.parametrize("bounds", [(4, 768), (5, 61), (2, 2), (2, 40_000)])
@pytest.mark.parametrize("base", [QWEN3, QWEN2_5], ids=["factor 32", "factor 28"])
def test_the_longest_clip_is_that_of_trying_every_number_of_frames(
    base: VideoSampling, bounds: tuple[int, int], stamp: int
) -> None:
    low, high = bounds
    sampling = base.model_copy(update={"min_frames": low, "max_frames": high})
    tokens = {
        frames: visual_tokens(frames, sampling=sampling) for frames in range(low, high + 1, 2)
    }
    longest = max(tokens, key=lambda frames: tokens[frames] + stamp * (frames // 2))
    assert longest_clip(sampling, stamp=stamp) == (longest, tokens[longest])


def test_no_number_of_frames_is_too_large_to_count_with() -> None:
    most = 10**18
    frames, visual = longest_clip(VideoSampling(max_frames=most), stamp=10)
    assert (frames, visual) == (most, most // 2 * 4), "min_pixels is 4 tokens"


def test_qwen2_5_has_no_timestamps() -> None:
    shared = Shared(run_id="r", model="m", video=QWEN2_5.model_dump())  # type: ignore[arg-type]
    tokens = group_tokens(shared, architecture=PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"])
    assert (tokens.visual, tokens.text) == (14_336, 200)


def test_an_injected_answer_is_packed_and_not_generated() -> None:
    shared = Shared(run_id="r", model="m", group_size=4, sampling=Sampling(max_tokens=100))
    tokens = group_tokens(shared, architecture=PUBLISHED["Qwen/Qwen3.5-4B"])
    assert (tokens.answers, tokens.generated) == (4, 3)
    assert tokens.packed == tokens.prompt + 400
    assert tokens.sequence == tokens.prompt + 100
