"""`learner.preset`: settings of published code, beneath those that a run file states itself."""

from collections.abc import Mapping
from typing import Any, Literal

Preset = Literal["seed"]

WARMUP_SHARE = 0.05
"""Of all steps, rounded down (SPEC A8)."""
SEED: dict[str, Any] = {
    "shared": {
        "seed": 42,
        "strategy": "shaping",
        "group_size": 8,
        "max_prompt_tokens": 20_480,
        "sampling": {"temperature": 1.0, "top_p": 0.85, "max_tokens": 256},
        "scoring": {"format_weight": 0.1, "threshold": 0.8, "alpha1": 0.01, "alpha2": 1.0},
        "video": {
            "fps": 2.0,
            "max_frames": 768,
            "min_pixels": 4096,
            "max_pixels": 786_432,
            "total_pixels": 14_680_064,
        },
    },
    "learner": {
        "groups_per_step": 16,
        "updates_per_batch": 1,
        "max_staleness": 0,
        "freeze_vision": True,
        "optimizer": {
            "lr": 1e-6,
            "betas": [0.9, 0.999],
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
        },
        "loss": {
            "surrogate": "clip",
            "clip_low": 0.2,
            "clip_high": 0.28,
            "dual_clip": 3.0,
            "level": "token",
            "normalize": "tokens",
            "kl_coef": 0.0,
            "correction": "off",
        },
        "advantage": {
            "scale": "group_std",
            "std_floor": 0.0,
            "zero_variance": "keep",
            "truncated": "train",
        },
    },
}
"""The public TempSamp-R1 code (SPEC A7, A8) in what decides numbers: sampled at top_p .85 without
importance weights, in step (ratio 1), token mean over the batch, dual clip 3. Left out are its
machine (8 GPUs, bfloat16, batching by tokens), when it saves, and its reward parser's faults
(`shared.scoring.parser = "seed_train"` has them)."""


def with_preset(document: Mapping[str, Any]) -> dict[str, Any]:
    """A run's tables, completed by the preset that they name; others as they are."""
    learner = document.get("learner")
    if not isinstance(learner, dict) or learner.get("preset") != "seed":
        return dict(document)
    steps = learner.get("steps")
    warmup = {"warmup_steps": int(WARMUP_SHARE * steps)} if isinstance(steps, int) else {}
    return _beneath(_beneath(document, SEED), {"learner": {"optimizer": warmup}})


def _beneath(stated: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What is stated, and defaults where nothing is; tables are completed key by key."""
    filled = dict(stated)
    for key, value in defaults.items():
        if key not in filled:
            filled[key] = value
        elif isinstance(filled[key], dict) and isinstance(value, dict):
            filled[key] = _beneath(filled[key], value)
    return filled
