"""One learner a run: `with RunLease(…) as lease`, and `lease.check()` before every step.

The lease is a key in Redis that a thread of this process renews, on a connection and event loop of
its own, because a training step may last longer than the key lives. A killed learner's lease runs
out by itself; its successor waits for that.
"""

import asyncio
import logging
import os
import secrets
import socket
import threading
from types import TracebackType
from typing import Self

from common.broker import Broker
from common.errors import QueueError

log = logging.getLogger(__name__)

TTL_S = 10.0


class RunLease:
    """The right to be the learner of a run, from `__enter__` to `__exit__`."""

    def __init__(
        self, redis_url: str, *, run_id: str, password: str | None = None, ttl_s: float = TTL_S
    ) -> None:
        self._redis_url = redis_url
        self._run_id = run_id
        self._password = password
        self._ttl_s = ttl_s
        self._me = f"{socket.gethostname()}, process {os.getpid()} ({secrets.token_hex(4)})"
        self._stop = threading.Event()
        self._usurper: str | None = None
        self._renewal = threading.Thread(target=self._renew, name="run-lease", daemon=True)

    def __enter__(self) -> Self:
        """Wait for a dead predecessor's lease to run out, then take it.

        Raises:
            QueueError: another learner lives, or Redis cannot be reached.
        """
        asyncio.run(self._acquire())
        self._renewal.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the lease up at once."""
        self._stop.set()
        self._renewal.join(timeout=self._ttl_s)

    def check(self) -> None:
        """Nothing while the lease is ours.

        Raises:
            QueueError: we were silent for longer than the lease and another learner took the run.
        """
        if self._usurper is not None:
            raise QueueError(
                f"run {self._run_id!r} was taken over by {self._usurper}: this learner was silent "
                f"for over {self._ttl_s:.0f} s; stop one of them"
            )

    async def _acquire(self) -> None:
        broker = self._broker()
        try:
            await broker.wait_ready()
            # A living holder renews three times in this while, a dead one's lease is gone after it.
            patience_s, pause_s = 1.2 * self._ttl_s, self._ttl_s / 20
            while (holder := await broker.hold_run(self._me, ttl_s=self._ttl_s)) != self._me:
                if patience_s <= 0:
                    raise QueueError(
                        f"run {self._run_id!r} already has a learner: {holder}; stop it, or choose "
                        "another shared.run_id"
                    )
                await asyncio.sleep(pause_s)
                patience_s -= pause_s
        finally:
            await broker.close()

    def _renew(self) -> None:
        asyncio.run(self._renew_until_stopped())

    async def _renew_until_stopped(self) -> None:
        broker = self._broker()
        try:
            while not await asyncio.to_thread(self._stop.wait, self._ttl_s / 4):
                try:
                    holder = await broker.hold_run(self._me, ttl_s=self._ttl_s)
                except QueueError as error:
                    log.warning("run lease not renewed", extra={"error": str(error)})
                    continue
                if holder != self._me:
                    self._usurper = holder
                    return
            await broker.drop_run(self._me)
        except QueueError as error:
            log.warning("run lease not given up", extra={"error": str(error)})
        finally:
            await broker.close()

    def _broker(self) -> Broker:
        return Broker(
            self._redis_url, run_id=self._run_id, password=self._password, outage_s=self._ttl_s
        )
