"""Which failure a run shows: the figures of five seeds that failed or did not, and edges."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.demo.echo import echo

NONE = "Neither a collapse"


def summary(**changed: Any) -> dict[str, Any]:
    """Figures of raw injection with plenty of labels, which is none of the failures."""
    return {
        "method": "mixed",
        "num_samples": 8,
        "entropy_start": 0.45,
        "entropy_end": 0.35,
        "best_of_g_start": 0.586,
        "best_of_g_end": 0.708,
        "sampled_miou_end": 0.471,
        "train_iou_end": 0.48,
        "contamination": 0.4,
        "sign_flip_share": 0.1,
        **changed,
    }


@pytest.mark.parametrize(
    ("changed", "starts"),
    [
        ({}, [NONE]),
        # GRPO, the mean of its five seeds (docs/compare.md).
        (
            {"entropy_end": 0.116, "best_of_g_end": 0.579, "sampled_miou_end": 0.506},
            ["Collapse: entropy is 0.12 nats per token (0.45 at the start)"],
        ),
        ({"entropy_end": 0.116}, [NONE]),
        (
            {"entropy_end": 0.116, "best_of_g_end": 0.579, "sampled_miou_end": 0.506}
            | {"entropy_start": 0.15},
            [NONE],
        ),
        (
            {"entropy_end": 5.5, "best_of_g_end": 0.0, "sampled_miou_end": 0.0}
            | {"train_iou_end": 0.0},
            ["Answers lost: the best of 8 answers has IoU 0.00 (0.59 at the start)"],
        ),
        ({"train_iou_end": 0.78}, ["Imitation without transfer: answers to training rows have"]),
        ({"train_iou_end": 0.77}, [NONE]),
        ({"contamination": 1.4, "sign_flip_share": 0.35}, ["Ground truth drowns the policy: it"]),
        ({"contamination": 1.4}, [NONE]),
        ({"contamination": 1.4, "sign_flip_share": 0.35, "method": "sft"}, [NONE]),
        ({"contamination": None, "sign_flip_share": None}, [NONE]),
        (
            {"train_iou_end": 0.9, "contamination": 2.0, "sign_flip_share": 0.5},
            ["Imitation", "Ground truth drowns"],
        ),
        (
            {"entropy_end": None, "train_iou_end": None, "contamination": None},
            ["Nothing was sampled and no training group was measured"],
        ),
    ],
)
def test_a_run_says_which_failure_it_shows(changed: dict[str, Any], starts: list[str]) -> None:
    found = echo(summary(**changed))
    assert len(found) == len(starts)
    assert all(line.startswith(start) for line, start in zip(found, starts, strict=True))


RECORDS = Path(__file__).resolve().parents[4] / "docs/bench/compare"
REGIMES = ("full", "few", "noisy", "long", "several")
FAILURES = {
    ("few", "sft"): "Imitation",
    ("long", "mixed"): "Ground truth drowns",
    ("long", "tempsamp"): "Ground truth drowns",
    **{(regime, "grpo"): "Collapse" for regime in REGIMES},
}
"""GRPO collapses everywhere, SFT learns few rows by heart, and where no answer of the policy hits,
injected truths decide alone."""
LOST = Path("long/grpo-4.json")
"""From step 25 on none of its answers could be read."""
FILES = [file for regime in REGIMES for file in RECORDS.glob(f"{regime}/*")]


@pytest.mark.parametrize("file", sorted(FILES), ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_trial_runs_support_the_thresholds(file: Path) -> None:
    record = json.loads(file.read_text(encoding="utf-8"))
    last, mechanism = record["last"], record["mechanism"]
    figures = {f"{key}_end": last[key] for key in ("entropy", "best_of_g", "sampled_miou")}
    found = echo(
        {
            "method": record["method"],
            "num_samples": record["num_samples"],
            "entropy_start": record["start"]["entropy"],
            "best_of_g_start": record["start"]["best_of_g"],
            **figures,
            **{key: mechanism.get(key) for key in ("contamination", "sign_flip_share")},
            "train_iou_end": mechanism.get("train_iou_end"),
        }
    )
    (line,) = found
    failure = FAILURES.get((record["regime"], record["method"]), NONE)
    assert line.startswith("Answers lost" if file == RECORDS / LOST else failure)
