"""A service's process: port, exit codes, and an end in time whatever is open."""

import contextlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from common.errors import ConfigError
from common.rest.serving import OTHER_FILES, listen, room_for, url_of
from tests.fixtures.servers.small_service import DRAIN_S, END_S

ROOT = Path(__file__).resolve().parents[4]
SLACK_S = 8.0


@contextlib.contextmanager
def service(what: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The process and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fixtures.servers.small_service", what],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def sent(url: str, text: str) -> socket.socket:
    """A connection on which so much of a request went out."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = socket.create_connection((parts.hostname, parts.port or 0), timeout=20)
    connection.sendall(text.encode())
    return connection


def ended(process: "subprocess.Popen[str]") -> tuple[int, float, str]:
    """Exit code, seconds after SIGTERM, and the log."""
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    return process.returncode, time.monotonic() - started, log


def test_sigterm_is_a_clean_end_and_what_is_in_work_is_answered() -> None:
    with service("well") as (process, url):
        assert httpx.get(f"{url}/slow", timeout=20).json() == "slow"
        with sent(url, "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n") as connection:
            time.sleep(0.2)
            code, _, _ = ended(process)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert code == 0


@pytest.mark.parametrize(
    "half",
    [
        "POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf",
        "POST /body HTTP/1.1\r\nhost: x\r\n",
        "",
    ],
    ids=["body", "head", "nothing"],
)
def test_sigterm_does_not_wait_for_the_rest_of_a_request(half: str) -> None:
    with service("well") as (process, url):
        httpx.get(f"{url}/slow", timeout=20)
        with sent(url, half):
            time.sleep(0.2)
            code, took_s, _ = ended(process)
    assert code == 0
    assert took_s < DRAIN_S + SLACK_S


def test_what_cannot_be_cancelled_ends_with_the_process_and_that_is_said() -> None:
    with service("well") as (process, url), sent(url, "GET /hang HTTP/1.1\r\nhost: x\r\n\r\n"):
        httpx.get(f"{url}/slow", timeout=20)
        code, took_s, log = ended(process)
    assert code == 1
    assert END_S - 0.1 < took_s < END_S + SLACK_S
    assert '"did not end in time, giving up"' in log


def test_a_service_that_cannot_start_is_no_clean_end() -> None:
    with service("broken") as (process, _):
        _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "no memory" in log
    assert '"level": "critical"' in log


def test_a_taken_port_is_one_line_with_the_knobs() -> None:
    with listen("127.0.0.1", 0, knobs=("reward.host", "reward.port")) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^reward\.host, reward\.port: .* {port}: .*in use"):
            listen("127.0.0.1", port, knobs=("reward.host", "reward.port"))
    with pytest.raises(ConfigError, match=r"reward\.host.*no\.such\.host\.invalid"):
        listen("no.such.host.invalid", 0, knobs=("reward.host", "reward.port"))


def test_who_comes_before_the_app_waits() -> None:
    with listen("localhost", 0, knobs=("reward.host", "reward.port")) as listening:
        port = listening.getsockname()[1]
        assert url_of(listening, "localhost") == f"http://localhost:{port}"
        socket.create_connection(("localhost", port), timeout=5).close()


def test_connections_fit_the_limit_on_open_files(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits = {"now": (300, 1024)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.update(now=wanted))
    assert room_for(512) == 512
    assert limits["now"] == (512 + OTHER_FILES, 1024), "raised as far as needed"
    assert room_for(5000) == 1024 - OTHER_FILES
    assert limits["now"] == (1024, 1024)
    (line,) = caplog.records
    assert "ulimit" in line.message


def test_a_server_off_the_main_thread_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    from common.rest.serving import Server, configured
    from tests.fixtures.servers.small_service import app

    with listen("127.0.0.1", 0, knobs=("x.host", "x.port")) as listening:
        server = Server(configured(app("well"), connections=4, drain_s=1), end_s=1)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        assert httpx.get(f"{url_of(listening, '127.0.0.1')}/slow", timeout=20).is_success
        assert signal.getsignal(signal.SIGTERM) is before
        server.should_exit = True
        thread.join()
