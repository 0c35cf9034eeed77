"""The tiny model's text side: `write_processor(folder)` leaves all that `AutoProcessor` loads.

A byte-level BPE tokenizer of a few hundred pieces, trained on the demo's own sentences, in Qwen2's
pre-tokenisation: every digit is its own token, so times are read and written digit by digit, and
any other text falls back to bytes. `<think>` and `<answer>` tags are plain text. The chat template
is Qwen's without tools. Neighbours: `jobs.toy.make_model` writes the weights beside it; rollout and
learner load both like any Qwen3-VL checkpoint.
"""

import itertools
import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from common.prompts import VIDEO_TAG, grounding_problem
from jobs.toy.clips import COLORS, PROBLEM, SHAPES, Event

PATCH_PX = 8
MERGE_SIZE = 2
TEMPORAL_PATCH = 2

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MAX_VOCAB = 1024

# Qwen2's own pattern; transformers' Qwen2Tokenizer applies it whatever the saved file says.
PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>\
{% elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor -%}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_processor(folder: Path) -> Any:
    """Train the tokenizer and write it with the chat template and the processor settings.

    Returns:
        The tokenizer, a transformers `Qwen2Tokenizer`.
    """
    from transformers import Qwen2Tokenizer

    trained = json.loads(_train_bpe().to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(merge) for merge in trained["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=4096,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(str(folder))
    _write_json(folder / "preprocessor_config.json", _pixel_settings("Qwen2VLImageProcessor"))
    _write_json(
        folder / "video_preprocessor_config.json",
        _pixel_settings("Qwen3VLVideoProcessor")
        | {"fps": 1, "min_frames": 4, "max_frames": 768, "cap_pixels_per_frame": False},
    )
    return tokenizer


def _train_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCAB,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def _corpus() -> list[str]:
    events = [Event(color, shape, 3.5, 7.0) for color, shape in itertools.product(COLORS, SHAPES)]
    problems = [PROBLEM.format(query=event.query) for event in events]
    problems += [grounding_problem(event.query, mode="answer") for event in events]
    problems += [grounding_problem(event.query, mode="think") for event in events]
    others = ["system\n", "user\n", "assistant\n", "<3.5 seconds>", events[0].answer]
    return [problem.replace(VIDEO_TAG, "") for problem in problems] + others * 2


def _pixel_settings(kind: str) -> dict[str, Any]:
    side_px = PATCH_PX * MERGE_SIZE
    video = "Video" in kind
    return {
        "image_processor_type" if not video else "video_processor_type": kind,
        "processor_class": "Qwen3VLProcessor",
        "patch_size": PATCH_PX,
        "temporal_patch_size": TEMPORAL_PATCH,
        "merge_size": MERGE_SIZE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {
            "shortest_edge": TEMPORAL_PATCH * side_px**2,
            "longest_edge": TEMPORAL_PATCH * 512 * side_px**2,
        },
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
