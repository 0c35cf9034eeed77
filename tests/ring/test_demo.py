"""`make demo REGIME=noisy` as a user runs it: each process is killed once, Ctrl-C, what is left."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.ring.conftest import ROOT

RUN = "pytest-demo"
RUN_DIR = ROOT / "runs" / RUN
TIMEOUT_S = 400.0
STEPS = 24
"""Some twenty pass until the last process is killed."""
GROUPS_PER_STEP = 4
"""Half of the regime's: what is killed is the same, and a step takes half as long."""
QUERIES = 24
"""Eight clips: enough for every figure of the summary."""
WORDS = {
    "rollout": "tempsamp rollout serve",
    "reward": "tempsamp reward serve",
    "redis": "redis-server",
    "learner": "tempsamp learner",
}
"""In the command lines of the demo's own children."""

pytestmark = pytest.mark.timeout(1200)


_started: list["subprocess.Popen[str]"] = []


@pytest.fixture(autouse=True)
def _fresh_run() -> Iterator[None]:
    shutil.rmtree(RUN_DIR, ignore_errors=True)
    yield
    while _started:
        _end(_started.pop())
    shutil.rmtree(RUN_DIR, ignore_errors=True)


def _end(demo: "subprocess.Popen[str]") -> None:
    """What a failed test left running must not disturb the next one."""
    if demo.poll() is None:
        demo.terminate()
        try:
            demo.wait(60)
        except subprocess.TimeoutExpired:
            demo.kill()
    demo.communicate()


def start_demo(*arguments: str) -> "subprocess.Popen[str]":
    """A demo in its own session, as a shell would start it."""
    command = [sys.executable, "-m", "tempsamp", "demo", "--run", RUN]
    evaluated = ["--eval-split", "validation", "--eval-queries", str(QUERIES), "--evaluate-best"]
    # A regime that shows the demo's clips; it validates more often than the demo, but not here.
    settings = {"learner.validation.every": 50, "learner.groups_per_step": GROUPS_PER_STEP}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    regime = ["--regime", "noisy", *sets]
    demo = subprocess.Popen(
        [*command, *evaluated, *regime, *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    _started.append(demo)
    return demo


def children_of(demo: "subprocess.Popen[str]") -> list[psutil.Process]:
    """All processes below the demo, engine and ranks included."""
    return list(psutil.Process(demo.pid).children(recursive=True))


def kill(name: str, demo: "subprocess.Popen[str]") -> None:
    """SIGKILL to one of the demo's own children."""
    for child in psutil.Process(demo.pid).children():
        if WORDS[name] in " ".join(child.cmdline()):
            child.kill()
            return
    raise AssertionError(f"no {name} below the demo")


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


def interrupt(demo: "subprocess.Popen[str]") -> None:
    """Ctrl-C; everything below the demo has to end with it."""
    started = children_of(demo)
    assert len(started) >= 3
    os.kill(demo.pid, signal.SIGINT)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, output
    assert f"RESUME=1 RUN={RUN}" in output
    _, alive = psutil.wait_procs(started, timeout=5)
    assert not alive


def check_held_out_answers(summary: dict[str, Any]) -> None:
    """Both evaluations and both validations asked the same queries of the same weights."""
    lines = (RUN_DIR / "validation.jsonl").read_text().splitlines()
    validations = {line["policy_version"]: line for line in map(json.loads, lines)}
    assert set(validations) == {0, STEPS}
    for when, end, version in (("before", "start", 0), ("after", "end", STEPS)):
        answers = RUN_DIR / "evaluation" / when / "predictions.jsonl"
        assert len(answers.read_text().splitlines()) == QUERIES
        assert validations[version]["val/queries"] == QUERIES
        # Greedy answers depend on what else is in the batch by the last bits of a sum.
        assert validations[version]["val/miou"] == pytest.approx(summary[f"miou_{end}"], abs=0.03)


def check_kept_logs() -> None:
    """Of the killed and of their next lives, over two runs of the demo."""
    lives = {name: (RUN_DIR / "logs" / f"{name}.log").read_text() for name in WORDS}
    assert lives["rollout"].count('"listening"') == 3
    for name, text in lives.items():
        assert text.count("was killed by SIGKILL, started again -----") == 1, name
        assert text.count("started by process") == 1, name


def test_ctrl_c_while_the_engine_loads_stops_every_process() -> None:
    demo = start_demo("--steps", "1000")
    wait_for(RUN_DIR / "logs" / "rollout.log", lines=1, demo=demo)
    interrupt(demo)


def test_demo_survives_kills_of_all_its_processes_and_ctrl_c_and_leaves_a_report() -> None:
    metrics = RUN_DIR / "metrics.jsonl"
    demo = start_demo("--steps", str(STEPS))
    wait_for(metrics, lines=2, demo=demo)
    kill("rollout", demo)
    before = len(metrics.read_text().splitlines())
    # Groups that were already pushed last for two steps; what comes after is the new replica's.
    wait_for(metrics, lines=before + 4, demo=demo)
    assert (RUN_DIR / "logs" / "rollout.log").read_text().count('"listening"') == 2
    interrupt(demo)

    again = start_demo("--steps", str(STEPS))
    refusal, _ = again.communicate(timeout=TIMEOUT_S)
    assert again.returncode == 2
    assert "RESUME=1" in refusal

    resumed = start_demo("--steps", str(STEPS), "--resume")
    for name in ("reward", "redis", "learner"):
        wait_for(metrics, lines=len(metrics.read_text().splitlines()) + 2, demo=resumed)
        kill(name, resumed)
    started = children_of(resumed)
    output, _ = resumed.communicate(timeout=TIMEOUT_S)
    assert resumed.returncode == 0, output
    for name in ("reward", "redis", "learner"):
        assert f"{name} was killed by SIGKILL: starting it again (1 of 3 in a row)" in output
    check_kept_logs()
    _, alive = psutil.wait_procs(started, timeout=5)
    assert not alive
    audit = [sys.executable, "-m", "tempsamp", "audit", str(RUN_DIR)]
    subprocess.run(audit, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads((RUN_DIR / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert summary["groups_trained"] == GROUPS_PER_STEP * STEPS
    assert summary["restarts"] == 3
    assert summary["eval_queries"] == QUERIES
    assert summary["failed_queries_end"] == 0
    assert summary["policy_version_end"] == STEPS
    wanted = {
        *("method", "steps", "seed", "miou_start", "miou_end", "r1_at_0.5_start"),
        *("r1_at_0.5_end", "best_constant_miou", "distractor_iou_end", "answers_differ_end"),
        *("entropy_end", "best_of_g_end", "wall_s", "train_wall_s", "weight_versions"),
        *("groups_trained", "groups_unscored", "max_logprob_gap"),
    }
    assert wanted <= summary.keys()
    assert summary["num_samples"] == 8
    assert summary["best_step"] == STEPS, "the only trained version that was validated"
    assert summary["miou_best"] == summary["miou_end"]
    assert 0 <= summary["train_without_hit_start"] <= 1
    assert summary["injected_advantage_start"] > 0
    check_held_out_answers(summary)
    page = (RUN_DIR / "report.html").read_text()
    assert "Held-out queries while training" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
