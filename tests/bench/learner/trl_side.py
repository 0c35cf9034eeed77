"""TRL's GRPOTrainer on a tiny Qwen2.5-VL: `python -m tests.bench.learner.trl_side MODEL STEPS`.

Run in a venv that has TRL (`trl.lock`); writes one JSON line. TRL has no path for videos: frames of
a clip go in as images, one prompt part each.
"""

import json
import random
import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tests.bench.learner.counting import Counts
from tests.bench.learner.work import (
    ANSWER_TOKENS,
    GROUP_SIZE,
    IMAGES,
    LEARNING_RATE,
    PROMPTS,
    QUESTION,
    SIDE_PX,
    THREADS,
)

TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each step ended."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends_s.append(time.perf_counter())


def rows(steps: int) -> Dataset:
    """A fresh clip for every prompt."""
    frames = np.random.default_rng(0)

    def clip() -> list[Image.Image]:
        shape = (SIDE_PX, SIDE_PX, 3)
        return [
            Image.fromarray(frames.integers(0, 255, shape, dtype=np.uint8)) for _ in range(IMAGES)
        ]

    prompt = [{"role": "user", "content": QUESTION}]
    return Dataset.from_list([{"prompt": prompt, "images": clip()} for _ in range(PROMPTS * steps)])


def main(model_folder: str, steps: int) -> None:
    """Train, count, and say what was found."""
    torch.set_num_threads(THREADS)
    random.seed(0)
    processor = AutoProcessor.from_pretrained(model_folder)
    processor.chat_template = TEMPLATE
    processor.tokenizer.chat_template = TEMPLATE
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model_folder)
    counts, clock = Counts(), Clock()
    counts.watch(model.model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [random.random() for _ in completions],
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=GROUP_SIZE * PROMPTS,
                num_generations=GROUP_SIZE,
                max_completion_length=ANSWER_TOKENS,
                learning_rate=LEARNING_RATE,
                max_steps=steps,
                report_to="none",
                use_cpu=True,
                bf16=False,
                logging_steps=1,
                save_strategy="no",
                beta=0.0,
                gradient_checkpointing=False,
            ),
            train_dataset=rows(steps),
            processing_class=processor,
            callbacks=[clock],
        )
        trainer.train()
    between_s = [end - start for start, end in zip(clock.ends_s, clock.ends_s[1:], strict=False)]
    lengths = [
        line["completions/mean_length"]
        for line in trainer.state.log_history
        if "completions/mean_length" in line
    ]
    found = {
        "wall_s": statistics.mean(between_s),
        "answer_tokens": statistics.mean(lengths),
        **counts.per_step(steps),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
