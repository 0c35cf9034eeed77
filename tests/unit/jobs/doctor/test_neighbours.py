"""Redis and the reward service: real ones, and what a broken one says."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from common.config import Run
from common.queue.broker import ServerFacts
from jobs.doctor import neighbours
from jobs.doctor.finding import Finding
from tests.fixtures.servers.redis_server import RedisServer
from tests.fixtures.servers.reward_server import reward_server

Make = Callable[..., Run]
GOOD = ServerFacts(
    version="7.4.1",
    keeps_aof=True,
    max_memory_bytes=0,
    eviction="noeviction",
    clock_s=0.0,
    round_trip_s=0.001,
)


def judged(facts: ServerFacts, *, has_password: bool = True) -> dict[str, Finding]:
    found = neighbours.redis_findings(facts, has_password=has_password)
    return {finding.name: finding for finding in found}


def wrong(facts: ServerFacts, *, has_password: bool = True) -> dict[str, str]:
    found = judged(facts, has_password=has_password)
    return {name: one.level for name, one in found.items() if one.level != "ok"}


def test_a_real_redis_is_looked_at(
    make_run: Make, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPSAMP_REDIS_PASSWORD", redis_server.password)
    found = {
        one.name: one for one in neighbours.redis(make_run(f"shared.redis_url={redis_server.url}"))
    }
    # Its latency is that of a loaded machine.
    assert {name for name, one in found.items() if one.level != "ok"} <= {"latency"}
    assert found["append-only file"].found == "on"
    assert "Redis" in found


def test_a_wrong_password_and_a_port_without_redis_fail(
    make_run: Make, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPSAMP_REDIS_PASSWORD", "wrong")
    (found,) = neighbours.redis(make_run(f"shared.redis_url={redis_server.url}"))
    assert (found.level, "refuses this password" in found.found) == ("fail", True)
    monkeypatch.setattr("jobs.fleet.services.REDIS_OUTAGE_S", 0.1)
    (found,) = neighbours.redis(make_run("shared.redis_url=redis://127.0.0.1:1/0"))
    assert (found.level, "shared.redis_url" in found.cure) == ("fail", True)


@pytest.mark.parametrize(
    ("facts", "name", "level"),
    [
        (replace(GOOD, version="6.0.9"), "version", "fail"),
        (replace(GOOD, keeps_aof=False), "append-only file", "warn"),
        (
            replace(GOOD, max_memory_bytes=2**30, eviction="allkeys-lru"),
            "eviction",
            "fail",
        ),
        (replace(GOOD, round_trip_s=0.2), "latency", "warn"),
    ],
)
def test_what_does_not_suit_a_run_is_named(facts: ServerFacts, name: str, level: str) -> None:
    assert wrong(GOOD) == {}
    assert wrong(facts) == {name: level}
    assert judged(facts)[name].cure


def test_without_a_limit_nothing_is_evicted_and_no_password_is_warned_of() -> None:
    assert wrong(replace(GOOD, eviction="allkeys-lru")) == {}
    assert wrong(GOOD, has_password=False) == {"password": "warn"}


def test_clocks_apart_are_warned_of() -> None:
    assert neighbours.clock(100.0, now_s=102.0, whose="a").level == "ok"
    found = neighbours.clock(160.0, now_s=100.0, whose="a")
    assert (found.level, found.found.startswith("a is 60.0 s ahead")) == ("warn", True)
    assert neighbours.clock(40.0, now_s=100.0, whose="a").found.startswith("a is 60.0 s behind")


def test_a_real_reward_service_scores_known_answers_for_who_has_its_token(
    make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reward_server(environ={"TEMPSAMP_SCORE_TOKEN": "for-scores"}) as server:
        (refused,) = neighbours.reward(make_run(f"shared.reward_url={server.url}"))
        assert (refused.level, "401" in refused.found) == ("fail", True)
        monkeypatch.setenv("TEMPSAMP_SCORE_TOKEN", "for-scores")
        (found,) = neighbours.reward(make_run(f"shared.reward_url={server.url}"))
    assert found.level == "ok", found


def test_a_reward_service_that_is_not_there_fails(make_run: Make) -> None:
    (found,) = neighbours.reward(make_run("shared.reward_url=http://127.0.0.1:1"))
    assert (found.level, "shared.reward_url" in found.cure) == ("fail", True)


def test_wrong_rewards_fail() -> None:
    assert neighbours.reward_finding([1.0, 0.5, 0.0], url="u").level == "ok"
    found = neighbours.reward_finding([1.0, None, 0.0], url="u")
    assert (found.level, "[1.0, None, 0.0]" in found.found) == ("fail", True)
    assert neighbours.reward_finding([1.0], url="u").level == "fail"
