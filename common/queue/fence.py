"""The right to be a run's learner, in Redis: a lease, and the epoch that fences what it writes.

`services.learner.state.lease` says when it is taken; `common.queue.broker` sends through `run` and
`add` whatever only a run's latest learner may change.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from common.queue import scripts
from common.queue.connection import Connection
from common.queue.stream_entries import Command


@dataclass(frozen=True)
class Hold:
    """Who is a run's learner."""

    epoch: int
    """After `take`: of the one who asked, higher than that of any learner before; 0: somebody else
    has it. After `look`: of the latest learner; 0: there was none."""
    holder: str
    left_s: float
    """Until that lease ends."""

    def facts(self) -> dict[str, object]:
        """For a log line."""
        return {"holder": self.holder, "lease_left_s": round(self.left_s, 1)}


class RunFence:
    """One run's lease and epoch. Who never takes the run is of epoch 0, before any learner."""

    def __init__(self, connection: Connection, *, prefix: str, kept: Sequence[str]) -> None:
        """`prefix`: of the run's keys; `kept`: those that a live learner keeps from expiring."""
        self._connection = connection
        self._holder, self._epoch, self._kept = f"{prefix}:learner", f"{prefix}:epoch", kept
        self.epoch = 0
        """What we write is refused after a later one's."""

    async def take(self, holder: str, *, ttl_s: float, dead: str = "", at_least: int = 0) -> Hold:
        """Take the run, if it is free, and with it a new epoch.

        Args:
            holder: a name that no other process has.
            ttl_s: how long it stays ours without `renew`.
            dead: a holder that is known to have ended: its lease need not be waited for.
            at_least: no lower epoch than this one.
        """
        keys = (self._holder, self._epoch)
        epoch, held, left_ms = await self._connection.evaluate(
            scripts.HOLD_RUN, keys, holder, round(ttl_s * 1000), dead, at_least
        )
        self.epoch = int(epoch) or self.epoch
        return Hold(epoch=int(epoch), holder=str(held), left_s=int(left_ms) / 1000)

    async def look(self) -> Hold:
        """Who has the run, without taking it; holder "" when nobody has."""
        holder = await self._connection.run("GET", self._holder)
        epoch = await self._connection.run("GET", self._epoch)
        left_ms = int(await self._connection.run("PTTL", self._holder))
        return Hold(epoch=int(epoch or 0), holder=holder or "", left_s=max(0, left_ms) / 1000)

    async def renew(
        self, holder: str, *, epoch: int, ttl_s: float, patience_s: float | None = None
    ) -> bool:
        """Start the lease anew. False: another learner has the run, or has had it since."""
        arguments = (holder, epoch, round(ttl_s * 1000))
        keys = (self._holder, self._epoch, *self._kept)
        return bool(
            await self._connection.evaluate(
                scripts.RENEW_RUN, keys, *arguments, patience_s=patience_s
            )
        )

    async def drop(self, holder: str, *, patience_s: float | None = None) -> None:
        """Give the run up, if `holder` has it."""
        keys = (self._holder, self._epoch, *self._kept)
        await self._connection.evaluate(scripts.DROP_RUN, keys, holder, patience_s=patience_s)

    async def run(self, *commands: Command) -> None:
        """Commands of the learner, in one script.

        Raises:
            RunLostError: a later learner has the run; nothing was changed.
        """
        await self._connection.run(*self._fenced(commands))

    async def add(self, stream: str, entry_id: str, fields: tuple[str, ...]) -> bool:
        """Append to a stream; False if it has had that id, or a later one.

        Raises:
            RunLostError: as `run`.
        """
        return await self._connection.add(*self._fenced([("XADD", stream, entry_id, *fields)]))

    def _fenced(self, commands: Sequence[Command]) -> Command:
        words = json.dumps([[str(word) for word in command] for command in commands])
        return ("EVAL", scripts.FENCED, 1, self._epoch, self.epoch, words)
