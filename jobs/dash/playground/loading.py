"""A local replica for all who ask: loaded when it is first wanted, once, and ended at the end.

    Loaded(fetch, folder=…).ready(tell) -> LocalReplica

Everybody who waits hears what it is at; the last one who no longer waits ends the loading.
Neighbours: `jobs.local.replica` is the replica, `.models` asks it.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from common.errors import ConfigError, TempSampError
from jobs.local.replica import LocalReplica, started

SAY_S = 0.5
SAID = re.compile(r"INFO [\d-]+ [\d:]+ \[\S+\] (.*)$", re.MULTILINE)
"""A line of vLLM's log."""
SHOWN_CHARS = 140


class Loaded:
    """At most one replica; all but `close` are called from one event loop, in the main thread."""

    def __init__(
        self,
        fetch: Callable[[Callable[[str], None]], Path],
        *,
        folder: Callable[[], Path],
        beside: int,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            fetch: finds the checkpoint, in a thread; is told whom to tell.
            folder: makes one for its log.
            beside: how many such replicas share this machine.
        """
        self._fetch = fetch
        self._folder = folder
        self._beside = beside
        self._owned = contextlib.ExitStack()
        self._replica: LocalReplica | None = None
        self._is_loaded = False
        self._getting: asyncio.Task[LocalReplica] | None = None
        self._waiting = 0
        self._one_at_a_time = asyncio.Lock()
        self._said = ""
        self._failure = ""

    @property
    def state(self) -> Literal["asleep", "loading", "ready", "failed"]:
        """What it is now."""
        if self._getting is not None and not self._getting.done():
            return "ready" if self._is_loaded else "loading"
        if self._is_loaded:
            return "ready"
        return "failed" if self._failure else "asleep"

    @property
    def says(self) -> str:
        """The last words of who loads, or why it failed."""
        if self.state == "failed":
            return self._failure
        if self._replica is not None:
            lines = SAID.findall(self._replica.child.last_words)
            self._said = lines[-1][:SHOWN_CHARS] if lines else "the engine starts"
        return self._said

    async def ready(self, tell: Callable[[str], None]) -> LocalReplica:
        """The replica, once it answers.

        Raises:
            ConfigError: there is no such checkpoint.
            ChildError, EngineError: it does not load; the next call tries again.
        """
        if self._getting is None or self._getting.done():
            self._getting = asyncio.create_task(self._get())
        getting = self._getting
        self._waiting += 1
        try:
            while not getting.done():
                await asyncio.wait([getting], timeout=SAY_S)
                if not getting.done() and not self._is_loaded:
                    tell(f"loading: {self.says}")
            return getting.result()
        finally:
            self._waiting -= 1
            if not self._waiting and not getting.done() and not self._is_loaded:
                getting.cancel()
                self._getting = None

    async def unload(self, *, failure: str = "") -> None:
        """End it; the next call of `ready` loads it anew."""
        async with self._one_at_a_time:
            await self._end(failure)

    def close(self) -> None:
        """End it, without an event loop."""
        self._owned.close()
        self._replica, self._is_loaded = None, False

    async def _get(self) -> LocalReplica:
        async with self._one_at_a_time:
            try:
                if self._replica is None:
                    self._said, self._failure = "looking for the checkpoint", ""
                    self._replica = await self._start()
                elif self._replica.child.has_failed:  # since the last question
                    self._is_loaded = False
                await self._replica.ready()
            except asyncio.CancelledError:
                await self._end("")
                raise
            except (TempSampError, ConfigError) as error:
                await self._end(str(error))
                raise
            self._is_loaded = True
            return self._replica

    async def _start(self) -> LocalReplica:
        checkpoint = await asyncio.to_thread(self._fetch, self._say)
        # Not in a thread: the kernel ends children with the thread that started them.
        return self._owned.enter_context(
            started(checkpoint, run_file=None, folder=self._folder(), beside=self._beside)
        )

    def _say(self, text: str) -> None:
        self._said = text

    async def _end(self, failure: str) -> None:
        """Processes take their time, so a thread waits for them; what is left is quick."""
        replica, self._replica, self._is_loaded = self._replica, None, False
        self._failure = failure
        if replica is not None:
            await asyncio.to_thread(replica.children.stop)
        self._owned.close()
