"""The broker against a real redis-server."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from common.errors import ConfigError, QueueError
from common.messages import ScoredGroup
from common.queue.broker import Broker, ClaimedPrompt
from tests.fixtures.redis_server import RedisServer
from tests.fixtures.wire import prompt_request, replica_status, scored_group

OpenBroker = Callable[[], Broker]

LONG_S = 60.0
"""A lease that does not end within a test."""


async def claim(
    broker: Broker, replica: str = "a", *, lease_s: float = LONG_S, max_attempts: int = 3
) -> ClaimedPrompt | None:
    return await broker.claim_prompt(
        replica, lease_s=lease_s, block_s=0.02, max_attempts=max_attempts
    )


async def claim_one(
    broker: Broker, replica: str = "a", *, lease_s: float = LONG_S
) -> ClaimedPrompt:
    claimed = await claim(broker, replica, lease_s=lease_s)
    assert claimed is not None
    return claimed


async def read_all(broker: Broker) -> list[tuple[str, ScoredGroup]]:
    groups = []
    while more := await broker.read_groups(2, block_s=0.02):
        groups += more
    return groups


async def feed_and_answer(broker: Broker, sequences: range) -> None:
    for sequence in sequences:
        await broker.feed_prompt(prompt_request(sequence))
        claimed = await claim_one(broker)
        await broker.push_group(claimed, scored_group(claimed.request.prompt_id))


async def raw(server: RedisServer, run_id: str, *command: str) -> None:
    """A command past the broker's methods: somebody else writes into the run's keys."""
    broker = server.broker(run_id)
    await broker._run(*command)
    await broker.close()


class TestConnecting:
    async def test_waits_for_redis_and_says_so_at_once(
        self, own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        own_redis_server.kill()
        broker = own_redis_server.broker("run")
        with caplog.at_level(logging.WARNING):
            waiting = asyncio.create_task(broker.wait_ready())
            await asyncio.sleep(0.3)
            assert [record.message for record in caplog.records] == ["waiting for redis"]
            assert not waiting.done()
            await asyncio.to_thread(own_redis_server.start_again)
            await waiting
        await broker.close()

    async def test_gives_up_waiting_after_the_timeout(self, own_redis_server: RedisServer) -> None:
        own_redis_server.kill()
        broker = own_redis_server.broker("run")
        with pytest.raises(QueueError, match=r"no answer for 0 s .*correct shared.redis_url"):
            await broker.wait_ready(timeout_s=0.2)
        await broker.close()

    @pytest.mark.parametrize("password", [None, "wrong"])
    async def test_refused_password_is_no_reason_to_wait(
        self, redis_server: RedisServer, password: str | None
    ) -> None:
        broker = Broker(redis_server.url, run_id="run", password=password)
        with pytest.raises(QueueError, match="TEMPSAMP_REDIS_PASSWORD"):
            await asyncio.wait_for(broker.wait_ready(), timeout=2)
        await broker.close()

    @pytest.mark.parametrize("url", ["http://127.0.0.1", "redis://host:port/0"])
    def test_wrong_url_names_the_key(self, url: str) -> None:
        with pytest.raises(ConfigError, match=r"shared\.redis_url"):
            Broker(url, run_id="run")

    async def test_calls_give_up_after_the_outage_bound(
        self, own_redis_server: RedisServer
    ) -> None:
        broker = own_redis_server.broker("run", outage_s=0.2)
        await broker.wait_ready()
        own_redis_server.kill()
        with pytest.raises(QueueError, match="no answer"):
            await broker.depths()
        await broker.close()


class TestPrompts:
    async def test_travels_unchanged(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        assert await broker.feed_prompt(prompt_request(1))
        claimed = await claim_one(broker)
        assert claimed.request == prompt_request(1)
        assert claimed.attempts == 1

    async def test_same_sequence_is_fed_once(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        assert await broker.feed_prompt(prompt_request(1))
        assert not await broker.feed_prompt(prompt_request(1))
        await broker.push_group(await claim_one(broker), scored_group("p1"))
        assert not await broker.feed_prompt(prompt_request(1)), "not after it was answered either"
        assert await claim(broker) is None

    async def test_goes_to_one_replica_only(self, open_broker: OpenBroker) -> None:
        first, second = open_broker(), open_broker()
        await first.feed_prompt(prompt_request(1))
        assert await claim(first, "a") is not None
        assert await claim(second, "b") is None

    async def test_dead_replicas_claim_goes_to_another(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        await claim_one(broker, "dead", lease_s=0.1)
        await asyncio.sleep(0.15)
        taken_over = await claim_one(broker, "b", lease_s=0.1)
        assert taken_over.attempts == 2

    async def test_renewed_lease_stays(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        claimed = await claim_one(broker, "a")
        for _ in range(3):
            await asyncio.sleep(0.1)
            assert await broker.renew(claimed)
        assert await claim(broker, "b", lease_s=0.2) is None

    async def test_lost_lease_cannot_be_renewed(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        slow = await claim_one(broker, "slow")
        await asyncio.sleep(0.05)
        await claim_one(broker, "quick", lease_s=0.02)
        assert not await broker.renew(slow)

    async def test_every_expired_claim_is_found_behind_live_ones(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        for sequence in range(1, 31):
            await broker.feed_prompt(prompt_request(sequence))
        claims = [await claim_one(broker, "a") for _ in range(30)]
        await broker.release(claims[-1])
        assert (await claim_one(broker, "b")).request.sequence == 30

    async def test_released_prompt_is_claimable_at_once_and_unharmed(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        for _ in range(5):
            claimed = await claim_one(broker)
            assert claimed.attempts == 1
            await broker.release(claimed)

    async def test_late_release_leaves_the_new_owner_alone(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        slow = await claim_one(broker, "slow")
        await asyncio.sleep(0.05)
        quick = await claim_one(broker, "quick", lease_s=0.02)
        await broker.release(slow)
        assert await claim(broker, "third") is None
        assert await broker.renew(quick)

    async def test_failing_prompt_is_buried_after_max_attempts(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        buried = []
        for attempt in (1, 2, 3):
            claimed = await claim_one(broker)
            assert claimed.attempts == attempt
            buried.append(
                await broker.fail_prompt(claimed, f"try {attempt}: no frames", max_attempts=3)
            )
        assert buried == [False, False, True]
        assert await claim(broker) is None
        [(_, letter)] = await broker.read_dead_letters()
        assert (letter.prompt_id, letter.error) == ("p1", "try 3: no frames")
        assert (letter.attempts, letter.replica) == (3, "a")

    async def test_failure_after_a_lost_lease_is_the_new_owners_business(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        slow = await claim_one(broker, "slow")
        await asyncio.sleep(0.05)
        quick = await claim_one(broker, "quick", lease_s=0.02)
        assert not await broker.fail_prompt(slow, "too late", max_attempts=1)
        assert await broker.read_dead_letters() == []
        assert await broker.renew(quick)

    async def test_prompt_that_kills_its_replicas_is_buried(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        for replica in ("a", "b"):
            assert await claim(broker, replica, lease_s=0.02, max_attempts=2)
            await asyncio.sleep(0.05)
        assert await claim(broker, "c", lease_s=0.02, max_attempts=2) is None
        [(_, letter)] = await broker.read_dead_letters()
        assert letter.prompt_id == "p1"
        assert letter.error == "2 replicas died or lost their lease over it"

    async def test_unreadable_prompt_is_buried_and_the_next_one_claimed(
        self, open_broker: OpenBroker, redis_server: RedisServer, run_id: str
    ) -> None:
        broker = open_broker()
        await broker.wait_ready()
        prompts = f"tempsamp:{run_id}:prompts"
        await raw(redis_server, run_id, "XADD", prompts, "1-0", "prompt_id", "p1", "body", "{}")
        await raw(redis_server, run_id, "XADD", prompts, "2-0", "colour", "red")
        await broker.feed_prompt(prompt_request(3))
        assert (await claim_one(broker)).request.sequence == 3
        letters = [letter for _, letter in await broker.read_dead_letters()]
        assert [letter.prompt_id for letter in letters] == ["p1", ""]
        assert "unreadable prompt: " in letters[0].error
        assert letters[0].body == "{}"
        assert "found ['colour']" in letters[1].error

    async def test_unfinished_prompts_are_those_without_a_group(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await feed_and_answer(broker, range(1, 3))
        for sequence in (3, 4):
            await broker.feed_prompt(prompt_request(sequence))
        await claim_one(broker)
        assert await broker.unfinished_prompts() == {"p3", "p4"}


class TestGroups:
    async def test_travel_unchanged_in_order_and_finish_their_prompts(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await feed_and_answer(broker, range(1, 6))
        groups = [group for _, group in await read_all(broker)]
        assert groups == [scored_group(f"p{number}") for number in range(1, 6)]
        assert await claim(broker, lease_s=0.0) is None

    async def test_unacknowledged_come_back_first_in_order_to_the_next_learner(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await feed_and_answer(broker, range(1, 8))
        seen = [await broker.read_groups(1, block_s=0.02) for _ in range(5)]
        await broker.acknowledge_groups([entries[0][0] for entries in seen[:2]])
        successor = open_broker()
        ids = [group.prompt_id for _, group in await read_all(successor)]
        assert ids == ["p3", "p4", "p5", "p6", "p7"]

    async def test_acknowledged_never_come_back(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await feed_and_answer(broker, range(1, 4))
        await broker.acknowledge_groups([entry_id for entry_id, _ in await read_all(broker)])
        assert await read_all(open_broker()) == []
        assert (await broker.depths()).groups_unacknowledged == 0

    async def test_unreadable_group_is_buried_and_the_others_read(
        self, open_broker: OpenBroker, redis_server: RedisServer, run_id: str
    ) -> None:
        broker = open_broker()
        await feed_and_answer(broker, range(1, 2))
        groups = f"tempsamp:{run_id}:groups"
        await raw(redis_server, run_id, "XADD", groups, "*", "prompt_id", "p2", "body", "[NaN]")
        await feed_and_answer(broker, range(3, 4))
        assert [group.prompt_id for _, group in await read_all(broker)] == ["p1", "p3"]
        [(entry_id, letter)] = await broker.read_dead_letters()
        assert (letter.prompt_id, letter.attempts) == ("p2", 0)
        assert "unreadable group" in letter.error
        assert await broker.read_dead_letters(after=entry_id) == []

    async def test_waiting_read_wakes_up_for_a_group(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        reading = asyncio.create_task(broker.read_groups(1, block_s=5.0))
        await asyncio.sleep(0.05)
        await feed_and_answer(broker, range(1, 2))
        assert len(await asyncio.wait_for(reading, timeout=2)) == 1

    async def test_depths_count_what_lies_where(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await feed_and_answer(broker, range(1, 4))
        await broker.read_groups(2, block_s=0.02)
        for sequence in range(4, 9):
            await broker.feed_prompt(prompt_request(sequence))
        await claim_one(broker)
        await broker.fail_prompt(await claim_one(broker), "broken", max_attempts=1)
        depths = await broker.depths()
        assert (depths.prompts_waiting, depths.prompts_claimed) == (3, 1)
        assert (depths.groups_unread, depths.groups_unacknowledged) == (1, 2)
        assert depths.dead_letters == 1

    async def test_reset_forgets_this_run_alone(
        self, open_broker: OpenBroker, redis_server: RedisServer, run_id: str
    ) -> None:
        broker, neighbour = open_broker(), redis_server.broker(f"{run_id}-2")
        for each in (broker, neighbour):
            await feed_and_answer(each, range(1, 3))
        await broker.announce(replica_status("a"), ttl_s=LONG_S)
        await broker.reset_run()
        assert await read_all(broker) == []
        assert await broker.feed_prompt(prompt_request(1)), "its numbers are free again"
        assert len(await broker.replicas()) == 1
        assert len(await read_all(neighbour)) == 2
        await neighbour.close()


class TestRegistry:
    async def test_replicas_are_listed_by_name_with_their_latest_status(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        for replica, version in (("b", None), ("a", 1), ("b", 2)):
            await broker.announce(replica_status(replica, version=version), ttl_s=LONG_S)
        assert await broker.replicas() == [
            replica_status("a", version=1),
            replica_status("b", version=2),
        ]

    async def test_silent_replica_vanishes(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.announce(replica_status("a"), ttl_s=0.05)
        await broker.announce(replica_status("b"), ttl_s=LONG_S)
        await asyncio.sleep(0.1)
        assert [status.replica for status in await broker.replicas()] == ["b"]

    async def test_withdrawn_replica_is_gone_at_once(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.announce(replica_status("a"), ttl_s=LONG_S)
        await broker.withdraw("a")
        assert await broker.replicas() == []


class TestRunLease:
    async def test_one_holder_at_a_time_who_may_renew(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        assert await broker.hold_run("first", ttl_s=LONG_S) == "first"
        assert await broker.hold_run("second", ttl_s=LONG_S) == "first"
        assert await broker.hold_run("first", ttl_s=LONG_S) == "first"

    async def test_runs_out_unless_it_is_renewed(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.hold_run("first", ttl_s=0.2)
        for _ in range(3):
            await asyncio.sleep(0.1)
            await broker.hold_run("first", ttl_s=0.2)
        assert await broker.hold_run("second", ttl_s=LONG_S) == "first"
        await asyncio.sleep(0.25)
        assert await broker.hold_run("second", ttl_s=LONG_S) == "second"

    async def test_only_its_holder_gives_it_up(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.hold_run("first", ttl_s=LONG_S)
        await broker.drop_run("second")
        assert await broker.hold_run("second", ttl_s=LONG_S) == "first"
        await broker.drop_run("first")
        assert await broker.hold_run("second", ttl_s=LONG_S) == "second"

    async def test_survives_a_reset_of_the_messages(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.hold_run("first", ttl_s=LONG_S)
        await broker.reset_run()
        assert await broker.hold_run("second", ttl_s=LONG_S) == "first"


class TestRestartOfRedis:
    async def test_everything_goes_on_after_kill_9(self, own_redis_server: RedisServer) -> None:
        broker = own_redis_server.broker("run")
        await broker.wait_ready()
        await feed_and_answer(broker, range(1, 3))
        await broker.feed_prompt(prompt_request(3))
        claimed = await claim_one(broker)
        await asyncio.sleep(1.2)  # the append-only file reaches the disk every second
        own_redis_server.kill()
        pushing = asyncio.create_task(broker.push_group(claimed, scored_group("p3")))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(own_redis_server.start_again)
        await pushing
        assert [g.prompt_id for _, g in await read_all(broker)] == ["p1", "p2", "p3"]
        assert await broker.unfinished_prompts() == set()
        assert not await broker.feed_prompt(prompt_request(3))
        await broker.close()

    async def test_consumer_groups_are_made_again_after_total_loss(
        self, own_redis_server: RedisServer
    ) -> None:
        broker = own_redis_server.broker("run")
        await broker.wait_ready()
        await broker.feed_prompt(prompt_request(1))
        claimed = await claim_one(broker)
        own_redis_server.kill()
        await asyncio.to_thread(own_redis_server.start_again, forget=True)
        assert not await broker.renew(claimed)
        assert await claim(broker) is None
        assert await broker.read_groups(1, block_s=0.02) == []
        assert await broker.feed_prompt(prompt_request(1))
        assert (await claim_one(broker)).request.sequence == 1
        await broker.close()
