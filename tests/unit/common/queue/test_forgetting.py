"""A run's keys leave Redis some time after its last learner and replica, and not before."""

from collections.abc import AsyncIterator

import pytest

from common.queue.broker import Broker, Limits
from common.queue.scripts import KEEP_RUN_S
from tests.fixtures.servers.redis_server import RedisServer
from tests.fixtures.wire import prompt_request, replica_status, scored_group

LONG_S = 60.0
SHORT_S = 100
"""Of keys that somebody has made to expire sooner."""
KEYS = {"prompts", "groups", "dead", "marks", "claimers", "claimers:swept", "replicas"}


@pytest.fixture
async def broker(redis_server: RedisServer, run_id: str) -> AsyncIterator[Broker]:
    """Of a run that has every key there can be."""
    broker = redis_server.broker(run_id)
    await broker.wait_ready()
    await broker.fence.take("learner", ttl_s=LONG_S)
    for sequence in (1, 2, 3):
        await broker.feed_prompt(prompt_request(sequence))
    for error in ("", "no frames", "doubtful"):
        claim = await broker.claim_prompt("a-1", lease_s=LONG_S, block_s=0.02)
        assert claim is not None
        if not error:
            await broker.push_group(claim, scored_group(claim.request.prompt_id))
        else:
            most = 1 if error == "no frames" else 3
            await broker.fail_prompt(claim, error, limits=Limits(max_attempts=most))
    await broker.sweep("a-1", lease_s=LONG_S, period_s=LONG_S, limits=Limits())
    yield broker
    await broker.close()


async def lifetimes_s(broker: Broker, run_id: str) -> dict[str, float]:
    """Name of each of the run's keys → seconds left to it; -1: no end."""
    names = await broker._connection.run("KEYS", f"tempsamp:{run_id}:*")
    return {
        name.removeprefix(f"tempsamp:{run_id}:"): await broker._connection.run("TTL", name)
        for name in names
    }


async def shorten(broker: Broker, run_id: str) -> None:
    for name in await lifetimes_s(broker, run_id):
        await broker._connection.run("EXPIRE", f"tempsamp:{run_id}:{name}", SHORT_S)


def kept(found: dict[str, float]) -> set[str]:
    """Keys that stay as long as a run does. Of the others, leases, each goes sooner."""
    long = {name for name, left_s in found.items() if KEEP_RUN_S - 20 < left_s <= KEEP_RUN_S}
    assert all(0 < left_s <= SHORT_S for name, left_s in found.items() if name not in long), found
    return long


async def test_a_learner_keeps_its_run_while_it_renews_its_lease(
    broker: Broker, run_id: str
) -> None:
    await broker.announce(replica_status("a-1"), ttl_s=LONG_S)
    await shorten(broker, run_id)
    assert await broker.fence.renew("learner", epoch=broker.fence.epoch, ttl_s=LONG_S)
    assert kept(await lifetimes_s(broker, run_id)) == KEYS | {"epoch"}


async def test_one_that_ends_before_it_has_renewed_anything_leaves_nothing_for_ever(
    broker: Broker, run_id: str
) -> None:
    await broker.announce(replica_status("a-1"), ttl_s=LONG_S)
    await broker.fence.drop("learner")
    found = await lifetimes_s(broker, run_id)
    assert "learner" not in found
    assert kept(found) == KEYS | {"epoch"}


async def test_a_live_replica_keeps_the_run_of_a_learner_that_is_away(
    broker: Broker, run_id: str
) -> None:
    await shorten(broker, run_id)
    await broker.announce(replica_status("a-1"), ttl_s=LONG_S)
    # Without an epoch the next learner makes one that is later all the same.
    assert kept(await lifetimes_s(broker, run_id)) == KEYS


async def test_who_has_lost_the_run_does_not_keep_it(broker: Broker, run_id: str) -> None:
    await shorten(broker, run_id)
    assert not await broker.fence.renew("another", epoch=broker.fence.epoch - 1, ttl_s=LONG_S)
    assert max((await lifetimes_s(broker, run_id)).values()) <= SHORT_S
