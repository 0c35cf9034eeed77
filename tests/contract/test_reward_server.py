"""The service as a process: start-up, access rules, several workers, a clean end."""

import contextlib
import resource
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from tests.fixtures.servers.reward_server import ROOT, reward_server
from tests.unit.common.rest.test_serving import sent

TOKEN = {"TEMPSAMP_TOKEN": "sesame"}
BODY = {"rewards": [0.0, 1.0], "shaping": {"kind": "nonlinear"}}


def test_it_serves_without_a_run_file_and_ends_at_sigterm() -> None:
    with reward_server() as server:
        assert httpx.get(f"{server.url}/readyz", timeout=20).json() == {"status": "ready"}
        shaped = httpx.post(f"{server.url}/v1/shape", json=BODY).json()["shaped"]
        assert shaped == pytest.approx([0.0867637, 0.8018232], abs=1e-6)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=20)
        assert server.process.returncode == 0


def test_a_crowd_of_half_sent_requests_keeps_nobody_out() -> None:
    """Without bounds these took every file there was, for ever, and needed no token."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2048), hard))
    try:
        with reward_server(nofile=1024) as server, contextlib.ExitStack() as owned:
            httpx.get(f"{server.url}/readyz", timeout=20).raise_for_status()
            half = "POST /v1/score HTTP/1.1\r\nhost: x\r\n"
            for _ in range(1100):
                owned.enter_context(sent(server.url, half))
            started = time.monotonic()
            assert httpx.get(f"{server.url}/healthz", timeout=5).is_success
            assert httpx.post(f"{server.url}/v1/shape", json=BODY, timeout=5).is_success
            assert time.monotonic() - started < 5
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_taken_port_is_one_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "tempsamp", "reward", "serve", "--port", port],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert f"reward.port: found 127.0.0.1 port {port}" in ended.stderr


def test_two_workers_answer_and_count_together() -> None:
    with reward_server("--workers", "2") as server:
        httpx.get(f"{server.url}/readyz", timeout=20).raise_for_status()
        for _ in range(20):
            httpx.post(f"{server.url}/v1/shape", json=BODY).raise_for_status()
        metrics = httpx.get(f"{server.url}/metrics").text
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0
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
