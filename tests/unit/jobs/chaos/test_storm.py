"""When a run has got over a strike, on a ring that a test makes up; and a demo's real processes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from jobs.chaos import storm as storm_module
from jobs.chaos.ring import Log, Ring
from jobs.chaos.schedule import Strike, Victim
from jobs.chaos.storm import Recovery, Storm, StormError
from jobs.local.spawning import is_running


@dataclass
class MadeUp:
    """As much of a `Ring` as a recovery looks at."""

    pids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    count: int = 1
    ready: set[str] = field(default_factory=set)
    steps: int = 0

    def find(self, victim: Victim) -> list[Any]:
        return [SimpleNamespace(pid=pid) for pid in self.pids.get(victim, ())]

    def wanted(self, victim: Victim) -> int:
        return self.count

    def is_ready(self, service: str) -> bool:
        return service in self.ready


def recovery(victim: Victim, frozen_s: float = 0.0) -> Recovery:
    strike = Strike(1, victim, frozen_s, pause_s=0.0, on_top=False)
    return Recovery(strike, pid=7, since_s=100.0 + frozen_s)


def took_s(found: Recovery, ring: MadeUp, *, at_s: float) -> float | None:
    found.update(cast(Ring, ring), now_s=at_s)
    return found.took_s


def test_a_killed_replica_is_back_when_it_is_ready_and_a_step_was_made_after_that() -> None:
    found, ring = recovery("rollout"), MadeUp(pids={"rollout": (7,)}, ready={"rollout"})
    assert took_s(found, ring, at_s=101) is None, "that is still the dead one"
    ring.pids["rollout"], ring.ready = (8,), set()
    ring.steps = 5
    assert took_s(found, ring, at_s=102) is None, "steps of groups that lay in Redis do not count"
    ring.ready = {"rollout"}
    assert took_s(found, ring, at_s=110) is None
    ring.steps = 6
    assert took_s(found, ring, at_s=112) == 12
    assert took_s(found, ring, at_s=120) == 12


def test_a_learner_s_place_has_to_be_taken_before_a_step_counts() -> None:
    found, ring = recovery("learner"), MadeUp()
    ring.steps = 1
    assert took_s(found, ring, at_s=101) is None
    ring.pids["learner"] = (9,)
    assert took_s(found, ring, at_s=102) is None
    ring.steps = 2
    assert took_s(found, ring, at_s=103) == 3


def test_one_of_several_is_back_when_all_are_there_and_it_is_none_of_them() -> None:
    found, ring = recovery("rank"), MadeUp(count=2)
    for at_s, pids in enumerate([(7, 9), (9,), (9, 7), (9, 8)], 101):
        ring.pids["rank"] = pids
        ring.steps += 1
        assert took_s(found, ring, at_s=at_s) is None
    ring.steps += 1
    assert took_s(found, ring, at_s=110) == 10


def test_the_frozen_come_back_by_themselves_and_their_seconds_begin_when_they_go_on() -> None:
    found, ring = recovery("redis", frozen_s=10.0), MadeUp(pids={"redis": (7,)})
    ring.steps = 3
    assert took_s(found, ring, at_s=105) is None
    assert took_s(found, ring, at_s=111) is None
    ring.steps = 4
    assert took_s(found, ring, at_s=112) == 2


def test_a_log_is_read_once_and_one_that_was_put_aside_begins_anew(tmp_path: Path) -> None:
    log = Log(tmp_path / "x.log")
    assert log.new() == []
    log.path.write_text('----- started -----\n{"event": "step"}\n[1]\n{broken\n{"event": "half"')
    assert log.new() == [{"event": "step"}]
    with log.path.open("a") as file:
        file.write("}\n")
    assert log.new() == [{"event": "half"}]
    log.path.write_text('{"event": "new"}\n')
    assert log.new() == [{"event": "new"}]


DEMO = """
import os, subprocess, sys, time
run_dir = sys.argv[1]
os.makedirs(run_dir + "/logs", exist_ok=True)
line = [sys.executable, "-c", "import time; time.sleep(600)"]
# In two pieces: a child that has only been forked shows this text as its command line.
names = ["temp" "samp rollout serve --set shared.reward_url=x", "temp" "samp learner --ranks 1"]
for name in names:
    subprocess.Popen([*line, *name.split()], start_new_session=True)
with open(run_dir + "/logs/learner.log", "a") as log:
    log.write('{"event": "step", "step": 1}\\n')
if "leaves" in sys.argv:
    time.sleep(1)
    sys.exit(3)
time.sleep(600)
"""


def ring_of(folder: Path, *how: str) -> Ring:
    return Ring(folder, [sys.executable, "-c", DEMO, str(folder), *how])


def wait_for(ring: Ring, victim: Victim) -> psutil.Process:
    deadline = time.monotonic() + 20
    while not (found := ring.find(victim)) and time.monotonic() < deadline:
        ring.look()
        time.sleep(0.02)
    return found[0]


def test_who_is_left_when_the_demo_has_ended_is_an_orphan_and_is_ended(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with ring_of(tmp_path, "leaves") as ring:
            left = wait_for(ring, "learner")
            assert ring.find("rank")[0].pid == left.pid, "one rank has no launcher"
            assert ring.find("reward") == [], "the replica's settings name it too"
            wait_for(ring, "rollout").kill()
            ring.demo.wait(20)
            (orphan,) = ring.orphans()
            assert orphan.startswith(f"{left.pid} ")
            assert "tempsamp learner" in orphan
        assert not is_running(left)
        assert other.poll() is None, "nobody else is touched"
    finally:
        other.communicate(b"\n")


def test_one_whose_environment_cannot_be_read_is_found_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's engine writes its name over it."""
    monkeypatch.setattr("jobs.chaos.ring.carriers", lambda mark: ())
    with ring_of(tmp_path, "leaves") as ring:
        left = wait_for(ring, "learner")
        ring.look()
        ring.demo.wait(20)
        assert ring.orphans()
    assert not is_running(left)


def test_a_demo_that_ends_in_the_storm_ends_it_with_its_last_words(tmp_path: Path) -> None:
    with ring_of(tmp_path, "leaves") as ring, pytest.raises(StormError, match="ended in the storm"):
        Storm(ring).rage([Strike(1, "reward", 0.0, pause_s=30.0, on_top=False)], seconds=60)


def test_a_run_that_does_not_go_on_ends_it_and_the_frozen_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storm_module, "STUCK_S", 0.5)
    strikes = [
        Strike(1, "learner", 1.0, pause_s=0.0, on_top=False),
        Strike(2, "redis", 0.0, pause_s=0.0, on_top=True),
    ]
    with ring_of(tmp_path) as ring:
        frozen = wait_for(ring, "learner")
        storm = Storm(ring)
        with pytest.raises(StormError, match="no sign of a step after learner was struck"):
            storm.rage(strikes, seconds=60)
        assert (len(storm.recoveries), storm.missed) == (1, 1)
        assert frozen.status() != psutil.STATUS_STOPPED
        os.kill(frozen.pid, signal.SIGKILL)
