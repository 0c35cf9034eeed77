"""The first prompt as the model sees it: chat template, timestamps, length.

    row + frames -> the checkpoint's processor -> Prompt -> findings

The engine renders the same template and the same frames; whether both sides then agree token by
token is `jobs.doctor.engines`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config import Shared
from common.messages import ClipRef
from common.model import torchvision_cpu
from common.rows import Row
from common.video.frames import processor_metadata
from jobs.doctor.finding import Finding, one_line

AREA = "prompt"
TIMESTAMP = re.compile(r"<(\d+(?:\.\d+)?) seconds>")
BEGINNING, END = 200, 400
"""Characters of a prompt that are shown."""
FRAMES_A_STAMP = 2
"""Frames that one visual token, and so one timestamp, stands for."""
WRITES_TIMES = ("qwen3_vl", "qwen3_5")
"""model_type of those whose processors write times between frames; Qwen2.5-VL has them in its
positions."""
SECONDS_APART = 0.06
"""Between a stamp and the middle of its frames: stamps have one decimal."""


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt."""

    text: str
    """Runs of the visual placeholder shortened to their count."""
    num_tokens: int
    num_visual_tokens: int
    stamps_s: tuple[float, ...]
    """Times between the frames, as they are written."""
    writes_times: bool
    """Whether this kind of model has any."""


def rendered(folder: Path, row: Row, *, clip: ClipRef, frames: npt.NDArray[np.uint8]) -> Prompt:
    """Render a row as the checkpoint in `folder` would see it.

    Args:
        folder: of the checkpoint, with tokenizer, processor and template.
        frames: [F, H, W, 3] uint8, those of `clip`.

    Raises:
        ValueError, OSError: the folder lacks a file, or the template fails on the messages.
    """
    torchvision_cpu.install()
    from transformers import AutoConfig, AutoProcessor, AutoTokenizer

    processor: Any = AutoProcessor.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoConfig.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [message.model_dump() for message in row.messages("answer")],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    metadata = processor_metadata(clip)
    sampled = metadata.pop("do_sample_frames")
    made = processor(
        text=[text],
        videos=[frames],
        video_metadata=[metadata],
        do_resize=False,
        do_sample_frames=sampled,
    )
    ids = list(map(int, np.asarray(made["input_ids"]).reshape(-1)))
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    placeholder = tokenizer.decode([model.video_token_id])
    return Prompt(
        text=shortened(whole, placeholder=placeholder),
        num_tokens=len(ids),
        num_visual_tokens=ids.count(model.video_token_id),
        stamps_s=tuple(map(float, TIMESTAMP.findall(whole))),
        writes_times=model.model_type in WRITES_TIMES,
    )


def shortened(text: str, *, placeholder: str) -> str:
    """Runs of a placeholder as one, with their count."""
    runs = re.compile(f"(?:{re.escape(placeholder)})+")
    return runs.sub(lambda run: f"{placeholder}x{len(run[0]) // len(placeholder)}", text)


def findings(prompt: Prompt, *, clip: ClipRef, shared: Shared) -> Iterator[Finding]:
    """Judge a rendered prompt."""
    yield Finding(AREA, "first prompt", "ok", ends(prompt.text))
    yield visual_tokens(prompt, clip=clip, shared=shared)
    yield length(prompt, shared=shared)
    yield timestamps(prompt, clip=clip)


def ends(text: str) -> str:
    """Beginning and end of a long text: its frames are alike, the question is not."""
    text = one_line(text, most_chars=len(text))
    if len(text) <= BEGINNING + END:
        return text
    return f"{text[:BEGINNING]} … {text[-END:]}"


def visual_tokens(prompt: Prompt, *, clip: ClipRef, shared: Shared) -> Finding:
    """As many as frames and their size make."""
    height_px, width_px = clip.frame_hw
    factor = shared.video.factor
    frames = len(clip.frame_indices)
    wanted = (frames // FRAMES_A_STAMP) * (height_px // factor) * (width_px // factor)
    made = f"{frames} frames of {width_px}x{height_px}"
    if prompt.num_visual_tokens == wanted:
        return Finding(AREA, "visual tokens", "ok", f"{wanted} of {made}")
    found = f"{prompt.num_visual_tokens} of {made}, wanted {wanted} at factor {factor}"
    cure = "shared.video.factor has to be patch size x merge size of the model's processor"
    return Finding(AREA, "visual tokens", "fail", found, cure)


def length(prompt: Prompt, *, shared: Shared) -> Finding:
    """Within what replicas accept."""
    found = f"{prompt.num_tokens:,} tokens of at most {shared.max_prompt_tokens:,}"
    if prompt.num_tokens <= shared.max_prompt_tokens:
        return Finding(AREA, "length", "ok", found)
    cure = "raise shared.max_prompt_tokens, or lower shared.video.total_pixels"
    return Finding(AREA, "length", "fail", found, cure)


def timestamps(prompt: Prompt, *, clip: ClipRef) -> Finding:
    """One for each two frames, at their middle; none where the model has them in its positions."""
    if not prompt.writes_times:
        return Finding(AREA, "timestamps", "ok", "in positions, not in the text, for this model")
    wanted = middles_s(clip)
    cure = (
        "use the processor files of the checkpoint itself, and the versions of transformers and "
        "vllm that the lock pins"
    )
    if len(prompt.stamps_s) != len(wanted):
        found = f"{len(prompt.stamps_s)} in the prompt, wanted {len(wanted)}"
        return Finding(AREA, "timestamps", "fail", found, cure)
    apart_s = max((abs(a - b) for a, b in zip(prompt.stamps_s, wanted, strict=True)), default=0.0)
    if apart_s <= SECONDS_APART:
        found = f"{len(wanted)}, {wanted[0]:.1f} to {wanted[-1]:.1f} s"
        return Finding(AREA, "timestamps", "ok", found)
    found = f"up to {apart_s:.2f} s from the frames they stand for, wanted {SECONDS_APART} at most"
    return Finding(AREA, "timestamps", "fail", found, cure)


def middles_s(clip: ClipRef) -> tuple[float, ...]:
    """Of each two frames in turn, seconds from the start of the clip."""
    times = clip.frame_times_s
    return tuple(
        (first + second) / 2 for first, second in zip(times[::2], times[1::2], strict=True)
    )
