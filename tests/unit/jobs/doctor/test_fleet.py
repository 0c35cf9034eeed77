"""The fleet: what each service says of itself, judged; weights that cannot travel."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from common.config import Run
from common.errors import ConfigError
from common.messages import ReplicaStatus
from common.queue.broker import Hold
from common.rest.fleet_api import LearnerReport, Machine, ProblemReport, ReplicaReport, software
from jobs.doctor import fleet
from jobs.doctor.finding import Finding
from jobs.fleet.services import Fleet, Replica
from tests.fixtures.servers.redis_server import RedisServer
from tests.fixtures.weights.weight_fleet import Fleet as StandIns
from tests.fixtures.wire import replica_status

Make = Callable[..., Run]
NAME = "node-1-a1b2"
NOBODY = Hold(epoch=0, holder="", left_s=0)
HELD = Hold(epoch=3, holder="host-1", left_s=9)


def replica(*, phase: str = "serving", version: int = 7, **report: Any) -> Replica:
    status = replica_status(NAME, version=version).model_copy(update={"phase": phase})
    made = {"tokens_per_s": 1.0, "generates_in_work": 0, "generates_waiting": 0, **report}
    return Replica(status=status, report=ReplicaReport(status=status, **made))


def judged(one: Replica, *, version: int | None = 7, at_s: float = 0.0) -> dict[str, Finding]:
    learner = LearnerReport(phase="training", version=version)
    found = fleet.of_replica(one, learner=learner, at_s=at_s)
    return {finding.name: finding for finding in found}


def test_a_well_replica_is_ok() -> None:
    one = replica(machine=Machine(clock_s=0.0))
    assert {finding.level for finding in judged(one).values()} == {"ok"}


def test_a_replica_that_does_not_answer_fails() -> None:
    one = Replica(status=replica_status(NAME), unreachable="ConnectTimeout")
    (found,) = judged(one).values()
    assert (found.level, "ConnectTimeout" in found.found) == ("fail", True)
    assert "rollout.advertise_host" in found.cure


def test_broken_troubled_and_lately_failing_replicas_are_told_apart() -> None:
    name = NAME
    assert judged(replica(phase="broken"))[name].level == "fail"
    assert judged(replica(trouble="its mounts are gone"))[name].level == "warn"
    problem = ProblemReport(event="prompt failed", error="no frame", age_s=4)
    found = judged(replica(last_problem=problem))[name]
    assert (found.level, found.found) == ("ok", "serving; 4 s ago: prompt failed: no frame")


@pytest.mark.parametrize(("version", "level"), [(7, "ok"), (6, "ok"), (5, "warn"), (None, "warn")])
def test_a_replica_that_lags_is_warned_of(version: int | None, level: str) -> None:
    one = replica(version=version)  # type: ignore[arg-type]
    name = f"{NAME} weights"
    assert judged(one)[name].level == level
    assert name not in judged(one, version=None)


def test_other_software_and_another_clock_are_warned_of() -> None:
    name = NAME
    other = {**software(), "transformers": "4.0.0"}
    found = judged(replica(machine=Machine(software=other, clock_s=100.0)), at_s=0.0)
    assert found[f"{name} software"].level == "warn"
    assert found[f"{name} software"].found.startswith("transformers 4.0.0 (here ")
    assert found[name].level == "warn" or found[name].area == "clocks"


def test_local_parts_of_versions_do_not_count() -> None:
    same = fleet.same_software("a", {"torch": "2.13.0"}, ours={"torch": "2.13.0+cpu"})
    assert same.level == "ok"


def test_fewer_replicas_than_a_run_waits_for_fail() -> None:
    two = Fleet(run_id="r", replicas=(replica(),))
    assert fleet.registry(two, wanted=1).level == "ok"
    found = fleet.registry(two, wanted=2)
    assert (found.level, "learner.min_replicas" in found.found) == ("fail", True)


def test_a_learner_that_has_the_run_and_is_silent_is_warned_of() -> None:
    silent = Fleet(run_id="r", replicas=(), learner_unreachable="ConnectError")
    assert fleet.learner(silent, hold=NOBODY).level == "ok"
    found = fleet.learner(silent, hold=HELD)
    assert (found.level, "host-1" in found.found) == ("warn", True)
    there = silent.model_copy(update={"learner": LearnerReport(phase="training", step=4)})
    assert fleet.learner(there, hold=HELD).found == "training, step 4"


# --- the way of weights ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def stand_ins() -> Iterator[StandIns]:
    made = StandIns()
    yield made
    made.close()


def met(run: Run, status: ReplicaStatus) -> tuple[float, str]:
    return asyncio.run(fleet.meet(run, status, epoch=0, number=1))


def test_a_replica_is_met_as_a_learner_would(
    make_run: Make, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPSAMP_TOKEN", "secret")
    (one,) = stand_ins.start("a", token="secret")
    before = one.status()
    took_s, backend = met(make_run(), before)
    assert (took_s > 0, backend) == (True, "gloo")
    assert one.status() == before  # it lost nothing by it


def test_who_does_not_know_the_token_is_not_told_it(
    make_run: Make, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = stand_ins.start("b", token="another")
    monkeypatch.setenv("TEMPSAMP_TOKEN", "secret")
    with pytest.raises(ConfigError, match="does not know the token"):
        met(make_run(), one.status())


def test_a_learner_host_that_replicas_cannot_reach_fails(
    make_run: Make, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "MEET_S", 1.0)
    (one,) = stand_ins.start("c")
    seen = fleet.Seen(
        Fleet(run_id="r", replicas=(Replica(status=one.status(), report=replica().report),)),
        hold=NOBODY,
        at_s=0.0,
    )
    # An address of this machine that nobody has: the store cannot even listen there.
    (found,) = fleet.rehearsals(make_run("learner.host=203.0.113.7"), seen)
    assert (found.level, "learner.host (203.0.113.7)" in found.cure) == ("fail", True)


def test_a_registry_without_redis_fails(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.fleet.services.REDIS_OUTAGE_S", 0.1)
    (found,) = fleet.fleet(make_run("shared.redis_url=redis://127.0.0.1:1/0"))
    assert found.level == "fail"


def test_a_fleet_that_is_not_there_is_said_and_changes_nothing_in_redis(
    make_run: Make, redis_server: RedisServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPSAMP_REDIS_PASSWORD", redis_server.password)
    run = make_run(
        *(f"shared.redis_url={redis_server.url}", f"shared.run_id={run_id}"),
        "learner.metrics_port=0",
    )
    registry, learner = fleet.fleet(run)
    assert (registry.level, learner.found) == ("fail", "nobody has the run; it may be started")
