"""Machines whose network is cut and mended; they are network namespaces and share one host name."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.audit.command import audited
from tests.fixtures.learner.recorded_learner import RecordedRing
from tests.fixtures.servers import namespaces
from tests.fixtures.servers.hard_ring import HardRing
from tests.fixtures.servers.namespaces import Machine
from tests.fixtures.servers.redis_server import RedisServer

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if (missing := namespaces.reason()) is not None:
        pytest.skip(missing)


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    with Machine(0) as one, Machine(1) as other:
        yield one, other


def test_a_learner_that_is_cut_off_loses_the_run_to_one_elsewhere_and_changes_nothing_after(
    own_redis_server: RedisServer,
    run_id: str,
    tmp_path: Path,
    machines: tuple[Machine, Machine],
) -> None:
    """Same host name, same path, other folder, as two containers have it."""
    one, other = machines
    folders = tmp_path / "one", tmp_path / "other"
    with RecordedRing(own_redis_server, run_id=run_id, folder=tmp_path) as ring:
        learners = []
        for machine, folder, steps in ((one, folders[0], 100_000), (other, folders[1], 8)):
            folder.mkdir()
            ring.run_dir.mkdir(exist_ok=True)
            machine.reaches(own_redis_server.port)
            ring.server.url = f"redis://{machine.host}:{own_redis_server.port}/0"
            launch = [*machine.launch({folder: ring.run_dir}), sys.executable]
            learners.append(ring.start(launch=launch, steps=steps, log=folder.name))
            if machine is one:
                learners[0].wait_for("published", policy_version=3)
        first, second = learners
        waits = second.wait_for("waiting for the run: another learner has it")
        assert str(ring.run_dir) in waits["holder"]
        one.cut()
        second.finish()
        one.mend()
        first.finish(code=1)
        epochs = [learner.said("the run is ours")[0]["epoch"] for learner in learners]
        assert epochs[0] < epochs[1]
        assert "tempsamp: RunLostError: " in first.text.splitlines()[-1]
    found = audited(folders[1])
    assert (found.step, found.violations) == (8, [])


def test_a_replica_that_is_cut_off_is_taken_over_from_and_comes_back(
    tmp_path: Path, machines: tuple[Machine, Machine]
) -> None:
    one, _ = machines
    with HardRing(tmp_path) as ring:
        one.reaches(ring.reward_port)
        one.reaches(redis_port := int(ring.url.rsplit(":", 1)[1].split("/")[0]))
        far = ring.replica(
            "far",
            launch=one.launch(),
            settings={
                "shared.redis_url": f"redis://{one.host}:{redis_port}/0",
                "shared.reward_url": f"http://{one.host}:{ring.reward_port}",
            },
            generate_s=0.5,
        )
        ring.feed_all()
        ring.until_said(far, "generating")
        one.cut()
        ring.replica("near")
        ring.train(epochs=2)
        one.mend()
        pushed = far.last_words.splitlines().count("pushed")
        ring.until(lambda: any(s.replica.startswith("far-") for s in ring.replicas()))
        ring.child("near").process.terminate()
        ring.train(epochs=2)
        assert far.last_words.splitlines().count("pushed") > pushed
