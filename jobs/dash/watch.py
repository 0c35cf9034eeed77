"""The live side: what a run's services say now, and a stream of what changed in its folder.

    Watch(folder).fleet() -> `jobs.fleet.services.look`, asked once for all who look
    events(folder, watch) -> server-sent events: `changed`, `fleet`
    EventStream(events, ending) -> an answer, no longer than the dash

A finished run has no services; who does not answer is asked again ever more rarely.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator

from pydantic import BaseModel
from starlette.responses import StreamingResponse

from common.errors import ConfigError, TempSampError
from common.queue.access import REDIS_URL
from jobs.dash.folder import REDIS_OPTION, RunFolder
from jobs.fleet.services import Fleet, look, url_of_learner

logger = logging.getLogger(__name__)

FRESH_S = 3.0
"""An answer is good for so long, however many pages ask."""
FIRST_REST_S = 5.0
LONGEST_REST_S = 60.0
"""Between two questions to services that do not answer."""
POLL_S = 1.0
BEAT_S = 15.0
"""Between two lines on a quiet stream: proxies close what says nothing."""


class Live(BaseModel):
    """What the services say, or why they say nothing."""

    fleet: Fleet | None = None
    silent: str | None = None
    asked: bool = True
    """False before the first answer, which takes seconds where Redis is away."""


class Watch:
    """The services of one run."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._seen = Live(asked=False)
        self._next_s = 0.0
        self._rest_s = FIRST_REST_S
        self._lock = asyncio.Lock()

    @property
    def seen(self) -> Live:
        """What they said last."""
        return self._seen

    async def fleet(self) -> Live:
        """What they say now, or said a moment ago."""
        async with self._lock:
            if time.monotonic() >= self._next_s:
                self._seen = await self._ask()
                there = self._seen.fleet is not None
                self._rest_s = FIRST_REST_S if there else min(2 * self._rest_s, LONGEST_REST_S)
                self._next_s = time.monotonic() + (FRESH_S if there else self._rest_s)
            return self._seen

    async def _ask(self) -> Live:
        run = await asyncio.to_thread(self._folder.run)
        if run is None:
            return Live(silent="the run folder has no settings that this version reads")
        try:
            knob = REDIS_URL if self._folder.redis_url is None else REDIS_OPTION
            fleet = await look(run, learner_url=url_of_learner(run.learner), redis_knob=knob)
        except (TempSampError, ConfigError) as error:
            return Live(silent=str(error))
        if not fleet.is_there:
            return Live(silent=f"no replica and no learner of run {run.shared.run_id!r} answers")
        return Live(fleet=fleet)


async def events(
    folder: RunFolder, watch: Watch, *, poll_s: float = POLL_S, live: bool = True
) -> AsyncIterator[str]:
    """Server-sent events until the caller leaves.

    Args:
        folder: the run.
        watch: its services.
        poll_s: between two looks at the folder.
        live: whether services are asked too.
    """
    marks = folder.marks()
    said: str | None = None
    spoke_s = time.monotonic()
    yield event("hello", {"run": folder.name})
    while True:
        if live and (now := (await watch.fleet()).model_dump_json()) != said:
            said, spoke_s = now, time.monotonic()
            yield event("fleet", json.loads(now))
        if (found := folder.marks()) != marks:
            marks, spoke_s = found, time.monotonic()
            steps = folder.metrics().steps
            yield event("changed", {"step": steps[-1] if steps else 0})
        if time.monotonic() - spoke_s > BEAT_S:
            spoke_s = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(poll_s)


class Ending:
    """That the dash ends: streams end with it, by themselves, and are not cut off."""

    def __init__(self) -> None:
        self._steps: set[asyncio.Task[str | None]] = set()
        self._has_come = False

    def now(self) -> None:
        """In the loop's thread."""
        self._has_come = True
        for step in self._steps:
            step.cancel()

    async def until(self, stream: AsyncIterator[str]) -> AsyncIterator[str]:
        """The stream, to its end or this one."""
        while not self._has_come:
            step = asyncio.create_task(_next(stream))
            self._steps.add(step)
            try:
                found = await step
            except asyncio.CancelledError:
                if self._has_come:
                    return
                raise  # the caller left
            finally:
                self._steps.discard(step)
            if found is None:
                return
            yield found


class EventStream(StreamingResponse):
    """Server-sent events, no longer than the dash."""

    def __init__(self, events: AsyncIterator[str], *, ending: Ending) -> None:
        super().__init__(
            ending.until(events),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )


async def _next(stream: AsyncIterator[str]) -> str | None:
    return await anext(stream, None)


def event(name: str, content: object) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"
