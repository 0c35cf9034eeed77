"""The learner's rows: JSONL file → checked `Row`s; what cannot be used → `RejectedRows`.

`feed.py` turns rows into prompts; clips are probed when their row is fed.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from common.errors import ConfigError
from common.rows import Row, TrainerRow, UnusableRowError
from services.learner.state.durable import append, replace_text

log = logging.getLogger(__name__)

LOGGED_PER_REASON = 20
"""Log lines per reason; the file has all of them."""


class Rejection(BaseModel):
    """Why a row is not trained on; a line of `rejected_rows.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row_id: str
    reason: str
    detail: str


class GivenUp(BaseModel):
    """A prompt that ended without being trained on; a line of `given_up_rows.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_id: str
    row_id: str
    epoch: int
    reason: str
    replica: str
    """Who had it last."""


class GivenUpRows:
    """Files what is given up; starts the file anew with what was given up before.

    A disk that takes no line raises CheckpointError, here and in `RejectedRows`: no list is short.
    """

    def __init__(self, path: Path, before: Sequence[GivenUp]) -> None:
        self._path = path
        self._all = list(before)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, "".join(item.model_dump_json() + "\n" for item in before))

    def add(self, item: GivenUp) -> None:
        """At its end."""
        self._all.append(item)
        append(self._path, item.model_dump_json())
        log.error("prompt given up", extra=item.model_dump())

    @property
    def all(self) -> tuple[GivenUp, ...]:
        """In the order they came."""
        return tuple(self._all)


class RejectedRows:
    """Counts, logs and files what is rejected; starts the file anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_row: dict[str, Rejection] = {}
        self.counts: Counter[str] = Counter()
        """Rejected rows by reason."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, "")

    def add(self, rejection: Rejection) -> None:
        """Once a row; a second reason for the same row changes nothing."""
        if rejection.row_id in self._by_row:
            return
        self._by_row[rejection.row_id] = rejection
        self.counts[rejection.reason] += 1
        append(self._path, rejection.model_dump_json())
        if self.counts[rejection.reason] <= LOGGED_PER_REASON:
            log.warning("row rejected", extra=rejection.model_dump())

    @property
    def all(self) -> tuple[Rejection, ...]:
        """In the order they came."""
        return tuple(self._by_row.values())

    def __contains__(self, row_id: object) -> bool:
        return row_id in self._by_row

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in self.counts.most_common())
        return f"{reasons or 'none'} (listed in {self._path})"


def load_rows(
    path: str | os.PathLike[str],
    *,
    video_root: str | os.PathLike[str],
    rejected: RejectedRows,
) -> list[Row]:
    """Read all usable rows; the others go to `rejected`. Blank lines are nothing.

    Raises:
        ConfigError: the file cannot be read, or no row of it is usable; names the reasons.
    """
    rows = []
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    rows.append(
                        TrainerRow.parse(line).check(row_id=str(number), video_root=video_root)
                    )
                except UnusableRowError as error:
                    rejected.add(
                        Rejection(row_id=str(number), reason=error.reason, detail=error.detail)
                    )
    except OSError as error:
        raise ConfigError(f"learner.rows: {path}: {error.strerror or error}") from error
    if not rows:
        raise ConfigError(f"learner.rows: {path}: no usable row; rejected: {rejected}")
    if rejected.all:
        log.warning("rows rejected", extra={"counts": dict(rejected.counts), "kept": len(rows)})
    return rows
