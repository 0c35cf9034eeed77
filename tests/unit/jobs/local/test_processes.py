"""Children are restarted when they may be, reported with their log's end, and never left behind."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.local import processes
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


def test_a_child_is_started_again_as_often_as_allowed(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("flaky", [PYTHON, "-c", "print('up')"], restarts=1)
        wait_until_ended(child)
        children.check()
        assert child.restarts == 1
        wait_until_ended(child)
        with pytest.raises(ChildError):
            children.check()
        assert child.log.read_text().count("up") == 2


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
        child = children.start("torchrun", [PYTHON, "-c", parent_of_rank])
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

    real_spawn = processes._spawn
    monkeypatch.setattr(processes, "_spawn", spawn)
    children = Children(tmp_path)
    with pytest.raises(KeyboardInterrupt), interruptible(), children:
        children.start("late", [PYTHON, "-c", "import time; time.sleep(60)"])
    (child,) = started
    assert not child.is_running()
