"""The whole ring in containers: trains, is scaled and hurt meanwhile, and ends with a report.

One story, told in order. Skipped with a reason where no engine answers (`make compose-test`).
"""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.deploy.composed import REQUEST, Composed, docker, documented, missing

STEPS = 200
"""Long enough to be hurt meanwhile."""
BUILD_TIMEOUT_S = 900
pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """Built and started as README says."""
    if reason := missing():
        pytest.skip(reason)
    runs = tmp_path_factory.mktemp("runs")
    with contextlib.suppress(PermissionError):
        os.chown(runs, 10001, 10001)
    arguments = f"--set learner.steps={STEPS} --set learner.validation.every=30 --eval-queries 24"
    services = Composed(runs, learner_arguments=arguments)
    try:
        services.run("build", timeout_s=BUILD_TIMEOUT_S)
        services.run(*documented("compose")[0])
        yield services
    finally:
        services.run("down", "--volumes", "--remove-orphans")


def metrics(ring: Composed) -> list[dict[str, Any]]:
    """Steps so far."""
    path = ring.runs / "compose/metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_until(happened: Callable[[], bool], *, what: str, within_s: float = 240) -> None:
    deadline = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(1)


def healthy(ring: Composed, *, count: int) -> bool:
    """Whether exactly so many replicas run, and all are ready."""
    states = [ring.inspect("rollout", number=i)["State"] for i in range(count)]
    found = len(ring.containers("rollout"))
    return found == count and all(state["Health"]["Status"] == "healthy" for state in states)


ASK = """
import os, sys, urllib.request
ask = urllib.request.Request(sys.argv[1])
ask.add_header("Authorization", "Bearer " + os.environ["TEMPSAMP_TOKEN"])
print(urllib.request.urlopen(ask, timeout=10).read().decode())
"""


def serves(replica: str) -> bool:
    """Whether the replica in a container has verified weights of the learner."""
    url = "http://127.0.0.1:8200/readyz?serving=true"
    return docker("exec", replica, "python", "-c", ASK, url).returncode == 0


def test_versions_are_published(ring: Composed) -> None:
    wait_until(lambda: len(metrics(ring)) >= 3, what="three versions")
    assert metrics(ring)[-1]["policy_version"] >= 3
    assert "step " in ring.run("logs", "learner")


def test_replicas_are_added_and_taken_away_while_it_trains(ring: Composed) -> None:
    ring.run(*documented("compose")[1], "--no-build")
    wait_until(lambda: healthy(ring, count=3), what="three replicas that are ready")
    ring.run("up", "--detach", "--no-build", "--scale", "rollout=2")
    wait_until(lambda: healthy(ring, count=2), what="two replicas")
    assert ring.inspect("learner")["State"]["Status"] == "running"


def test_a_killed_replica_comes_back(ring: Composed) -> None:
    before = ring.inspect("rollout")
    os.kill(before["State"]["Pid"], signal.SIGKILL)
    restarts = before["RestartCount"]
    wait_until(
        lambda: ring.inspect("rollout")["RestartCount"] > restarts and healthy(ring, count=2),
        what="the killed replica is ready again",
    )
    wait_until(lambda: serves(before["Id"]), what="it serves a version again")


@pytest.mark.parametrize(
    ("service", "port", "figure"),
    [
        ("reward", 8100, "tempsamp_reward_responses_total"),
        ("rollout", 8200, "tempsamp_rollout_groups_total"),
        ("learner", 8300, "tempsamp_learner_step"),
    ],
)
def test_every_service_has_metrics(ring: Composed, service: str, port: int, figure: str) -> None:
    url = f"http://127.0.0.1:{port}/metrics"
    scraped = ring.run("exec", "-T", service, "python", "-c", ASK, url)
    assert figure in scraped


def test_redis_is_restarted_and_training_goes_on(ring: Composed) -> None:
    ring.run("restart", "redis")
    before = len(metrics(ring))
    wait_until(lambda: len(metrics(ring)) >= before + 3, what="three steps after Redis came back")
    assert ring.inspect("learner")["RestartCount"] == 0


def test_the_token_is_wanted_from_outside(ring: Composed) -> None:
    with ring.reward() as stranger:
        assert stranger.post("/v1/score", json=REQUEST).status_code == 401
    with ring.reward(token=ring.token) as caller:
        assert caller.post("/v1/score", json=REQUEST).is_success


def test_roots_are_read_only_and_nobody_is_root(ring: Composed) -> None:
    for service in ("rollout", "learner", "reward", "redis"):
        described = ring.inspect(service)
        assert described["HostConfig"]["ReadonlyRootfs"] is True
        assert described["Config"]["User"] not in {"", "root", "0"}


def test_images_share_the_layer_with_torch(ring: Composed) -> None:
    layers = {}
    for name in ("rollout", "learner"):
        image = docker("image", "inspect", f"tempsamp-{name}:0.1.0", timeout_s=60)
        layers[name] = json.loads(image.stdout)[0]["RootFS"]["Layers"]
    common = [a for a, b in zip(layers["rollout"], layers["learner"], strict=False) if a == b]
    has_torch = ring.run(
        "run", "--rm", "--no-deps", "--entrypoint", "python", "learner", "-c", "import torch"
    )
    assert has_torch == ""
    assert len(common) >= 3


def test_it_ends_by_itself_with_a_report(ring: Composed) -> None:
    wait_until(
        lambda: ring.inspect("learner")["State"]["Status"] == "exited", what="the end", within_s=600
    )
    assert ring.inspect("learner")["State"]["ExitCode"] == 0, ring.run("logs", "learner")[-3000:]
    summary = json.loads((ring.runs / "compose/summary.json").read_text())
    assert summary["steps"] == STEPS
    assert summary["groups_unscored"] == 0
    assert (ring.runs / "compose/report.html").stat().st_size > 100_000
    with ring.reward(token=ring.token) as caller:
        assert caller.post("/v1/score", json=REQUEST).is_success


def test_the_monitoring_profile_is_one_that_compose_takes(ring: Composed) -> None:
    services = ring.run("--profile", "monitoring", "config", "--services").split()
    assert {"prometheus", "grafana"} <= set(services)


def test_replicas_may_be_many_before_anything_starts(ring: Composed, tmp_path: Path) -> None:
    other = Composed(tmp_path)
    try:
        other.run("create", "--no-build", "--scale", "rollout=3")
        assert len(other.containers("rollout")) == 3
    finally:
        other.run("down", "--volumes")


def test_a_taken_port_is_said(ring: Composed, tmp_path: Path) -> None:
    other = Composed(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environ = {**other.environ, "TEMPSAMP_REDIS_PORT": port}
        try:
            refused = docker(
                *("compose", "--project-name", other.project, "up", "--detach", "redis"),
                environ=environ,
                timeout_s=60,
            )
        finally:
            other.run("down", "--volumes")
    assert refused.returncode != 0
    assert port in refused.stderr


@pytest.mark.parametrize("knob", ["TEMPSAMP_RUN_FILE", "TEMPSAMP_RUNS"])
def test_a_file_or_folder_that_is_not_there_is_said(
    ring: Composed, tmp_path: Path, knob: str
) -> None:
    other = Composed(tmp_path)
    environ = {**other.environ, knob: str(tmp_path / "none")}
    try:
        refused = docker(
            *("compose", "--project-name", other.project, "up", "--detach", "--no-build"),
            environ=environ,
            timeout_s=120,
        )
    finally:
        other.run("down", "--volumes")
    assert refused.returncode != 0
    assert str(tmp_path / "none") in refused.stderr
    assert not (tmp_path / "none").exists()


def test_a_folder_of_somebody_else_is_one_line(ring: Composed, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a folder that it may not write to later")
    tmp_path.chmod(0o755)
    other = Composed(tmp_path)
    command = ("run", "--rm", "--no-deps", "learner")
    try:
        refused = docker(
            *("compose", "--project-name", other.project, *command),
            environ=other.environ,
            timeout_s=120,
        )
    finally:
        other.run("down", "--volumes")
    assert refused.returncode == 2
    (said,) = [
        line for line in (refused.stdout + refused.stderr).splitlines() if "tempsamp: " in line
    ]
    assert "learner.run_dir: found /runs: Permission denied" in said
