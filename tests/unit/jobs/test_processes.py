"""Children are restarted when they may be, reported with their log's end, and never left behind."""

import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs.processes import Child, ChildError, Children

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
    monkeypatch.setattr("jobs.processes.STOP_TIMEOUT_S", 0.5)
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
