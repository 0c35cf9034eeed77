"""Stage 1 of the tiny model: clips in, a tower that knows their colours and its features out.

No text and no time take part: two linear heads, thrown away afterwards, read the colours off the
tower's two outputs. Permuting the RGB channels turns one clip into six with other colours, which
keeps the tower from learning the clips by heart. `jobs.toy.language` then trains on `features` of
the frozen tower. The tower is run as transformers ships it.

Shapes: N clips, F frames (16 in a clip of 16 s), T = F/2 temporal patches, V = 4 visual tokens per
temporal patch, P = 16 T patches per clip, D = 384 values per patch, C = 6 colours, H hidden size of
the text model.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.video.frames import load_frames, sample_clip
from jobs.toy import clips
from jobs.toy.clips import COLORS, DEMO, SHAPES_PER_CLIP, ClipOptions, Event, Split

PERMUTATIONS = tuple(itertools.permutations(range(3)))
"""Channel orders; the first one changes nothing."""
COLOR_NAMES = tuple(COLORS)
BATCH_CLIPS = 24
LEARNING_RATE = 2e-3
WARMUP_STEPS = 50
FEATURE_BATCH = 64

Report = Callable[[str], None]


@dataclass(frozen=True)
class ClipTensors:
    """Clips as the tower takes them."""

    patches_NPD: Tensor
    """[N, P, D] float32, what the Qwen video processor makes of the frames."""
    visible_NFC: Tensor
    """[N, F, C] float32, 1 where a shape of that colour is visible."""
    events: tuple[tuple[Event, ...], ...]
    """Per clip, the events in row order."""
    grid_thw: tuple[int, int, int]


def recolored(color: str, permutation: tuple[int, ...]) -> str:
    """Name of a colour whose channels were reordered: new channel k is old permutation[k]."""
    high = [[channel > 150 for channel in COLORS[name]] for name in COLOR_NAMES]
    old = high[COLOR_NAMES.index(color)]
    return COLOR_NAMES[high.index([old[k] for k in permutation])]


def load_clips(
    folder: Path,
    split: Split,
    *,
    num_clips: int,
    video_processor: Any,
    options: ClipOptions = DEMO,
) -> ClipTensors:
    """Write the split's clips if need be and decode them with `clips.SAMPLING`.

    Args:
        folder: video root, see `clips.write_split`.
        split: which clips.
        num_clips: the first so many.
        video_processor: the checkpoint's Qwen3-VL video processor.
        options: what the clips are like.
    """
    clips.write_split(folder, split, num_clips=num_clips, options=options)
    refs = [
        sample_clip(folder / clips.clip_path(split, i), sampling=clips.SAMPLING)
        for i in range(num_clips)
    ]
    patches, grids = [], []
    for start in range(0, num_clips, FEATURE_BATCH):
        frames = [load_frames(ref) for ref in refs[start : start + FEATURE_BATCH]]
        out = video_processor(frames, do_sample_frames=False, do_resize=False, return_tensors="pt")
        patches.append(out["pixel_values_videos"].unflatten(0, (len(frames), -1)))
        grids.append(out["video_grid_thw"])
    events = tuple(clips.scene_events(split, i, options=options) for i in range(num_clips))
    times_NF = np.array([ref.frame_indices for ref in refs]) / clips.SOURCE_FPS
    t, h, w = torch.unique(torch.cat(grids), dim=0).squeeze(0).tolist()
    return ClipTensors(torch.cat(patches), _visible(events, times_NF), events, (t, h, w))


def pretrain(tower: nn.Module, data: ClipTensors, *, steps: int, seed: int, report: Report) -> None:
    """Train the tower in place: cross-entropy of each frame's colours, read off both outputs."""
    frames, colors = data.visible_NFC.shape[1:]
    per_patch = frames // data.grid_thw[0] * colors
    hidden = _run(tower, data.patches_NPD[:1], data.grid_thw)[0].shape[-1]
    torch.manual_seed(seed)
    heads = nn.ModuleList([nn.Linear(hidden, per_patch) for _ in range(2)])
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        set_learning_rate(optimizer, peak=LEARNING_RATE, step=step, steps=steps)
        chosen = torch.from_numpy(rng.integers(0, len(data.events), BATCH_CLIPS))
        permutation = PERMUTATIONS[int(rng.integers(len(PERMUTATIONS)))]
        outputs = _run(tower, _permute(data.patches_NPD[chosen], permutation), data.grid_thw)
        target = _permuted_visible(data.visible_NFC[chosen], permutation)
        target = target.reshape(-1, per_patch)
        loss = torch.stack(
            [
                functional.binary_cross_entropy_with_logits(head(out.mean(1)), target)
                for head, out in zip(heads, outputs, strict=True)
            ]
        ).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if step % 100 == 0 or step == steps:
            report(f"vision step {step}/{steps}: loss {loss.item():.4f}")


@torch.no_grad()
def features(tower: nn.Module, data: ClipTensors, *, permutation: tuple[int, ...]) -> Tensor:
    """[N, 2, T*V, H] float32: the tower's merged output and its deepstack output."""
    rows = []
    for patches in torch.split(data.patches_NPD, FEATURE_BATCH):
        outputs = _run(tower, _permute(patches, permutation), data.grid_thw)
        rows.append(
            torch.stack([out.reshape(len(patches), -1, out.shape[-1]) for out in outputs], 1)
        )
    return torch.cat(rows)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, *, peak: float, step: int, steps: int
) -> None:
    """Linear warm-up, then a cosine down to a tenth of the peak at `steps`."""
    cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = peak * min(1.0, step / WARMUP_STEPS) * cosine


def _run(tower: nn.Module, patches_NPD: Tensor, grid_thw: tuple[int, int, int]) -> list[Tensor]:
    """Two tensors [N*T, V, H]: merged output, deepstack output."""
    grids = torch.tensor([grid_thw] * len(patches_NPD))
    out = tower(patches_NPD.flatten(0, 1), grid_thw=grids, return_dict=True)
    num_patches = len(patches_NPD) * grid_thw[0]
    return [
        x.reshape(num_patches, -1, x.shape[-1])
        for x in (out.pooler_output, out.deepstack_features[0])
    ]


def _permute(patches_NPD: Tensor, permutation: tuple[int, ...]) -> Tensor:
    """Reorder the channels: a patch is (channel, frame, y, x) flattened."""
    channels = patches_NPD.reshape(*patches_NPD.shape[:2], 3, -1)
    return channels[:, :, list(permutation)].flatten(2)


def _permuted_visible(visible_NFC: Tensor, permutation: tuple[int, ...]) -> Tensor:
    moved = torch.empty_like(visible_NFC)
    moved[..., [COLOR_NAMES.index(recolored(c, permutation)) for c in COLOR_NAMES]] = visible_NFC
    return moved


def _visible(events: tuple[tuple[Event, ...], ...], times_NF: np.ndarray[Any, Any]) -> Tensor:
    visible_NFC = torch.zeros(*times_NF.shape, len(COLOR_NAMES))
    for n, k in itertools.product(range(len(events)), range(SHAPES_PER_CLIP)):
        event = events[n][k]
        seen_F = event.is_visible(times_NF[n])
        visible_NFC[n, :, COLOR_NAMES.index(event.color)] = torch.from_numpy(seen_F).float()
    return visible_NFC
