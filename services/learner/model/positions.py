"""Prompt ids and their clip → M-RoPE positions, the ones the rollout engine used.

`policy.py` calls this for prompts; answers go on one by one after the prompt's largest position.

Qwen3-VL and Qwen3.5 put each temporal patch behind its own `<t seconds>` text, and transformers'
`get_rope_index` agrees with vLLM. For Qwen2.5-VL it does not: transformers 5.19 starts the text
after a clip at `start + max(height, width)`, vLLM (and the original release) at one more than the
clip's largest position, time included. Eight frames were 1.7 nats apart; the rollout's positions
are the ones its log-probabilities belong to.

Shapes: G groups, P prompt tokens; axis 0 is (time, height, width).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.messages import ClipRef

TEMPORAL_PATCH = 2
"""Frames of one temporal patch, in every Qwen-VL tower."""


def prompt_positions(
    model: Any,
    prompt_ids_GP: Tensor,
    *,
    clips: Sequence[ClipRef],
    grids: Sequence[tuple[int, int, int]],
) -> Tensor:
    """[3, G, P] int64 positions of prompts with one clip each.

    Args:
        model: the inner model of a Hugging Face checkpoint (it has `get_rope_index`).
        prompt_ids_GP: expanded prompts, one placeholder a visual token.
        clips: [G].
        grids: [G] patch grids (time, height, width) before spatial merging.
    """
    config = model.config
    is_visual_GP = prompt_ids_GP == config.video_token_id
    if config.model_type == "qwen2_5_vl":
        return torch.stack(
            [
                _qwen2_5_positions(is_visual_P, config.vision_config, grid=grid, clip=clip)
                for is_visual_P, grid, clip in zip(is_visual_GP, grids, clips, strict=True)
            ],
            dim=1,
        )
    positions_3GP, _ = model.get_rope_index(
        prompt_ids_GP,
        mm_token_type_ids=is_visual_GP.long() * 2,
        video_grid_thw=torch.tensor(grids, device=prompt_ids_GP.device),
    )
    return Tensor(positions_3GP)


def _qwen2_5_positions(
    is_visual_P: Tensor, vision_config: Any, *, grid: tuple[int, int, int], clip: ClipRef
) -> Tensor:
    """[3, P]: text, one block of patches (time in seconds x tokens_per_second), text."""
    device = is_visual_P.device
    merge = vision_config.spatial_merge_size
    sampled_fps = len(clip.frame_indices) / clip.num_source_frames * clip.source_fps
    # Through float32 and back: the processor hands vLLM this number as a float32 tensor.
    seconds_per_patch = torch.tensor(TEMPORAL_PATCH / sampled_fps, dtype=torch.float32).item()
    position_step = seconds_per_patch * vision_config.tokens_per_second
    time, height, width = grid[0], grid[1] // merge, grid[2] // merge
    before = int(is_visual_P.int().argmax())
    after = len(is_visual_P) - before - time * height * width
    axes = torch.meshgrid(
        # float64 and truncation, as numpy does it in vLLM
        (torch.arange(time, dtype=torch.float64) * position_step).long(),
        torch.arange(height),
        torch.arange(width),
        indexing="ij",
    )
    visual_3N = torch.stack(axes).reshape(3, -1) + before
    start_of_text = int(visual_3N.max()) + 1
    text_before = torch.arange(before).expand(3, -1)
    text_after = torch.arange(start_of_text, start_of_text + after).expand(3, -1)
    return torch.cat([text_before, visual_3N, text_after], dim=1).to(device)
