"""One rank of a learner dies or freezes: the run is resumed, and every row is trained once."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.audit.command import audited
from services.learner.launch import END_S
from tests.fixtures.learner.recorded_learner import NUM_ROWS, RecordedRing
from tests.fixtures.servers.redis_server import RedisServer

STEPS = 16
COLLECTIVE_TIMEOUT_S = 8.0

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


@pytest.fixture
def ring(own_redis_server: RedisServer, run_id: str, tmp_path: Path) -> Iterator[RecordedRing]:
    with RecordedRing(own_redis_server, run_id=run_id, folder=tmp_path) as ring:
        yield ring


def assert_whole(ring: RecordedRing) -> None:
    found = audited(ring.run_dir)
    assert (found.step, found.violations) == (STEPS, [])
    assert all(len(epoch.steps) == NUM_ROWS for epoch in found.epochs[:3])


def resumed(ring: RecordedRing, *, ranks: int = 2) -> None:
    last = ring.start(ranks=ranks, steps=STEPS, resume=True)
    last.finish()
    assert last.said("resumed")
    assert_whole(ring)


@pytest.mark.parametrize("rank", [0, 1])
def test_killed(ring: RecordedRing, rank: int) -> None:
    learner = ring.start(ranks=2, steps=STEPS)
    learner.wait_for("checkpoint", step=3)
    os.kill(learner.ranks()[rank], signal.SIGKILL)
    learner.finish(code=128 + signal.SIGKILL)
    assert "Traceback" not in learner.text
    resumed(ring)


@pytest.mark.parametrize("rank", [0, 1])
def test_frozen_for_a_while(ring: RecordedRing, rank: int) -> None:
    learner = ring.start(ranks=2, steps=STEPS)
    learner.wait_for("published", policy_version=5)
    frozen = learner.ranks()[rank]
    os.kill(frozen, signal.SIGSTOP)
    time.sleep(3)
    os.kill(frozen, signal.SIGCONT)
    learner.finish()
    assert_whole(ring)


@pytest.mark.parametrize("rank", [0, 1])
def test_frozen_for_good_ends_at_the_deadline_of_a_collective(
    ring: RecordedRing, rank: int
) -> None:
    settings = {"collective_timeout_s": COLLECTIVE_TIMEOUT_S, "wait_for_replicas_s": 5.0}
    learner = ring.start(ranks=2, steps=STEPS, **settings)
    learner.wait_for("checkpoint", step=3)
    os.kill(learner.ranks()[rank], signal.SIGSTOP)
    struck = time.monotonic()
    learner.finish(code=1)
    assert time.monotonic() - struck < COLLECTIVE_TIMEOUT_S + END_S + 15
    resumed(ring)


def test_redis_without_its_data_under_a_learner(
    ring: RecordedRing, own_redis_server: RedisServer
) -> None:
    learner = ring.start(steps=STEPS)
    for version in (4, 9):
        learner.wait_for("published", policy_version=version)
        own_redis_server.kill()
        own_redis_server.start_again(forget=True)
    learner.finish()
    assert_whole(ring)
