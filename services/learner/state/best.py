"""Which version answered the held-out rows best: `validation.jsonl` → the checkpoint that is kept.

`train.py` saves a version that is the best so far, `checkpoint.py` keeps its checkpoint beside the
newest ones and names it in `checkpoints/best.json`. The record of validations is what a resumed run
compares with, so nothing else has to be restored.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from common.queue.lines import read_figures
from services.learner.state.durable import replace_text

FILE = "best.json"
METRIC = "val/miou"
VALIDATIONS = "validation.jsonl"


class Best(BaseModel):
    """Content of `best.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    metric: str = METRIC
    value: float


def best_so_far(run_dir: Path) -> Best | None:
    """The version with the highest mean IoU, the first of equals; the start is no version of ours.

    None before the first trained version was validated.
    """
    lines = read_figures(run_dir / VALIDATIONS, by="policy_version")
    found = [
        Best(step=line["policy_version"], value=line[METRIC])
        for line in lines
        if line["policy_version"] > 0 and METRIC in line
    ]
    return max(found, key=lambda best: best.value, default=None)


def is_best(run_dir: Path, version: int) -> bool:
    """Whether no validated version is better."""
    best = best_so_far(run_dir)
    return best is not None and best.step == version


def name_best(checkpoints: Path, best: Best) -> None:
    """Write `best.json`, if that checkpoint is there."""
    if (checkpoints / f"step-{best.step:06d}").is_dir():
        replace_text(checkpoints / FILE, best.model_dump_json())
