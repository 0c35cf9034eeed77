"""Models and a group of a real size, without weights and without a video.

A checkpoint folder has a config and processors alone; weights are drawn on the device. The group is
what the ring delivers for some 200 s of video: 14.3k visual tokens, eight answers, one injected.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from common.messages import ClipRef, Sample, Scored, ScoredGroup, Timings, VersionSpan
from common.model import torchvision_cpu

PATCH_PX = 32
"""Pixels of a visual token's side, in both towers."""


@dataclass(frozen=True)
class Shape:
    """A model and the group that it trains on; defaults are the language model of 4B."""

    name: str
    architecture: Literal["qwen3_vl", "qwen3_5"]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    rope: tuple[int, int, int]
    hidden: int = 2560
    tower_depth: int = 24
    tower_hidden: int = 1024
    temporal_patches: int = 199
    grid_hw: tuple[int, int] = (8, 9)
    """Visual tokens of a temporal patch."""
    answers: int = 8
    answer_tokens: int = 256
    linear: tuple[int, int, int] = (128, 16, 32)
    """Gated delta nets: head size, key heads, value heads."""

    @property
    def full_layers(self) -> int:
        """Layers that attend."""
        return self.layers if self.architecture == "qwen3_vl" else self.layers // 4

    @property
    def special(self) -> dict[str, int]:
        """Ids of placeholders, at the end of the vocabulary."""
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        return {name: self.vocab - 1 - place for place, name in enumerate(names)}


REAL = (
    Shape("Qwen3-VL-4B", "qwen3_vl", 36, 32, 8, 128, 9728, 151_936, (24, 20, 20)),
    Shape("Qwen3.5-4B", "qwen3_5", 32, 16, 4, 256, 9216, 248_320, (11, 11, 10)),
)
SMALL: dict[str, Any] = {
    "hidden": 64,
    "tower_depth": 2,
    "tower_hidden": 64,
    "temporal_patches": 4,
    "grid_hw": (2, 3),
    "answers": 3,
    "answer_tokens": 7,
    "linear": (16, 1, 2),
}
TINY = (
    Shape("tiny Qwen3-VL", "qwen3_vl", 2, 2, 1, 32, 128, 512, (6, 5, 5), **SMALL),
    Shape("tiny Qwen3.5", "qwen3_5", 4, 2, 1, 64, 128, 512, (3, 3, 2), **SMALL),
)


def write_config(shape: Shape, folder: Path) -> Path:
    """A checkpoint folder without weights."""
    torchvision_cpu.install()
    import transformers

    text: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": 262_144,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": list(shape.rope),
            "mrope_interleaved": True,
        },
    }
    tower: dict[str, Any] = {
        "depth": shape.tower_depth,
        "hidden_size": shape.tower_hidden,
        "intermediate_size": 4 * shape.tower_hidden,
        "num_heads": max(2, shape.tower_hidden // 64),
        "out_hidden_size": shape.hidden,
        "patch_size": PATCH_PX // 2,
        "num_position_embeddings": 2304,
    }
    if shape.architecture == "qwen3_vl":
        tower["deepstack_visual_indexes"] = [0] if shape.tower_depth < 18 else [5, 11, 17]
        kind, name = transformers.Qwen3VLConfig, "Qwen3VLForConditionalGeneration"
    else:
        size, key_heads, value_heads = shape.linear
        text["rope_parameters"]["partial_rotary_factor"] = 0.25
        text |= {
            "layer_types": [*["linear_attention"] * 3, "full_attention"] * (shape.layers // 4),
            "linear_key_head_dim": size,
            "linear_value_head_dim": size,
            "linear_num_key_heads": key_heads,
            "linear_num_value_heads": value_heads,
        }
        kind, name = transformers.Qwen3_5Config, "Qwen3_5ForConditionalGeneration"
    config = kind(text_config=text, vision_config=tower, tie_word_embeddings=True, **shape.special)
    config.architectures = [name]
    config.save_pretrained(folder)
    processors = {
        "preprocessor": transformers.Qwen2VLImageProcessor(patch_size=PATCH_PX // 2),
        "video_preprocessor": transformers.Qwen3VLVideoProcessor(),
    }
    for name, processor in processors.items():
        settings = processor.to_dict() | {"processor_class": "Qwen3VLProcessor"}
        (folder / f"{name}_config.json").write_text(json.dumps(settings, default=str))
    return folder


def frames_of(shape: Shape) -> npt.NDArray[np.uint8]:
    """[2 · temporal patches, H, W, 3] coarse noise."""
    height, width = (PATCH_PX * side for side in shape.grid_hw)
    size = (2 * shape.temporal_patches, height // 8, width // 8, 3)
    coarse = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def group_of(shape: Shape) -> ScoredGroup:
    """Prompts as Qwen3-VL writes them: `<t seconds>`, start, patches, end."""
    ids, letters = shape.special, random.Random(0)
    height, width = shape.grid_hw

    def text(length: int) -> list[int]:
        return [letters.randrange(shape.vocab - 8) for _ in range(length)]

    prompt = text(12)
    for _ in range(shape.temporal_patches):
        patches = [ids["video_token_id"]] * (height * width)
        start, end = ids["vision_start_token_id"], ids["vision_end_token_id"]
        prompt += [*text(6), start, *patches, end]
    prompt += text(70)
    answers = [text(shape.answer_tokens) for _ in range(shape.answers)]
    samples = [*(_sample(answer) for answer in answers[:-1]), _sample(answers[-1], injected=True)]
    frames = 2 * shape.temporal_patches
    return ScoredGroup(
        prompt_id="p",
        row_id="r",
        epoch=0,
        mode="answer",
        clip=ClipRef(
            uri="synthetic.mp4",
            sha256="0" * 64,
            decoder="pyav",
            source_fps=2.0,
            total_frames=frames,
            frame_indices=tuple(range(frames)),
            frame_times_s=tuple(index / 2 for index in range(frames)),
            frame_hw=(PATCH_PX * height, PATCH_PX * width),
            sampling="synthetic",
        ),
        prompt_token_ids=tuple(prompt),
        num_visual_tokens=shape.temporal_patches * height * width,
        grid_thw=(shape.temporal_patches, 2 * height, 2 * width),
        samples=tuple(samples),
        verdicts=tuple(Scored(reward=0.1 * i, parts={}) for i in range(shape.answers)),
        replica="bench",
        timings=Timings(decode_s=0.0, generate_s=0.0, score_s=0.0),
    )


def _sample(token_ids: list[int], *, injected: bool = False) -> Sample:
    span = VersionSpan(version=0, start=0, end=len(token_ids))
    return Sample(
        token_ids=tuple(token_ids),
        logprobs=() if injected else (-11.0,) * len(token_ids),
        version_spans=() if injected else (span,),
        finish_reason="stop",
        provenance="injected" if injected else "policy",
    )


def model_flops(shape: Shape, *, linear_weights: int, prompt_tokens: int) -> float:
    """Of forward and backward of a shared group: three times the forward, no recomputation.

    2 FLOPs a weight of the decoder layers and token, 4 a head's value and pair of attending tokens,
    and the head over answer tokens. A gated delta net's recurrence is left out (under 2 %).
    """
    own = shape.answer_tokens - 1
    tokens = prompt_tokens + shape.answers * own
    pairs = prompt_tokens * (prompt_tokens + 1) / 2
    pairs += shape.answers * (own * prompt_tokens + own * (own + 1) / 2)
    attention = shape.full_layers * 4 * shape.heads * shape.head_dim * pairs
    head = 2 * shape.hidden * shape.vocab * shape.answers * shape.answer_tokens
    return 3 * (2 * linear_weights * tokens + attention + head)
