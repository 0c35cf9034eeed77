"""A queue whose jobs come in piles: who takes one job of a pile gets the rest of it, if he is free.

    jobs -> Piles(jobs, pile_of=…) -> take(worker), put_back(job), done(job) -> drained()

The queries of one clip are such a pile: the replica that has its frames and its prefix in a cache
answers the next one for less. Nobody waits for a pile, though: who finds nothing of his own and
nothing new helps another. For one event loop. Used by `jobs.asking.replicas.Fleet`.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

Job = TypeVar("Job")
Numbered = tuple[int, Job]
"""A job and its place in the order of the jobs."""


class Piles(Generic[Job]):
    """Jobs that wait, in their order as far as piles allow."""

    def __init__(self, jobs: Iterable[Job], *, pile_of: Callable[[Job], Hashable]) -> None:
        """`pile_of`: equal for jobs that belong together."""
        self._pile_of = pile_of
        self._waiting: dict[Hashable, list[Numbered[Job]]] = {}
        for number, job in enumerate(jobs):
            self._waiting.setdefault(pile_of(job), []).append((number, job))
        self._new = deque(self._waiting)
        """Piles that nobody has begun, in the order of their first jobs."""
        self._begun: dict[Hashable, deque[Hashable]] = {}
        """Worker → the piles he began that are not empty yet, the oldest first."""
        self._unfinished = sum(map(len, self._waiting.values()))
        self._more = asyncio.Event()
        self._drained = asyncio.Event()
        if not self._unfinished:
            self._drained.set()

    async def take(self, worker: Hashable) -> Numbered[Job]:
        """The next job for a worker; waits while all are in work."""
        while (taken := self._next(worker)) is None:
            self._more.clear()
            await self._more.wait()
        return taken

    def put_back(self, numbered: Numbered[Job]) -> None:
        """A job that was taken and not done; the next who is free takes it."""
        key = self._pile_of(numbered[1])
        if key in self._waiting:
            heapq.heappush(self._waiting[key], numbered)
        else:
            self._waiting[key] = [numbered]
            self._new.appendleft(key)
        self._more.set()

    def done(self) -> None:
        """A job that was taken will not be put back."""
        self._unfinished -= 1
        if not self._unfinished:
            self._drained.set()

    async def drained(self) -> None:
        """Until every job is done."""
        await self._drained.wait()

    def _next(self, worker: Hashable) -> Numbered[Job] | None:
        own = self._begun.setdefault(worker, deque())
        if not own and self._new:
            own.append(self._new.popleft())
        for piles in (own, *self._begun.values()):
            if piles:
                return self._pop(piles)
        return None

    def _pop(self, piles: deque[Hashable]) -> Numbered[Job]:
        key = piles[0]
        taken = heapq.heappop(self._waiting[key])
        if not self._waiting[key]:
            del self._waiting[key]
            piles.popleft()
        return taken
