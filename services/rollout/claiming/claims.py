"""A claimed prompt in work: its lease, its deadline, and whether others are worked on beside it.

`worker` enters `Claims.held(claim)` around everything it does with a prompt.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator

from common.errors import EngineError, TempSampError
from common.queue.broker import Broker, ClaimedPrompt

logger = logging.getLogger(__name__)

GIVE_UP_AFTER = 2.0
"""Deadlines after which the work itself is ended."""


class InWork:
    """One prompt in work."""

    def __init__(self, claim: ClaimedPrompt, *, deadline_s: float) -> None:
        self.claim = claim
        self.deadline_s = deadline_s
        self.is_done = False
        self._since_s: float | None = None

    @property
    def overdue_in_s(self) -> float:
        """Until the deadline; infinite while nothing that has one is going on."""
        if self._since_s is None:
            return float("inf")
        return self._since_s + self.deadline_s - time.monotonic()

    @contextlib.asynccontextmanager
    async def timed(self, what: str) -> AsyncIterator[None]:
        """Work that has a deadline: decoding or generating, not waiting for others.

        Raises:
            EngineError: it went on for `GIVE_UP_AFTER` deadlines.
        """
        limit_s = GIVE_UP_AFTER * self.deadline_s
        with self._since_now():
            try:
                async with asyncio.timeout(limit_s) as limit:
                    yield
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise EngineError(
                    f"{what} took more than {limit_s:.0f} s, wanted at most "
                    f"{self.deadline_s:.0f} s (rollout.prompt_deadline_s)"
                ) from error

    @contextlib.contextmanager
    def _since_now(self) -> Iterator[None]:
        self._since_s = time.monotonic()
        try:
            yield
        finally:
            self._since_s = None


class Claims:
    """The claims of one replica."""

    def __init__(self, broker: Broker, *, lease_s: float, deadline_s: float) -> None:
        self._broker = broker
        self._lease_s = lease_s
        self._deadline_s = deadline_s
        self._changed = asyncio.Condition()
        self._num_held = 0
        self._lone: ClaimedPrompt | None = None

    @property
    def num_held(self) -> int:
        """Prompts in work."""
        return self._num_held

    @contextlib.asynccontextmanager
    async def held(self, claim: ClaimedPrompt) -> AsyncIterator[InWork | None]:
        """Keep a claim ours while we work on it; None: it was given back, do nothing.

        A prompt that is to be worked on `alone` waits until the others are done; what is claimed
        meanwhile goes back.
        """
        if self._lone is not None:
            await self._broker.release(claim)
            yield None
            return
        work = InWork(claim, deadline_s=self._deadline_s)
        renewal = asyncio.create_task(self._renew(work))
        try:
            async with self._turn(claim):
                yield work
        finally:
            work.is_done = True  # redis-py may swallow one cancellation
            renewal.cancel()
            with contextlib.suppress(asyncio.CancelledError, TempSampError):
                await renewal

    @contextlib.asynccontextmanager
    async def _turn(self, claim: ClaimedPrompt) -> AsyncIterator[None]:
        if claim.alone:
            self._lone = claim
            logger.warning(
                "replicas died over this prompt: it is worked on alone",
                extra={"prompt_id": claim.request.prompt_id},
            )
        self._num_held += 1
        try:
            if claim.alone:
                async with self._changed:
                    await self._changed.wait_for(lambda: self._num_held == 1)
            yield
        finally:
            self._num_held -= 1
            if self._lone is claim:
                self._lone = None
            async with self._changed:
                self._changed.notify_all()

    async def _renew(self, work: InWork) -> None:
        """Until the deadline; then another replica gets the prompt as well."""
        while work.overdue_in_s > 0 and not work.is_done:
            pause_s = min(self._lease_s / 3, self._deadline_s / 4, work.overdue_in_s)
            await asyncio.sleep(max(0.01, pause_s))
            if work.is_done or not await self._broker.renew(work.claim):
                return
        if work.is_done:
            return
        logger.warning(
            "prompt is over its deadline: another replica may have it too",
            extra={
                "prompt_id": work.claim.request.prompt_id,
                "deadline_s": work.deadline_s,
            },
        )
        await self._broker.hand_over(work.claim)
