"""The three states of a service, told apart over real HTTP."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from common.rest.health import state_of
from jobs.local.redis import free_port

ROOT = Path(__file__).resolve().parents[4]


class Handler(BaseHTTPRequestHandler):
    """/healthz is fine; /readyz says what the server holds."""

    ready = 503

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else self.ready)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_ready_and_loading_are_told_apart(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_of(url) == "loading"
    monkeypatch.setattr(Handler, "ready", 200)
    assert state_of(url) == "ready"


def test_a_proxy_is_not_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert state_of(url) == "loading"


def test_nobody_there_is_dead_and_the_exit_code_says_so() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    asked = subprocess.run(
        [sys.executable, "-m", "common.rest.health", url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert asked.returncode == 1
    assert asked.stdout.startswith("dead: ")
