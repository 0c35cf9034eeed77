"""One learner a run, against a real redis-server."""

import asyncio
import os
import time

import pytest

from common.errors import QueueError
from common.lease import RunLease
from tests.fixtures.redis_server import RedisServer

TTL_S = 0.4


def lease(server: RedisServer, run_id: str) -> RunLease:
    return RunLease(server.url, run_id=run_id, password=server.password, ttl_s=TTL_S)


def hold(server: RedisServer, run_id: str, holder: str, *, ttl_s: float) -> str:
    async def call() -> str:
        broker = server.broker(run_id)
        try:
            return await broker.hold_run(holder, ttl_s=ttl_s)
        finally:
            await broker.close()

    return asyncio.run(call())


def overwrite_holder(server: RedisServer, run_id: str, holder: str) -> None:
    """What happens while a process is stopped for longer than its lease."""

    async def call() -> None:
        broker = server.broker(run_id)
        try:
            await broker._run("SET", f"tempsamp:{run_id}:learner", holder)
        finally:
            await broker.close()

    asyncio.run(call())


def test_second_learner_is_refused_while_the_first_lives(
    redis_server: RedisServer, run_id: str
) -> None:
    with lease(redis_server, run_id) as first:
        time.sleep(2 * TTL_S)
        with (
            pytest.raises(QueueError, match=rf"already has a learner: .*process {os.getpid()} "),
            lease(redis_server, run_id),
        ):
            pass
        first.check()


def test_lease_is_free_right_after_a_clean_end(redis_server: RedisServer, run_id: str) -> None:
    with lease(redis_server, run_id):
        pass
    assert hold(redis_server, run_id, "next", ttl_s=TTL_S) == "next"


def test_dead_learners_lease_is_waited_for(redis_server: RedisServer, run_id: str) -> None:
    hold(redis_server, run_id, "dead", ttl_s=TTL_S)
    started = time.monotonic()
    with lease(redis_server, run_id) as successor:
        assert time.monotonic() - started > TTL_S / 2
        successor.check()


def test_other_runs_are_not_concerned(redis_server: RedisServer, run_id: str) -> None:
    with lease(redis_server, run_id), lease(redis_server, f"{run_id}-2") as other:
        other.check()


def test_learner_whose_lease_ran_out_learns_of_its_successor(
    redis_server: RedisServer, run_id: str
) -> None:
    with lease(redis_server, run_id) as first:
        overwrite_holder(redis_server, run_id, "successor")
        time.sleep(TTL_S)
        with pytest.raises(QueueError, match="was taken over by successor"):
            first.check()
    assert hold(redis_server, run_id, "third", ttl_s=TTL_S) == "successor", "not ours to give up"
