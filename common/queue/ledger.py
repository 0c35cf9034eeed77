"""Lines of a run's `ledger.jsonl`: which prompt was trained on in which step, and what of the rest.

The learner writes them (`services/learner/state/ledger.py`), `tempsamp audit` reads them. Each is
an object with a `kind`. A line belongs to the run's past once a checkpoint line follows, and that
checkpoint is whole: what comes after the last such line is done again by a resumed run, which cuts
it. A checkpoint's line is written when the checkpoint is begun.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from common.queue.lines import read_lines

FILE = "ledger.jsonl"
WANTED = "a line of a run's ledger"
REMEDY = (
    "bring back a copy of the file, or start a new run in another learner.run_dir: what a damaged "
    "ledger does not say cannot be proven"
)

Fate = Literal["stale", "refed", "returned", "dead"]
"""stale, refed (Redis had lost it), returned (without verdicts, or not to be trained on): the
prompt was asked again; dead: given up."""
GIVEN_UP: frozenset[Fate] = frozenset({"dead"})


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompt(_Line):
    """A row in an epoch of the data."""

    prompt_id: str
    row_id: str
    epoch: int


class TrainedGroup(Prompt):
    """A group of a step."""

    versions: tuple[int, int] | None
    """Oldest and newest policy version that wrote a token of it; None without policy samples."""
    replica: str
    rewards: tuple[float | None, ...]
    """One a sample, an injected one last; None: without a verdict."""


class RunLine(_Line):
    """The first line."""

    kind: Literal["run"] = "run"
    run_id: str
    tag: str
    """Start of this run's prompt ids."""
    rows: str
    """Path of the row file."""
    rows_sha256: str


class StepLine(_Line):
    """What one optimizer step was made of."""

    kind: Literal["step"] = "step"
    step: int
    learner_epoch: int
    """Fencing epoch of the learner that did it."""
    applied: bool
    """False: weights stayed as they were: a gradient not finite, or nothing to learn."""
    groups: tuple[TrainedGroup, ...]


class FateLine(Prompt):
    """What became of a prompt, or of a group of it, that was not trained on."""

    kind: Literal["fate"] = "fate"
    step: int
    """That was waited for."""
    fate: Fate
    reason: str


class RejectedLine(_Line):
    """A row that cannot become a prompt, in this epoch and all later ones."""

    kind: Literal["rejected"] = "rejected"
    row_id: str
    reason: str


class LeftOutLine(_Line):
    """Rows that the pool (learner.pool) does not ask."""

    kind: Literal["left_out"] = "left_out"
    epoch: int | None
    """None: in all epochs."""
    rows: dict[str, str]
    """Row → why."""


class CheckpointLine(_Line):
    """Everything above is part of a checkpoint."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    epoch: int
    """Of the data: all rows of earlier ones have been fed."""
    fed: int = 0
    """Rows of this epoch that have become prompts so far, at least."""
    outstanding: tuple[Prompt, ...]
    """Fed and not trained on."""


Line = RunLine | StepLine | FateLine | RejectedLine | LeftOutLine | CheckpointLine
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


def read_ledger(path: Path) -> Iterator[Line]:
    """Lines of a ledger, without a last one that a crash cut.

    Raises:
        ConfigError: there is no ledger, or a line that is none; names file and line.
    """
    return read_lines(path, _LINE.validate_json, wanted=WANTED, remedy=REMEDY)
