"""When a run is saved: `save(version)` begins, `finish` makes it count once it is on the disk.

Between `train`'s loop on one side, `checkpoint.py` and the desk on the other: what is acknowledged
in Redis is what that checkpoint contains, not what was trained while it was written.
"""

import contextlib
import functools
import time
from collections.abc import Iterator

from services.learner.desk import Desk
from services.learner.state.checkpoint import Checkpoints, rng_state


class Saving:
    """Construct and call on every rank."""

    def __init__(self, checkpoints: Checkpoints, *, desk: Desk | None, version: int | None) -> None:
        """`version`: of the checkpoint that the run goes on from."""
        self._checkpoints, self._desk, self._version = checkpoints, desk, version
        self._held_s = 0.0

    def save(self, version: int) -> None:
        """Begin a checkpoint, once the one before is whole; a collective.

        Raises:
            CheckpointError: one of the two cannot be written.
        """
        if version == self._version:
            return
        with self._holding():
            self._checkpoints.finish(wait=True)
            if self._desk is None:
                self._checkpoints.begin(None)
            else:
                self._checkpoints.begin(
                    self._desk.state(version, rng=rng_state()),
                    confirm=self._desk.confirm,
                    whole=functools.partial(self._desk.acknowledge, self._desk.intake.done),
                )
        self._version = version

    def finish(self, *, wait: bool = False) -> None:
        """As `Checkpoints.finish`; a collective."""
        with self._holding():
            self._checkpoints.finish(wait=wait)

    def figures(self) -> dict[str, float]:
        """What saving has cost since they were last asked for, and what a write takes beside it."""
        held_s, self._held_s = self._held_s, 0.0
        write_s = self._checkpoints.last_write_s
        figures = {} if write_s is None else {"learner/checkpoint_write_s": write_s}
        return {"learner/checkpoint_stall_s": held_s, **figures}

    @contextlib.contextmanager
    def _holding(self) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self._held_s += time.monotonic() - start
