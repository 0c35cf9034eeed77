"""What rank 0 shows of itself, to whom, and that its end is the learner's."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from common.config import Run
from common.errors import ConfigError
from common.messages import ReplicaStatus
from services.learner.metrics import SERIES, series_of
from services.learner.status import LAPS, Status, StatusCollector, serving

ROOT = Path(__file__).resolve().parents[2]
LINE = {
    "step": 3,
    "policy_version": 3,
    "learner/wait_s": 1.5,
    "learner/step_s": 2.0,
    "learner/publish_s": 0.5,
    "learner/transfer_s": 0.75,
    "learner/transfer_bytes": 4096.0,
    "learner/pause_ms": 12.5,
    "learner/validate_s": 0.25,
    "learner/skipped_steps": 1.0,
    "learner/entropy_nats": 0.7,
    "learner/logprob_gap_max_nats": 0.01,
    "reward/iou": 0.4,
    "reward/injected_iou": 1.0,
    "reward/best_of_group_iou": 0.8,
    "reward/unscored_fraction": 0.125,
    "intake/groups_stale": 2,
    "intake/prompts_dead": 1,
    "queue/groups_unread": 5,
    "rollout/generate_s_mean": 0.3,
}


def run(tmp_path: Path, *, token: str | None = None, **learner: Any) -> Run:
    section = {"rows": "rows.jsonl", "run_dir": str(tmp_path), "steps": 1, "metrics_port": 0}
    shared = {"run_id": "test", "model": "none", "token": token}
    return Run.model_validate({"shared": shared, "learner": section | learner})


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Name and labels → value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(status: Status, name: str, **labels: str) -> float:
    """One sample of a status."""
    found = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in StatusCollector(status).collect()
        for sample in family.samples
    }
    return found["tempsamp_learner_" + name, frozenset(labels.items())]


def address(caplog: pytest.LogCaptureFixture) -> str:
    """Where the server of this test listens, as its log says."""
    (line,) = [record for record in caplog.records if record.message == "listening"]
    return str(line.__dict__["url"])


@pytest.fixture(autouse=True)
def _hear_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="services.learner.status")


def test_a_step_line_is_shown_under_prometheus_names() -> None:
    status = Status()
    status.stepped(LINE)
    status.stepped(LINE)
    assert value(status, "step") == 3
    assert value(status, "entropy_nats") == 0.7
    assert value(status, "reward_mean", part="iou", provenance="policy") == 0.4
    assert value(status, "reward_mean", part="iou", provenance="injected") == 1.0
    assert value(status, "best_of_group_iou") == 0.8
    assert value(status, "unscored_fraction") == 0.125
    assert value(status, "logprob_gap_nats", over="max") == 0.01
    assert value(status, "queue_depth", queue="groups_unread") == 5
    assert value(status, "group_seconds_mean", stage="generate") == 0.3
    # Of the last delivery, also when it travelled beside the step: no part of the step's wall time.
    assert value(status, "transfer_seconds") == 0.75
    assert value(status, "transfer_bytes") == 4096
    assert value(status, "pause_milliseconds") == 12.5
    # Running totals stay what the line says; what a line says of its own step adds up.
    assert value(status, "groups_total", outcome="stale") == 2
    assert value(status, "prompts_dead_total") == 1
    assert value(status, "skipped_steps_total") == 2
    assert value(status, "wait_seconds_total") == 3.0
    assert value(status, "step_wall_seconds_total") == 8.5


def test_names_are_prometheus_names_and_one_name_has_one_shape() -> None:
    shapes = {(s.name, s.kind, s.help, tuple(s.label_names)) for s in SERIES}
    assert len(shapes) == len({series.name for series in SERIES})
    for series in SERIES:
        assert series.name.startswith("tempsamp_learner_")
        assert not series.name.endswith("_total"), "the client adds it"
    assert set(LAPS) <= {series.name for series in SERIES if series.kind == "sum"}


def test_an_unknown_key_is_not_shown() -> None:
    assert series_of("learner/brand_new") is None
    assert series_of("reward/brand_new") is not None, "parts are whatever a scorer returns"
    Status().show({"learner/brand_new": 1.0})


def test_waiting_is_shown_while_it_lasts_and_is_never_taken_back() -> None:
    status, seen = Status(), [0.0]
    with status.waiting():
        time.sleep(0.05)
        seen.append(value(status, "wait_seconds_total"))
    seen.append(value(status, "wait_seconds_total"))
    assert value(status, "step_wall_seconds_total") == seen[-1]
    status.stepped({"step": 1, "learner/wait_s": seen[-1] + 0.01, "learner/step_s": 1.0})
    seen.append(value(status, "wait_seconds_total"))
    assert seen == sorted(seen)
    assert 0.05 <= seen[1] <= seen[-1] < 1.0


def test_replicas_are_counted_by_phase() -> None:
    entry = ReplicaStatus(
        replica="a",
        url="http://a",
        phase="serving",
        version=1,
        run_tag="t",
        generation=1,
        num_workers=1,
        completed_groups=0,
        failed_prompts=0,
        generated_tokens=0,
    )
    status = Status()
    status.saw([entry, entry.model_copy(update={"phase": "draining"})])
    assert value(status, "replicas", phase="serving") == 1
    assert value(status, "replicas", phase="starting") == 0
    status.saw([])
    assert value(status, "replicas", phase="serving") == 0


def test_health_at_once_ready_when_the_run_is_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(run(tmp_path)) as status:
        url = address(caplog)
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
        loading = httpx.get(f"{url}/readyz")
        assert loading.status_code == 503
        assert loading.json()["detail"] == "the learner is loading"
        assert samples(httpx.get(f"{url}/metrics").text)["tempsamp_learner_ready", frozenset()] == 0
        status.ready(7)
        assert httpx.get(f"{url}/readyz").json() == {"status": "training"}
        shown = samples(httpx.get(f"{url}/metrics").text)
        assert shown["tempsamp_learner_policy_version", frozenset()] == 7
        assert shown["tempsamp_learner_ready", frozenset()] == 1
        assert 0 <= shown["tempsamp_learner_last_step_age_seconds", frozenset()] < 60


def test_figures_want_the_token_and_probes_do_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(run(tmp_path, token="sesame", metrics_host="0.0.0.0")):
        url = address(caplog).replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/metrics").status_code == 401
        allowed = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer sesame"})
        assert allowed.headers["content-type"].startswith("text/plain")
        assert "tempsamp_learner_step" in allowed.text
        assert httpx.get(f"{url}/healthz").is_success


def test_off_loopback_without_a_token_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(ConfigError, match=r"learner\.metrics_host: found '0\.0\.0\.0'")
    with refused, serving(run(tmp_path, metrics_host="0.0.0.0")):
        pass
    with serving(run(tmp_path, metrics_host="0.0.0.0", allow_remote=True)):
        pass


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
def test_all_addresses_are_those_of_both_families(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(run(tmp_path, metrics_host="::", token="sesame")):
        url = address(caplog)
        assert url.startswith("http://[::]:")
        for host in ("[::1]", "127.0.0.1"):
            assert httpx.get(f"{url.replace('[::]', host)}/healthz").is_success


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = pytest.raises(ConfigError, match=rf"learner\.metrics_port.*port {port}: .*in use")
        with refused, serving(run(tmp_path, metrics_port=port)):
            pass


@pytest.mark.parametrize("at_once", [True, False], ids=["at-once", "later"])
def test_the_server_ends_with_a_learner_that_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, at_once: bool
) -> None:
    before = set(threading.enumerate())
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    url = ""

    def fail() -> None:
        nonlocal url
        with serving(run(tmp_path)):
            url = address(caplog)
            if not at_once:
                assert httpx.get(f"{url}/healthz").is_success
            now = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
            assert now == handlers
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert set(threading.enumerate()) == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


def test_other_ranks_load_no_web_server() -> None:
    code = (
        "import sys, services.learner.train as _; print(*{'fastapi', 'uvicorn'} & {*sys.modules})"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == ""
