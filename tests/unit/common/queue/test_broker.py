"""The broker against a real redis-server."""

import asyncio
import logging
import time
from collections.abc import Callable

import pytest
from redis.exceptions import ResponseError

from common.errors import ConfigError, QueueError, RunLostError
from common.messages import ScoredGroup
from common.queue.broker import Broker, ClaimedPrompt, Limits
from common.queue.connection import _is_outage
from tests.fixtures.servers.redis_server import RedisServer
from tests.fixtures.wire import prompt_request, replica_status, scored_group

OpenBroker = Callable[[], Broker]

LONG_S = 60.0
"""A lease that does not end within a test."""


LIMITS = Limits(max_attempts=3, max_deaths=3)


async def claim(
    broker: Broker, replica: str = "a", *, lease_s: float = LONG_S
) -> ClaimedPrompt | None:
    return await broker.claim_prompt(replica, lease_s=lease_s, block_s=0.02)


async def sweep(
    broker: Broker, *, lease_s: float, replica: str = "sweeper", limits: Limits = LIMITS
) -> list[str]:
    """A sweep that no other one forestalls."""
    await asyncio.sleep(0.003)
    return await broker.sweep(replica, lease_s=lease_s, period_s=0.001, limits=limits)


async def let_die(broker: Broker, replica: str, *, limits: Limits = LIMITS) -> ClaimedPrompt:
    """A replica claims the only prompt there is and vanishes; the sweeper finds out."""
    claimed = await claim_one(broker, replica)
    await asyncio.sleep(0.03)
    await sweep(broker, lease_s=0.02, limits=limits)
    return claimed


async def claim_one(broker: Broker, replica: str = "a") -> ClaimedPrompt:
    claimed = await claim(broker, replica)
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
    await broker._connection.run(*command)
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
        await let_die(broker, "dead")
        taken_over = await claim_one(broker, "b")
        assert taken_over.attempts == 1, "nobody failed at it"

    async def test_renewed_lease_stays(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        claimed = await claim_one(broker, "a")
        for _ in range(3):
            await asyncio.sleep(0.1)
            assert await broker.renew(claimed)
        await sweep(broker, lease_s=0.2)
        assert await claim(broker, "b") is None

    async def test_lost_lease_cannot_be_renewed(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        slow = await let_die(broker, "slow")
        await claim_one(broker, "quick")
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
        slow = await let_die(broker, "slow")
        quick = await claim_one(broker, "quick")
        await broker.release(slow)
        assert await claim(broker, "third") is None
        assert await broker.renew(quick)

    async def test_failure_after_a_lost_lease_is_the_new_owners_business(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        slow = await let_die(broker, "slow")
        quick = await claim_one(broker, "quick")
        assert not await broker.fail_prompt(slow, "too late", limits=Limits(max_attempts=1))
        assert await broker.read_dead_letters() == []
        assert await broker.renew(quick)

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


class TestAttempts:
    """What counts as a try, and who gets a prompt afterwards."""

    async def test_replica_never_gets_back_what_it_failed(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        for sequence in (1, 2):
            await broker.feed_prompt(prompt_request(sequence))
        failed = await claim_one(broker, "a")
        assert not await broker.fail_prompt(failed, "no frames", limits=LIMITS)
        assert (await claim_one(broker, "a")).request.sequence == 2
        assert await claim(broker, "a") is None
        again = await claim_one(broker, "b")
        assert (again.request.sequence, again.attempts) == (1, 2)

    async def test_attempts_are_those_of_distinct_replicas(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        buried = []
        for replica in ("a", "b", "c"):
            claimed = await claim_one(broker, replica)
            buried.append(await broker.fail_prompt(claimed, f"{replica}: no frames", limits=LIMITS))
        assert buried == [False, False, True]
        assert await claim(broker, "d") is None
        [(_, letter)] = await broker.read_dead_letters()
        assert letter.prompt_id == "p1"
        assert letter.error == "3 replica(s) failed at it, the last one: c: no frames"
        assert (letter.attempts, letter.replica) == (3, "c")
        assert letter.body == prompt_request(1).model_dump_json()
        assert await broker.unfinished_prompts() == set()

    async def test_doubted_failures_count_once_they_are_confirmed(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        for replica in ("a", "b", "c", "d"):
            claimed = await claim_one(broker, replica)
            assert claimed.attempts == 1
            assert not await broker.fail_prompt(claimed, "sick?", limits=LIMITS, doubted=True)
            assert await claim(broker, replica) is None, "it never gets it back all the same"
        for replica in ("a", "b"):
            await broker.confirm_failures(replica, [claimed.entry_id])
        assert await sweep(broker, lease_s=LONG_S) == []
        await broker.confirm_failures("c", [claimed.entry_id])
        assert await sweep(broker, lease_s=LONG_S) == ["p1"]

    async def test_what_every_replica_failed_at_is_buried_when_one_of_them_is_well(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        for replica in ("a", "b"):
            failed = await claim_one(broker, replica)
            await broker.fail_prompt(failed, "no frames", limits=LIMITS, doubted=True)
        await asyncio.sleep(0.55)
        for replica in ("a", "b"):
            await claim(broker, replica)
        assert await sweep(broker, lease_s=0.5) == [], "both may be sick"
        await broker.confirm_failures("b", [failed.entry_id])
        assert await sweep(broker, lease_s=0.5) == ["p1"]

    async def test_prompt_waits_for_a_replica_that_has_not_tried(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        await broker.fail_prompt(await claim_one(broker, "a"), "no frames", limits=LIMITS)
        await broker.feed_prompt(prompt_request(2))
        await asyncio.sleep(0.55)
        busy = await claim_one(broker, "b-1")
        assert busy.request.sequence == 1
        await broker.release(busy)
        assert await sweep(broker, lease_s=0.5) == []
        await asyncio.sleep(0.55)
        await broker.renew(busy)
        await claim(broker, "a")
        assert await sweep(broker, lease_s=0.5) == [], "b is at work"

    async def test_what_was_failed_in_a_sick_time_is_forgiven(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        failed = await claim_one(broker, "a")
        await broker.fail_prompt(failed, "no mount", limits=LIMITS, doubted=True)
        assert await claim(broker, "a") is None
        await broker.forgive_failures("a", [failed.entry_id])
        assert (await claim_one(broker, "a")).attempts == 1

    async def test_lone_replicas_failure_does_not_block_the_run_for_ever(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        await broker.fail_prompt(await claim_one(broker, "a"), "no frames", limits=LIMITS)
        assert await sweep(broker, lease_s=LONG_S) == [], "somebody may come in a moment"
        await asyncio.sleep(0.55)
        await claim(broker, "a")
        assert await sweep(broker, lease_s=0.5) == ["p1"]
        [(_, letter)] = await broker.read_dead_letters()
        assert letter.error == "each of the replicas at work failed at it, the last one: no frames"

    async def test_handed_over_prompt_has_two_replicas_and_the_first_finishes_it(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        slow = await claim_one(broker, "slow")
        await broker.hand_over(slow)
        assert await claim(broker, "slow") is None
        quick = await claim_one(broker, "quick")
        assert quick.attempts == 1, "slow is no failure"
        await broker.push_group(slow, scored_group("p1"))
        assert not await broker.renew(quick)
        assert not await broker.fail_prompt(quick, "late", limits=Limits(max_attempts=1))
        assert await broker.read_dead_letters() == []
        assert await broker.unfinished_prompts() == set()


class TestDeaths:
    """Spot replicas vanish with good prompts; a prompt that kills replicas has to end."""

    async def test_deaths_below_the_bound_do_not_bury(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        for number in range(4):
            await let_die(broker, f"spot{number}", limits=Limits(max_deaths=5))
        assert (await claim_one(broker, "e")).attempts == 1
        assert await broker.read_dead_letters() == []

    async def test_prompt_that_kills_every_replica_is_buried(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        for replica in ("a", "b", "c"):
            await let_die(broker, replica)
        assert await claim(broker, "d") is None
        [(_, letter)] = await broker.read_dead_letters()
        assert (letter.prompt_id, letter.error) == ("p1", "3 replica(s) died over it")

    async def test_a_suspect_is_worked_on_alone(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        assert not (await let_die(broker, "a")).alone
        assert not (await let_die(broker, "b")).alone
        await broker.feed_prompt(prompt_request(2))
        suspect = await claim_one(broker, "c")
        assert (suspect.request.sequence, suspect.alone) == (1, True)
        assert await claim(broker, "c") is None, "nothing beside it"
        assert (await claim_one(broker, "d")).request.sequence == 2, "others go on"
        await broker.push_group(suspect, scored_group("p1"))
        await broker.feed_prompt(prompt_request(3))
        assert (await claim_one(broker, "c")).request.sequence == 3

    async def test_engine_that_dies_counts_as_a_death(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        buried = [
            await broker.release_after_crash(
                await claim_one(broker, replica), "CUDA error", limits=LIMITS
            )
            for replica in ("a", "b", "c")
        ]
        assert buried == [False, False, True]
        [(_, letter)] = await broker.read_dead_letters()
        assert letter.error == "3 replica(s) died over it, the last one: CUDA error"

    async def test_machine_that_dies_again_and_again_leaves_its_prompts_to_others(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        assert await claim(broker, "good-1") is not None
        await broker.feed_prompt(prompt_request(2))
        crashing = await claim_one(broker, "bad-1")
        await broker.release_after_crash(crashing, "x", limits=LIMITS)
        assert await claim(broker, "bad-2") is None
        assert (await claim_one(broker, "good-1")).entry_id == crashing.entry_id

    async def test_alone_on_its_machine_it_tries_again(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.feed_prompt(prompt_request(1))
        await broker.release_after_crash(await claim_one(broker, "only-1"), "x", limits=LIMITS)
        assert await claim(broker, "only-2") is not None

    async def test_one_sweep_a_period_whoever_comes_first(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        for _ in range(2):
            await broker.sweep("a", lease_s=LONG_S, period_s=LONG_S, limits=LIMITS)
        await broker.feed_prompt(prompt_request(1))
        await claim_one(broker, "dead")
        await asyncio.sleep(0.03)
        await broker.sweep("b", lease_s=0.02, period_s=LONG_S, limits=LIMITS)
        assert await claim(broker, "b") is None
        await broker._connection.run("DEL", f"{broker._claimers}:swept")
        await broker.sweep("b", lease_s=0.02, period_s=LONG_S, limits=LIMITS)
        assert await claim(broker, "b") is not None

    async def test_marks_vanish_with_their_prompt(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        for sequence in (1, 2):
            await broker.feed_prompt(prompt_request(sequence))
        await broker.fail_prompt(await claim_one(broker, "a"), "x", limits=LIMITS)
        await broker.fail_prompt(await claim_one(broker, "a"), "x", limits=Limits(max_attempts=1))
        await broker.push_group(await claim_one(broker, "b"), scored_group("p1"))
        assert await broker._connection.run("HLEN", broker._marks) == 0


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

    async def test_what_is_no_letter_hides_none_behind_it(
        self, open_broker: OpenBroker, redis_server: RedisServer, run_id: str
    ) -> None:
        broker = open_broker()
        for number in (1, 2, 3):
            dead = f"tempsamp:{run_id}:dead"
            await raw(redis_server, run_id, "XADD", dead, f"{number}-0", "colour", "red")
        await broker.report_unusable(scored_group("p1"), "no frames")
        [(entry_id, letter)] = await broker.read_dead_letters(max_count=2)
        assert letter.prompt_id == "p1"
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
        await broker.fail_prompt(await claim_one(broker), "broken", limits=Limits(max_attempts=1))
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

    async def test_a_replica_with_a_wrong_clock_neither_vanishes_nor_hides_others(
        self, open_broker: OpenBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before: a clock an hour ahead emptied the registry at each announcement."""
        broker, clock = open_broker(), time.time
        for replica, skew_s in (("a", 0), ("ahead", 3700), ("behind", -3700), ("b", 0)):
            with monkeypatch.context() as skewed:
                skewed.setattr(time, "time", lambda skew_s=skew_s: clock() + skew_s)
                await broker.announce(replica_status(replica), ttl_s=LONG_S)
        found = [status.replica for status in await broker.replicas()]
        assert found == ["a", "ahead", "b", "behind"]
        score = await broker._connection.run("ZSCORE", broker._replicas, "ahead")
        seconds, _ = await broker._connection.run("TIME")
        assert abs(float(score) - float(seconds)) < 60

    async def test_troubles_are_told_and_forgotten(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        for replica in ("a", "b"):
            await broker.announce(replica_status(replica), ttl_s=LONG_S)
        await broker.report_trouble("a", "no mount", ttl_s=LONG_S)
        await broker.report_trouble("b", "no reward", ttl_s=0.05)
        await asyncio.sleep(0.1)
        assert await broker.troubles() == {"a": "no mount"}
        await broker.withdraw("a")
        assert await broker.troubles() == {}


class TestRunLease:
    async def test_one_holder_at_a_time_whose_epoch_is_the_highest(
        self, open_broker: OpenBroker
    ) -> None:
        first, second = open_broker(), open_broker()
        mine = await first.fence.take("first", ttl_s=LONG_S)
        assert mine.epoch == first.fence.epoch >= time.time() - LONG_S
        theirs = await second.fence.take("second", ttl_s=LONG_S)
        assert (theirs.epoch, theirs.holder, second.fence.epoch) == (0, "first", 0)
        assert 0 < theirs.left_s <= LONG_S
        await first.fence.drop("first")
        assert (await second.fence.take("second", ttl_s=LONG_S)).epoch > mine.epoch

    async def test_epochs_grow_without_a_memory(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        before = await broker.fence.take("first", ttl_s=LONG_S)
        await broker._connection.run("DEL", broker.fence._holder, broker.fence._epoch)
        await asyncio.sleep(1.1)
        assert (await broker.fence.take("second", ttl_s=LONG_S)).epoch > before.epoch
        far = before.epoch + 10**6
        assert (await broker.fence.take("second", ttl_s=LONG_S, at_least=far)).epoch == far

    async def test_runs_out_unless_it_is_renewed(self, open_broker: OpenBroker) -> None:
        broker, other = open_broker(), open_broker()
        await broker.fence.take("first", ttl_s=0.2)
        for _ in range(3):
            await asyncio.sleep(0.1)
            assert await broker.fence.renew("first", epoch=broker.fence.epoch, ttl_s=0.2)
        assert not (await other.fence.take("second", ttl_s=LONG_S)).epoch
        await asyncio.sleep(0.25)
        assert (await other.fence.take("second", ttl_s=LONG_S)).epoch > broker.fence.epoch
        assert not await broker.fence.renew("first", epoch=broker.fence.epoch, ttl_s=LONG_S)
        await other.fence.drop("second")
        late = await broker.fence.renew("first", epoch=broker.fence.epoch, ttl_s=LONG_S)
        assert not late

    async def test_that_ran_out_is_taken_again_when_nobody_wanted_it(
        self, open_broker: OpenBroker
    ) -> None:
        broker = open_broker()
        await broker.fence.take("first", ttl_s=0.05)
        await asyncio.sleep(0.1)
        assert await broker.fence.renew("first", epoch=broker.fence.epoch, ttl_s=LONG_S)
        assert (await open_broker().fence.take("second", ttl_s=LONG_S)).holder == "first"

    async def test_of_a_learner_known_to_be_dead_is_not_waited_for(
        self, open_broker: OpenBroker
    ) -> None:
        first, second = open_broker(), open_broker()
        await first.fence.take("first", ttl_s=LONG_S)
        taken = await second.fence.take("second", ttl_s=LONG_S, dead="first")
        assert taken.epoch > first.fence.epoch

    async def test_only_its_holder_gives_it_up(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.fence.take("first", ttl_s=LONG_S)
        await broker.fence.drop("second")
        assert (await broker.fence.take("second", ttl_s=LONG_S)).holder == "first"

    async def test_survives_a_reset_of_the_messages(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.fence.take("first", ttl_s=LONG_S)
        await broker.reset_run()
        assert (await broker.fence.take("second", ttl_s=LONG_S)).holder == "first"

    async def test_an_earlier_learner_changes_nothing(self, open_broker: OpenBroker) -> None:
        old, new = open_broker(), open_broker()
        await old.fence.take("old", ttl_s=0.01)
        await old.wait_ready()
        await feed_and_answer(old, range(1, 3))
        await asyncio.sleep(0.05)
        await new.fence.take("new", ttl_s=LONG_S)
        trained = [entry_id for entry_id, _ in await read_all(new)]
        before = await new.depths()
        with pytest.raises(RunLostError, match=f"epoch {new.fence.epoch}, this one is of epoch"):
            await old.acknowledge_groups(trained)
        with pytest.raises(RunLostError):
            await old.feed_prompt(prompt_request(3))
        with pytest.raises(RunLostError):
            await old.reset_run()
        assert await new.depths() == before
        await new.acknowledge_groups(trained)
        assert await new.feed_prompt(prompt_request(3))
        assert not await new.feed_prompt(prompt_request(3))

    async def test_what_is_left_of_an_earlier_run_ends_no_prompt_of_the_next(
        self, open_broker: OpenBroker
    ) -> None:
        learner, replica = open_broker(), open_broker()
        await learner.feed_prompt(prompt_request(1, prompt_id="old-0-7"))
        old = await claim_one(replica)
        await learner.reset_run()
        await learner.feed_prompt(prompt_request(1, prompt_id="new-0-7"))
        new = await claim_one(replica)
        await replica.fail_prompt(old, "no frames", limits=LIMITS)
        await replica.push_group(old, scored_group("old-0-7"))
        assert await replica.renew(new)
        assert not await replica.renew(old)
        assert await learner.unfinished_prompts() == {"new-0-7"}
        assert (await learner.depths()).prompts_waiting == 0

    async def test_thousands_of_groups_are_acknowledged(self, open_broker: OpenBroker) -> None:
        broker = open_broker()
        await broker.acknowledge_groups([f"{number}-0" for number in range(1, 20_001)])


class TestOutages:
    """A Redis that is there and cannot write is waited for like one that is away."""

    async def outlasts(
        self, server: RedisServer, begin: tuple[str, ...], end: tuple[str, ...]
    ) -> None:
        broker, operator = server.broker("run"), server.broker("run")
        await broker.wait_ready()
        await broker.feed_prompt(prompt_request(1))
        await broker.feed_prompt(prompt_request(2))
        claimed = await claim_one(broker)
        await operator._connection.run(*begin)
        calls = [
            asyncio.create_task(call)
            for call in (
                broker.announce(replica_status("a"), ttl_s=LONG_S),
                broker.push_group(claimed, scored_group("p1")),
                broker.claim_prompt("b", lease_s=LONG_S, block_s=0.02),
            )
        ]
        await asyncio.sleep(0.4)
        assert not any(call.done() for call in calls)
        await operator._connection.run(*end)
        await asyncio.wait_for(asyncio.gather(*calls), 10)
        assert len(await read_all(broker)) == 1
        assert broker.num_outages >= 1
        for each in (broker, operator):
            await each.close()

    async def test_out_of_memory(self, own_redis_server: RedisServer) -> None:
        await self.outlasts(
            own_redis_server,
            ("CONFIG SET", "maxmemory", "1000"),
            ("CONFIG SET", "maxmemory", "0"),
        )

    async def test_read_only_after_a_failover(self, own_redis_server: RedisServer) -> None:
        await self.outlasts(
            own_redis_server, ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")
        )

    async def test_too_few_replicas_to_write_to(self, own_redis_server: RedisServer) -> None:
        await self.outlasts(
            own_redis_server,
            ("CONFIG SET", "min-replicas-to-write", "1"),
            ("CONFIG SET", "min-replicas-to-write", "0"),
        )

    @pytest.mark.parametrize(
        "message",
        [
            "NOGROUP No such key 'run:prompts' or consumer group 'rollout'",
            "UNBLOCKED the stream key no longer exists",
        ],
    )
    async def test_a_stream_that_is_gone_is_made_again(
        self, open_broker: OpenBroker, message: str
    ) -> None:
        """The second is what Redis 7.0 tells who waited at it."""
        broker, answers = open_broker(), [ResponseError(message), "prompt"]

        async def command() -> str:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        assert await broker._connection.call(command) == "prompt"
        assert await broker.feed_prompt(prompt_request(1))
        assert await claim_one(broker)

    @pytest.mark.parametrize(
        "message",
        [
            "MISCONF Redis is configured to save RDB snapshots, but it's unable to persist to disk",
            "LOADING Redis is loading the dataset in memory",
            "Error running script: @user_script: 5: -OOM command not allowed",
            "READONLY You can't write against a read only replica.",
        ],
    )
    def test_named_in_text_alone(self, message: str) -> None:
        assert _is_outage(ResponseError(message))
        assert not _is_outage(ResponseError("WRONGTYPE Operation against a key"))


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
