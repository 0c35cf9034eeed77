"""The service as a process: start-up, access rules, several workers, a clean end."""

import signal
import subprocess
import sys

import httpx
import pytest

from tests.fixtures.reward_server import ROOT, reward_server

TOKEN = {"TEMPSAMP_TOKEN": "sesame"}
BODY = {"rewards": [0.0, 1.0], "shaping": {"kind": "nonlinear"}}


def test_it_serves_without_a_run_file_and_ends_at_sigterm() -> None:
    with reward_server() as server:
        assert httpx.get(f"{server.url}/readyz", timeout=20).json() == {"status": "ready"}
        shaped = httpx.post(f"{server.url}/v1/shape", json=BODY).json()["shaped"]
        assert shaped == pytest.approx([0.0867637, 0.8018232], abs=1e-6)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=20)
        assert server.process.returncode in (0, -signal.SIGTERM)


def test_two_workers_answer_and_count_together() -> None:
    with reward_server("--workers", "2") as server:
        httpx.get(f"{server.url}/readyz", timeout=20).raise_for_status()
        for _ in range(20):
            httpx.post(f"{server.url}/v1/shape", json=BODY).raise_for_status()
        metrics = httpx.get(f"{server.url}/metrics").text
    name = 'tempsamp_reward_request_seconds_count{route="/v1/shape",status="200"}'
    assert f"{name} 20.0" in metrics


def test_a_token_in_the_environment_is_wanted_from_callers() -> None:
    with reward_server(environ=TOKEN) as server:
        httpx.get(f"{server.url}/readyz", timeout=20).raise_for_status()
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert httpx.post(f"{server.url}/v1/shape", json=BODY).status_code == 401
        headers = {"Authorization": "Bearer sesame"}
        assert httpx.post(f"{server.url}/v1/shape", json=BODY, headers=headers).status_code == 200


def test_off_loopback_without_a_token_it_refuses_to_start() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tempsamp", "reward", "serve", "--host", "0.0.0.0", "--port", "0"],
        cwd=ROOT,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "reward.host: found '0.0.0.0' and no token" in ended.stderr
    assert "TEMPSAMP_TOKEN" in ended.stderr
