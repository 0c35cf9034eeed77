"""Children are restarted when they may be, reported with their log's end, and never left behind."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.local import spawning
from jobs.local.processes import Child, ChildError, Children, interruptible

PYTHON = sys.executable


def wait_until_ended(child: Child) -> None:
    child.process.wait(timeout=20)


def wait_for_log(child: Child, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in child.log.read_text():
        assert time.monotonic() < deadline, child.log.read_text()
        time.sleep(0.02)


def test_a_child_that_must_not_end_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("bad", [PYTHON, "-c", "print('no such model'); exit(3)"])
        wait_until_ended(child)
        with pytest.raises(ChildError, match=r"bad ended with code 3(.|\n)*no such model"):
            children.check()


def check_until(children: Children, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        children.check()
        time.sleep(0.02)


def test_a_child_is_started_again_as_often_as_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Children(tmp_path) as children:
        child = children.start("flaky", [PYTHON, "-c", "print('up'); exit(3)"], restarts=1)
        wait_until_ended(child)
        children.check()
        assert children.restarts == child.restarts == 1
        wait_until_ended(child)
        with pytest.raises(
            ChildError, match=r"flaky ended with code 3 \(started again 1x in a row\)"
        ):
            children.check()
        assert child.log.read_text().count("up") == 2
    (line,) = caplog.messages
    assert line == "flaky ended with code 3: starting it again (1 of 1 in a row)"


def test_a_row_of_failures_ends_when_the_run_gets_further(tmp_path: Path) -> None:
    steps = iter((5.0, 5.0, 7.0, 3.0, 6.0))
    with Children(tmp_path, progress=lambda: next(steps)) as children:
        child = children.start("flaky", [PYTHON, "-c", "exit(1)"], restarts=2)
        rows = []

        def die_again_and_again() -> None:
            while True:
                wait_until_ended(child)
                check_until(children, lambda: child.restarts > len(rows))
                rows.append(child.failures_in_a_row)

        with pytest.raises(ChildError, match="flaky ended with code 1"):
            die_again_and_again()
    # A learner that went back to a checkpoint and makes the same steps again gets no further.
    assert rows == [1, 2, 1, 2]


def test_starts_in_a_row_are_further_and_further_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.local.processes.PAUSE_S", 0.5)
    with Children(tmp_path) as children:
        child = children.start("flaky", [PYTHON, "-c", "exit(1)"], restarts=3)
        for number, at_least_s in enumerate((0.0, 0.5, 1.0), start=1):
            wait_until_ended(child)
            died_s = time.monotonic()
            check_until(children, lambda number=number: child.restarts == number)  # type: ignore[misc]
            assert at_least_s <= time.monotonic() - died_s < at_least_s + 5.0


def test_the_next_life_has_its_own_command_and_the_same_input(tmp_path: Path) -> None:
    say = "import sys; print(sys.argv[1], sys.stdin.read(), flush=True); exit(int(sys.argv[2]))"
    with Children(tmp_path) as children:
        child = children.start(
            "learner",
            [PYTHON, "-c", say, "begins", "1"],
            again=[PYTHON, "-c", say, "goes on", "0"],
            stdin=b"with a password",
            restarts=1,
            ends=True,
        )
        check_until(children, lambda: child.is_done)
        assert child.restarts == 1
        text = child.log.read_text()
    assert text.index("begins with a password") < text.index("goes on with a password")
    assert "password" not in " ".join(map(str, child.again))


def test_a_wrong_setting_is_not_tried_again(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("wrong", [PYTHON, "-c", "exit(2)"], restarts=3)
        wait_until_ended(child)
        with pytest.raises(ChildError, match="wrong ended with code 2; "):
            children.check()
    assert child.restarts == 0


def launcher(script: str) -> list[str]:
    """Of two learner ranks that a script is, on a node that hosts no store."""
    start = (
        "import sys\nfrom services.learner.launch import Fleet, launch\n"
        "fleet = Fleet(2, nodes=2, node_rank=1, meet='127.0.0.1:1')\n"
        "sys.exit(launch(fleet, [sys.executable, '-c', sys.argv[1]]))"
    )
    return [PYTHON, "-c", start, script]


def test_nor_is_a_ranks_below_its_launcher(tmp_path: Path) -> None:
    script = "import sys; sys.exit(print('tempsamp: learner.rows: x', file=sys.stderr) or 2)"
    with Children(tmp_path) as children:
        child = children.start("learner", launcher(script), restarts=3)
        child.process.wait(timeout=60)
        with pytest.raises(
            ChildError, match=r"learner ended with code 2; (.|\n)*\ntempsamp: learner.rows"
        ):
            children.check()


def test_the_ranks_of_a_launcher_that_was_killed_are_gone_before_the_next_one(
    tmp_path: Path,
) -> None:
    script = "import os, time; os.write(1, b'rank %d\\n' % os.getpid()); time.sleep(60)"
    with Children(tmp_path) as children:
        child = children.start("learner", launcher(script), restarts=1)
        deadline = time.monotonic() + 60
        while len(found := re.findall(r"rank (\d+)\n", child.log.read_text())) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        orphans = [psutil.Process(int(pid)) for pid in found]
        child.process.kill()
        wait_until_ended(child)
        children.check()
        assert child.restarts == 1
        assert not any(map(spawning.is_running, orphans))


def test_logs_of_earlier_lives_and_runs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in ("first", "second"):
        with Children(tmp_path) as children:
            child = children.start(
                "child", [PYTHON, "-c", f"print('{run}', end=''); exit(1)"], restarts=1
            )
            check_until(children, lambda child=child: child.restarts == 1)  # type: ignore[misc]
            wait_until_ended(child)
    lines = child.log.read_text().splitlines()
    assert [line for line in lines if not line.startswith("-----")] == [
        *["first"] * 2,
        *["second"] * 2,
    ]
    assert re.fullmatch(r"----- .* ended with code 1, started again -----", lines[1])
    assert re.fullmatch(rf"----- .* started by process {os.getpid()} -----", lines[3])
    assert child.last_words == "second"

    monkeypatch.setattr("jobs.local.processes.KEPT_LOG_BYTES", 100)
    with Children(tmp_path) as children:
        child = children.start("child", [PYTHON, "-c", "print('third'); exit(1)"])
        wait_until_ended(child)
    assert child.log.read_text() == "third\n"
    assert "second" in (tmp_path / "child.1.log").read_text()


def test_work_goes_on_while_a_child_is_started_again_and_ends_with_a_hopeless_one(
    tmp_path: Path,
) -> None:
    async def work() -> str:
        while child.restarts == 0:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.01)
        return "done"

    with Children(tmp_path) as children:
        child = children.start("flaky", [PYTHON, "-c", "exit(1)"], restarts=1)
        assert children.run(work()) == "done"
        with pytest.raises(ChildError, match="flaky"):
            children.run(asyncio.sleep(20))


def test_a_child_that_ends_by_itself_and_an_unwatched_one_are_no_error(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        done = children.start("done", [PYTHON, "-c", "pass"], ends=True)
        killed = children.start("killed", [PYTHON, "-c", "import time; time.sleep(60)"])
        children.unwatch(killed)
        killed.process.kill()
        wait_until_ended(done)
        wait_until_ended(killed)
        children.check()


def test_leaving_ends_children_and_their_children_even_stubborn_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.local.processes.STOP_TIMEOUT_S", 0.5)
    stubborn = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with Children(tmp_path) as children:
        child = children.start("stubborn", [PYTHON, "-c", stubborn])
        wait_for_log(child, "ready")
        parent = psutil.Process(child.process.pid)
        family = [parent, *parent.children(recursive=True)]
        assert len(family) == 2
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive


def test_a_child_of_a_child_that_leads_its_own_session_ends_too(tmp_path: Path) -> None:
    parent_of_rank = (
        "import subprocess, sys, time\n"
        "rank = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],\n"
        "                        start_new_session=True)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with Children(tmp_path) as children:
        child = children.start("parent", [PYTHON, "-c", parent_of_rank])
        wait_for_log(child, "ready")
        family = psutil.Process(child.process.pid).children(recursive=True)
        assert len(family) == 1
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive


def test_children_end_in_turn_so_that_the_last_may_use_the_first(tmp_path: Path) -> None:
    needed = tmp_path / "needed"
    server = (
        "import pathlib, signal, sys, time\n"
        f"needed = pathlib.Path({str(needed)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (needed.unlink(), sys.exit()))\n"
        "needed.touch()\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    user = (
        "import pathlib, signal, sys, time\n"
        f"needed = pathlib.Path({str(needed)!r})\n"
        "def leave(*_):\n"
        "    time.sleep(0.5)\n"
        "    print('found it' if needed.exists() else 'it was gone', flush=True)\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with Children(tmp_path) as children:
        wait_for_log(children.start("server", [PYTHON, "-c", server]), "ready")
        last = children.start("user", [PYTHON, "-c", user])
        wait_for_log(last, "ready")
    assert "found it" in last.log.read_text()
    assert not needed.exists()


def test_a_signal_while_a_child_is_started_ends_that_child_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[psutil.Process] = []

    def spawn(*arguments: Any) -> Any:
        process = real_spawn(*arguments)
        started.append(psutil.Process(process.pid))
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    real_spawn = spawning.spawn
    monkeypatch.setattr("jobs.local.processes.spawn", spawn)
    children = Children(tmp_path)
    with pytest.raises(KeyboardInterrupt), interruptible(), children:
        children.start("late", [PYTHON, "-c", "import time; time.sleep(60)"])
    (child,) = started
    assert not child.is_running()
