"""`make demo` as a user runs it: a killed replica, Ctrl-C, and what is left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.ring.conftest import ROOT

RUN = "pytest-demo"
RUN_DIR = ROOT / "runs" / RUN
TIMEOUT_S = 280.0
STEPS = 8


@pytest.fixture(autouse=True)
def _fresh_run() -> Iterator[None]:
    shutil.rmtree(RUN_DIR, ignore_errors=True)
    yield
    shutil.rmtree(RUN_DIR, ignore_errors=True)


def start_demo(*arguments: str) -> "subprocess.Popen[str]":
    """A demo in its own session, as a shell would start it."""
    command = [sys.executable, "-m", "jobs.demo", "--run", RUN, "--eval-split", "validation"]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def children_of(demo: "subprocess.Popen[str]") -> list[psutil.Process]:
    """All processes below the demo, engine and ranks included."""
    return psutil.Process(demo.pid).children(recursive=True)


def wait_for(path: Path, *, lines: int, demo: "subprocess.Popen[str]") -> None:
    """Until a file has so many lines."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if path.exists() and len(path.read_text().splitlines()) >= lines:
            return
        if demo.poll() is not None:
            raise AssertionError(demo.communicate()[0])
        time.sleep(0.1)
    raise AssertionError(f"{path} has no {lines} lines after {TIMEOUT_S} s")


def test_demo_survives_a_killed_replica_and_leaves_a_report() -> None:
    demo = start_demo("--steps", str(STEPS))
    wait_for(RUN_DIR / "metrics.jsonl", lines=2, demo=demo)
    started = children_of(demo)
    replica = next(p for p in started if "rollout" in p.cmdline() and "serve" in p.cmdline())
    replica.kill()
    output, _ = demo.communicate(timeout=TIMEOUT_S)

    assert demo.returncode == 0, output
    assert "rollout ended with code -9, starting it again" in output
    summary = json.loads((RUN_DIR / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert summary["groups_trained"] == 8 * STEPS
    assert summary["failed_queries_end"] == 0
    assert summary["policy_version_end"] == STEPS
    wanted = {
        *("method", "steps", "seed", "miou_start", "miou_end", "r1_at_0.5_start"),
        *("r1_at_0.5_end", "best_constant_miou", "distractor_iou_end", "answers_differ_end"),
        *("entropy_end", "best_of_g_end", "wall_s", "train_wall_s", "weight_versions"),
        *("groups_trained", "groups_unscored", "max_logprob_gap"),
    }
    assert wanted <= summary.keys()
    page = (RUN_DIR / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    _, alive = psutil.wait_procs(started, timeout=5)
    assert not alive

    again = start_demo("--steps", str(STEPS))
    refusal, _ = again.communicate(timeout=TIMEOUT_S)
    assert again.returncode == 2
    assert "RESUME=1" in refusal


def test_ctrl_c_stops_every_process() -> None:
    demo = start_demo("--steps", "1000")
    wait_for(RUN_DIR / "logs" / "rollout.log", lines=1, demo=demo)
    started = children_of(demo)
    assert len(started) >= 3
    os.kill(demo.pid, signal.SIGINT)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, output
    assert "RESUME=1" in output
    _, alive = psutil.wait_procs(started, timeout=5)
    assert not alive
