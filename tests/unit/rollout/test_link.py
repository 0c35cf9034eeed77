"""Calls from a replica to its workers."""

import asyncio
import json
from collections.abc import Awaitable
from typing import TypeVar

import pytest

from services.rollout.receiving.link import WorkerLinks

T = TypeVar("T")


async def wait_for(awaitable: Awaitable[T], timeout_s: float) -> T:
    """As in Python 3.12: what is there already lets nobody else run first, as 3.11 does."""
    async with asyncio.timeout(timeout_s):
        return await awaitable


async def test_calls_of_one_moment_get_their_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    links = WorkerLinks(1)
    await links.listen()
    reader, writer = await asyncio.open_unix_connection(str(links.path))
    writer.write(b'{"worker": 0}\n')

    async def worker() -> None:
        while line := await reader.readline():
            asked = json.loads(line)
            held = {"frozen": None, "trained": asked["action"]}
            writer.write(json.dumps({"call": asked["call"], "held": held}).encode() + b"\n")

    working = asyncio.create_task(worker())
    await links.call("leave")
    monkeypatch.setattr(asyncio, "wait_for", wait_for)
    async with asyncio.timeout(20):
        join, leave = await asyncio.gather(links.call("join"), links.call("leave"))
    assert (join.trained, leave.trained) == ("join", "leave")
    working.cancel()
    writer.close()
    links.close()
