"""M-RoPE positions as vLLM numbers them."""

from types import SimpleNamespace
from typing import Any

import torch

from common.messages import ClipRef
from services.learner.model.positions import prompt_positions

TEXT, VIDEO = 1, 9


def clip(*, frames: int, sampled_fps: float) -> ClipRef:
    """`frames` of a clip that was sampled at `sampled_fps`."""
    return ClipRef(
        uri="clip.mp4",
        sha256="0",
        decoder="decord",
        source_fps=sampled_fps * 4,
        total_frames=frames * 4,
        frame_indices=tuple(range(frames)),
        frame_times_s=tuple(index / sampled_fps / 4 for index in range(frames)),
        frame_hw=(56, 56),
        sampling="s",
    )


def positions(*, grid: tuple[int, int, int], clip: ClipRef) -> list[list[int]]:
    """Two text tokens, the clip, three text tokens through Qwen2.5-VL's numbering."""
    vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)
    config = SimpleNamespace(model_type="qwen2_5_vl", video_token_id=VIDEO, vision_config=vision)
    model: Any = SimpleNamespace(config=config)
    num_visual = grid[0] * grid[1] * grid[2] // 4
    prompt_GP = torch.tensor([[TEXT] * 2 + [VIDEO] * num_visual + [TEXT] * 3])
    found: list[list[int]] = prompt_positions(model, prompt_GP, clips=[clip], grids=[grid])[
        :, 0
    ].tolist()
    return found


def test_qwen2_5_text_goes_on_after_the_largest_position_of_the_clip() -> None:
    # 3 temporal patches of 2 frames at 2 fps: 1 s apart, 2 positions a second.
    time, height, width = positions(grid=(3, 4, 4), clip=clip(frames=6, sampled_fps=2.0))
    assert time == [0, 1] + [2] * 4 + [4] * 4 + [6] * 4 + [7, 8, 9]
    assert height == [0, 1] + [2, 2, 3, 3] * 3 + [7, 8, 9]
    assert width == [0, 1] + [2, 3, 2, 3] * 3 + [7, 8, 9]


def test_qwen2_5_time_positions_are_truncated_not_rounded() -> None:
    # Patches are 2 / 3 fps = 0.667 s apart: 0, 1.33, 2.67 positions.
    time, _, _ = positions(grid=(3, 2, 2), clip=clip(frames=6, sampled_fps=3.0))
    assert time == [0, 1, 2, 3, 4, 5, 6, 7]


def test_qwen2_5_wide_clip_is_followed_by_text_after_its_width() -> None:
    time, _, width = positions(grid=(1, 2, 10), clip=clip(frames=2, sampled_fps=2.0))
    assert time == [0, 1] + [2] * 5 + [7, 8, 9]
    assert width == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
