"""Which rows an epoch asks: few-shot subset, difficulty, and what the run itself found out.

    rows -> `fixed`: left out in all epochs -> `Judged` by trained groups -> left out of an epoch

A row whose answers are all right, or all wrong, has no advantage to teach by. What is left out is
said to the ledger, so that an audit knows every row. Pure but for what it remembers.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from common.config import Pool
from common.messages import Mode, Scored, ScoredGroup
from common.rows import Row

Finding = Literal["solved", "hopeless"]


class Judged(BaseModel):
    """What a row's answers came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    mode: Mode
    """In the other mode it may be another matter."""
    finding: Finding


class PoolState(BaseModel):
    """All that decides later epochs, and what was decided for earlier ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judged: Mapping[str, Judged] = {}
    """By row; only those with a finding."""
    left_out: Mapping[int, Mapping[str, Finding]] = {}
    """Epoch → row → why it is not asked there."""


class RowPool:
    """The rows of a run by epoch."""

    def __init__(self, settings: Pool, rows: Sequence[Row], *, seed: int, state: PoolState) -> None:
        """`seed`: shared.seed, where the pool has none of its own."""
        self._settings = settings
        self._judged = dict(state.judged)
        self._left_out = {epoch: dict(found) for epoch, found in state.left_out.items()}
        seed = seed if settings.subset_seed is None else settings.subset_seed
        self.fixed = _fixed(settings, rows, seed=seed)
        """Row → why it is asked in no epoch."""
        self._rows = [row.row_id for row in rows if row.row_id not in self.fixed]

    @property
    def state(self) -> PoolState:
        """What a checkpoint keeps."""
        return PoolState(judged=dict(self._judged), left_out=dict(self._left_out))

    def asks(self, row_id: str, *, epoch: int) -> bool:
        """Whether a row is asked in an epoch that was begun."""
        return row_id not in self.fixed and row_id not in self._left_out.get(epoch, {})

    def begin(self, epoch: int, *, mode: Mode) -> None:
        """Decide what an epoch leaves out; where that would be all, it leaves out nothing."""
        oldest = epoch - self._settings.rest_epochs
        found: dict[str, Finding] = {
            row_id: judged.finding
            for row_id in self._rows
            if (judged := self._judged.get(row_id)) and judged.epoch >= oldest
            if judged.mode == mode
        }
        if found and len(found) < len(self._rows):
            self._left_out[epoch] = found

    def judge(self, group: ScoredGroup) -> None:
        """Remember what the answers of a trained group came to."""
        found = self._finding(group)
        if found is None:
            self._judged.pop(group.row_id, None)
        else:
            self._judged[group.row_id] = Judged(epoch=group.epoch, mode=group.mode, finding=found)

    def _finding(self, group: ScoredGroup) -> Finding | None:
        scores = _scores(group)
        solved, hopeless = self._settings.drop_solved, self._settings.drop_hopeless
        if scores and solved is not None and min(scores) >= solved:
            return "solved"
        if scores and hopeless is not None and max(scores) <= hopeless:
            return "hopeless"
        return None


def _scores(group: ScoredGroup) -> list[float]:
    """IoU, or reward where there is none, of the policy's answers."""
    return [
        verdict.parts.get("iou", verdict.reward)
        for sample, verdict in zip(group.samples, group.verdicts, strict=True)
        if sample.provenance == "policy" and isinstance(verdict, Scored)
    ]


def _fixed(settings: Pool, rows: Sequence[Row], *, seed: int) -> dict[str, str]:
    found = {row.row_id: why for row in rows if (why := _too_easy_or_hard(settings, row))}
    if settings.subset is None:
        return found
    left = [row.row_id for row in rows if row.row_id not in found]
    # A shuffle, not a sample: a smaller subset is the beginning of a larger one.
    random.Random(f"subset:{seed}").shuffle(left)
    return found | dict.fromkeys(left[settings.subset :], "not in the subset")


def _too_easy_or_hard(settings: Pool, row: Row) -> str | None:
    least, most = settings.min_difficulty, settings.max_difficulty
    if least is None and most is None:
        return None
    if row.difficulty is None:
        return "no difficulty"
    if least is not None and row.difficulty < least:
        return f"difficulty {row.difficulty:g} below {least:g}"
    if most is not None and row.difficulty > most:
        return f"difficulty {row.difficulty:g} above {most:g}"
    return None
