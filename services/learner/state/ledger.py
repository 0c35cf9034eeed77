"""The run's ledger on disk: `Ledger(path, size=…)`, one line an event (`common/queue/ledger.py`).

Part of the checkpoint's state: `seal` ends what a checkpoint contains and gives its size, and a
resumed run cuts the file there. Rank 0 alone writes.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.messages import PromptRequest, Scored, ScoredGroup
from common.queue.ledger import (
    CheckpointLine,
    Fate,
    FateLine,
    LeftOutLine,
    Line,
    Prompt,
    RejectedLine,
    RunLine,
    StepLine,
    TrainedGroup,
    read_ledger,
)
from services.learner.feed import FeedState
from services.learner.rows import Rejection
from services.learner.state.durable import append, cut_torn_line, sync

logger = logging.getLogger(__name__)


class Ledger:
    """Open for appending."""

    def __init__(self, path: Path, *, size: int) -> None:
        """Cut the file to `size` bytes: 0 for a new run, else as the checkpoint has it."""
        self._path = path
        with path.open("ab") as file:
            found = file.tell()
            file.truncate(min(size, found))
        sync(path)
        if found < size:
            cut_torn_line(path)  # or the next line would be glued to it
            logger.error(
                "the ledger lacks lines that the checkpoint contains: an audit will name rows",
                extra={"path": str(path), "found_bytes": found, "wanted_bytes": size},
            )
        lines = list(read_ledger(path)) if size else []
        self._epochs = {line.epoch for line in lines if isinstance(line, LeftOutLine)}
        self._rejected = {line.row_id for line in lines if isinstance(line, RejectedLine)}

    def begin(self, *, run_id: str, rows: Path, feed: FeedState) -> None:
        """The first line of a new run."""
        self._write(
            RunLine(run_id=run_id, tag=feed.tag, rows=str(rows), rows_sha256=feed.rows_sha256)
        )

    def step(
        self, groups: Sequence[ScoredGroup], *, step: int, learner_epoch: int, applied: bool
    ) -> None:
        """A step that was done."""
        trained = tuple(_trained(group) for group in groups)
        self._write(
            StepLine(step=step, learner_epoch=learner_epoch, applied=applied, groups=trained)
        )

    def fate(self, fate: Fate, request: PromptRequest, *, reason: str, step: int) -> None:
        """What became of a prompt while `step` was waited for."""
        prompt = _prompt(request).model_dump()
        self._write(FateLine(**prompt, step=step, fate=fate, reason=reason))

    def rejected(self, rejections: Sequence[Rejection]) -> None:
        """Rows that turned out unusable; those that stand here already are left out."""
        for rejection in rejections:
            if rejection.row_id not in self._rejected:
                self._rejected.add(rejection.row_id)
                self._write(RejectedLine(row_id=rejection.row_id, reason=rejection.reason))

    def left_out(self, epoch: int | None, rows: Mapping[str, str]) -> None:
        """Rows that an epoch does not ask, None: all epochs; an epoch that stands here stays."""
        if rows and epoch not in self._epochs:
            self._epochs.add(epoch)
            self._write(LeftOutLine(epoch=epoch, rows=dict(rows)))

    def seal(self, step: int, feed: FeedState) -> int:
        """What stands here is about to be part of a checkpoint; returns its size in bytes."""
        self.rejected(feed.rejected)
        for epoch, rows in feed.pool.left_out.items():
            self.left_out(epoch, rows)
        outstanding = tuple(_prompt(request) for request in feed.outstanding)
        self._write(
            CheckpointLine(step=step, epoch=feed.epoch, fed=feed.fed, outstanding=outstanding)
        )
        return os.path.getsize(self._path)

    def _write(self, line: Line) -> None:
        append(self._path, line.model_dump_json(), synced=True)


def _prompt(request: PromptRequest) -> Prompt:
    return Prompt(prompt_id=request.prompt_id, row_id=request.row_id, epoch=request.epoch)


def _trained(group: ScoredGroup) -> TrainedGroup:
    versions = [span.version for sample in group.samples for span in sample.version_spans]
    rewards = (v.reward if isinstance(v, Scored) else None for v in group.verdicts)
    return TrainedGroup(
        prompt_id=group.prompt_id,
        row_id=group.row_id,
        epoch=group.epoch,
        versions=(min(versions), max(versions)) if versions else None,
        replica=group.replica,
        rewards=tuple(rewards),
    )
