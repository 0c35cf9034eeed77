"""`jobs.dash.playground.loading`: one replica for all who wait, and none for nobody.

The replica is a stand-in; a real one is asked in tests/ring/test_held_out_answers.py.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError, EngineError
from jobs.dash.playground import loading
from jobs.dash.playground.loading import Loaded

PATIENCE_S = 10.0
LOG = (
    "(EngineCore pid=9) INFO 11-27 13:20:25 [core.py:133] Starting to load model tiny...\n"
    "(EngineCore pid=9) WARNING 11-27 13:20:26 [core.py:133] that is not said\n"
)


@dataclass
class Child:
    """Of a stand-in."""

    last_words: str = LOG
    has_failed: bool = False


@dataclass
class StandIn:
    """What is started, and how it gets ready."""

    may_be_ready: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    child: Child = field(default_factory=Child)
    starts: int = 0
    stops: int = 0

    @property
    def children(self) -> "StandIn":
        return self

    def stop(self) -> None:
        self.stops += 1

    async def ready(self) -> None:
        await self.may_be_ready.wait()
        if self.error is not None:
            raise self.error

    @contextlib.contextmanager
    def started(self, *_: Any, **__: Any) -> Iterator["StandIn"]:
        self.starts += 1
        yield self


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(loading, "started", made.started)
    monkeypatch.setattr(loading, "SAY_S", 0.01)
    return made


def loaded(tmp_path: Path) -> Loaded:
    return Loaded(lambda _: tmp_path, folder=lambda: tmp_path, beside=1)


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.005)


async def test_two_who_wait_share_one_replica_and_hear_what_it_is_at(
    replica: StandIn, tmp_path: Path
) -> None:
    one = loaded(tmp_path)
    assert one.state == "asleep"
    said: list[str] = []
    waiting = [asyncio.create_task(one.ready(said.append)) for _ in range(2)]
    await until(lambda: said.count("loading: Starting to load model tiny...") >= 2)
    assert one.state == "loading"
    replica.may_be_ready.set()
    assert await asyncio.gather(*waiting) == [replica, replica]
    assert (one.state, replica.starts) == ("ready", 1)
    said.clear()
    assert await one.ready(said.append) is replica
    assert said == []


async def test_who_leaves_does_not_end_it_for_another_and_the_last_one_does(
    replica: StandIn, tmp_path: Path
) -> None:
    one = loaded(tmp_path)
    first, second = (asyncio.create_task(one.ready(lambda _: None)) for _ in range(2))
    await until(lambda: replica.starts == 1)
    first.cancel()
    await asyncio.sleep(0.05)
    assert (one.state, replica.stops) == ("loading", 0)
    second.cancel()
    await until(lambda: replica.stops == 1)
    await until(lambda: one.state == "asleep")
    replica.may_be_ready.set()
    await one.ready(lambda _: None)
    assert (one.state, replica.starts) == ("ready", 2)


async def test_a_loaded_one_outlives_who_leaves(replica: StandIn, tmp_path: Path) -> None:
    one = loaded(tmp_path)
    replica.may_be_ready.set()
    await one.ready(lambda _: None)
    replica.may_be_ready.clear()
    waiting = asyncio.create_task(one.ready(lambda _: None))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.sleep(0.05)
    assert (one.state, replica.stops) == ("ready", 0)


@pytest.mark.parametrize("error", [EngineError("no memory"), ConfigError("--model: found none")])
async def test_one_that_does_not_load_says_why_and_is_tried_again(
    replica: StandIn, tmp_path: Path, error: Exception
) -> None:
    one = loaded(tmp_path)
    replica.error = error
    replica.may_be_ready.set()
    results = await asyncio.gather(
        *(one.ready(lambda _: None) for _ in range(2)), return_exceptions=True
    )
    assert results == [error, error]
    assert (one.state, one.says, replica.stops) == ("failed", str(error), 1)
    replica.error = None
    await one.ready(lambda _: None)
    assert (one.state, replica.starts) == ("ready", 2)


async def test_one_that_died_since_is_loading_again(replica: StandIn, tmp_path: Path) -> None:
    one = loaded(tmp_path)
    replica.may_be_ready.set()
    await one.ready(lambda _: None)
    replica.may_be_ready.clear()
    replica.child.has_failed = True
    said: list[str] = []
    waiting = asyncio.create_task(one.ready(said.append))
    await until(lambda: said)
    assert one.state == "loading"
    replica.may_be_ready.set()
    await waiting
    assert (one.state, replica.starts) == ("ready", 1), "its children start it again"


async def test_one_that_is_given_up_is_loaded_anew(replica: StandIn, tmp_path: Path) -> None:
    one = loaded(tmp_path)
    replica.may_be_ready.set()
    await one.ready(lambda _: None)
    await one.unload(failure="it died three times")
    assert (one.state, one.says, replica.stops) == ("failed", "it died three times", 1)
    await one.ready(lambda _: None)
    assert (one.state, replica.starts) == ("ready", 2)
    one.close()
    assert one.state == "asleep"
