"""How many requests of /v1/generate are in work beside the ring's prompts; the rest wait or go.

    async with gate.entered():  # Problem 429 with Retry-After when too many wait already

They share the engine and the memory for frames with the ring. Waiting is first come, first served;
callers that get 429 come again (`jobs.asking.replicas` does).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from common.rest.problems import Problem

RETRY_AFTER_S = 1


class Gate:
    """Room for so many at once, and so many that wait."""

    def __init__(self, *, concurrent: int, queued: int) -> None:
        """`rollout.concurrent_generates` and `rollout.queued_generates`."""
        self._room = asyncio.Semaphore(concurrent)
        self._concurrent = concurrent
        self._queued = queued
        self.in_work = 0
        self.waiting = 0

    @contextlib.asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """In work inside.

        Raises:
            Problem: 429, too many wait.
        """
        await self._enter()
        self.in_work += 1
        try:
            yield
        finally:
            self.in_work -= 1
            self._room.release()

    async def _enter(self) -> None:
        if self._room.locked() and self.waiting >= self._queued:
            raise Problem(
                429,
                f"found {self.in_work} requests in work and {self.waiting} waiting, wanted at most "
                f"{self._concurrent} (rollout.concurrent_generates) and {self._queued} "
                "(rollout.queued_generates): come again",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        self.waiting += 1
        try:
            await self._room.acquire()
        finally:
            self.waiting -= 1
