"""Reward and Redis die, freeze and forget beside a replica at work: every row is trained once."""

import time
from collections.abc import Iterator

import pytest

from tests.fixtures.servers.hard_ring import HardRing, freeze, kill, thaw

BEYOND_A_TIMEOUT_S = 2.5
"""rollout.reward_timeout_s is 1 s here."""


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HardRing]:
    with HardRing(tmp_path_factory.mktemp("ring")) as ring:
        ring.replica("steady", restarts=3, generate_s=0.3)
        yield ring


@pytest.fixture(autouse=True)
def _starts_idle_and_ends_whole(ring: HardRing) -> Iterator[None]:
    ring.dry_up()
    yield
    ring.train()
    assert ring.intake.counters.groups_unscored == 0
    assert ring.intake.counters.prompts_dead == 0


def feed_until(ring: HardRing, moment: str) -> None:
    """Feed; return when the replica is at it."""
    steady = ring.child("steady")
    said = steady.last_words.splitlines().count(moment)
    ring.feed_all()
    ring.until(lambda: steady.last_words.splitlines().count(moment) > said)


def ask_while_reward_is_mute(ring: HardRing) -> None:
    """Answers are in requests that nobody reads."""
    freeze(ring.reward)
    feed_until(ring, "scoring")


def test_reward_killed_in_the_middle_of_requests(ring: HardRing) -> None:
    ask_while_reward_is_mute(ring)
    kill(ring.reward)
    ring.train()
    assert ring.reward.restarts == 1


def test_reward_that_answers_nobody_for_longer_than_a_request_may_take(ring: HardRing) -> None:
    ask_while_reward_is_mute(ring)
    time.sleep(BEYOND_A_TIMEOUT_S)
    thaw(ring.reward)
    ring.train()
    assert ring.reward.process.poll() is None


def test_redis_killed_comes_back_on_its_data(ring: HardRing) -> None:
    feed_until(ring, "generating")
    kill(ring.redis)
    ring.train()
    assert ring.redis.restarts == 1
    assert ring.intake.counters.prompts_lost == 0


def test_redis_frozen_is_waited_for(ring: HardRing) -> None:
    feed_until(ring, "generating")
    freeze(ring.redis)
    time.sleep(BEYOND_A_TIMEOUT_S)
    thaw(ring.redis)
    ring.train()


def test_redis_without_its_data_is_told_everything_again(ring: HardRing) -> None:
    feed_until(ring, "generating")
    ring.forget()
    ring.train(epochs=2)
    assert ring.intake.counters.prompts_lost > 0
    assert [status.replica.rsplit("-", 1)[0] for status in ring.replicas()] == ["steady"]
