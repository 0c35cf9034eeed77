"""Slow requests end, and a server whose places are taken still answers."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from common.rest.connections import Connections
from common.rest.serving import Server, configured, listen, url_of
from tests.fixtures.servers.small_service import RELEASE, app
from tests.unit.common.rest.test_serving import sent

HEAD = "GET /slow HTTP/1.1\r\nhost: x\r\n"
POST = "POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n"
UNREAD = "POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
"""Answered (405) before its body has come."""
HEAD_S, BODY_S, REST_S = 0.4, 0.8, 0.3


@contextlib.contextmanager
def serving(connections: Connections) -> Iterator[str]:
    """The small service in a thread."""
    with listen("127.0.0.1", 0, knobs=("x.host", "x.port")) as listening:
        server = Server(configured(app("well"), connections=connections, drain_s=1), end_s=1)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield url_of(listening, "127.0.0.1")
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Connections(64, head_s=HEAD_S, body_s=BODY_S, rest_s=REST_S)) as url:
        yield url


def closed_after(connection: socket.socket, *, dripping: bytes = b"") -> float:
    """Seconds until the other side closes; sends a little now and then."""
    started = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - started < 10:
        try:
            if connection.recv(65_536) == b"":
                return time.monotonic() - started
        except TimeoutError:
            with contextlib.suppress(OSError):
                connection.sendall(dripping)
        except ConnectionError:
            return time.monotonic() - started
    raise AssertionError("still open after 10 s")


@pytest.mark.parametrize(
    ("begun", "dripping", "limit_s"),
    [
        ("", b"", HEAD_S),
        ("", b"\r\n", HEAD_S),
        (HEAD, b"", HEAD_S),
        (HEAD, b"x: y\r\n", HEAD_S),
        (POST, b"", BODY_S),
        (UNREAD, b"x", REST_S),
    ],
    ids=["silence", "empty lines", "half a head", "headers for ever", "no body", "unread body"],
)
def test_a_request_that_does_not_come_ends_in_time(
    url: str, begun: str, dripping: bytes, limit_s: float
) -> None:
    with sent(url, begun) as connection:
        assert limit_s - 0.1 < closed_after(connection, dripping=dripping) < limit_s + 4.0


def test_a_further_request_has_the_same_time(url: str) -> None:
    with sent(url, HEAD + "\r\n") as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        time.sleep(HEAD_S + 0.2)  # idle is not slow
        connection.sendall(HEAD.encode())
        assert HEAD_S - 0.1 < closed_after(connection) < HEAD_S + 4.0


def test_an_answer_in_work_is_not_cut_by_the_head_after_it(url: str) -> None:
    with sent(url, HEAD + "\r\n" + HEAD) as connection:
        # The answer takes longer than a head may.
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_slow_and_steady_request_within_its_time_is_answered(url: str) -> None:
    with sent(url, POST) as connection:
        for byte in b"slow":
            time.sleep(0.1)
            connection.sendall(bytes([byte]))
        assert connection.recv(1000).endswith(b"\r\n\r\n4")


def test_with_every_place_taken_the_oldest_idle_connection_goes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(Connections(4)) as url, contextlib.ExitStack() as owned:
        halves = [owned.enter_context(sent(url, HEAD)) for _ in range(12)]
        assert httpx.get(f"{url}/slow", timeout=5).json() == "slow"
        for half in halves[:8]:
            assert half.recv(1) == b""
        halves[-1].sendall(b"\r\n")
        assert halves[-1].recv(1000).startswith(b"HTTP/1.1 200"), "a newer one has its place"
    assert [r.message for r in caplog.records if "too many" in r.message] == [
        "too many connections: the oldest idle ones are closed"
    ]


def test_with_an_answer_in_work_on_each_the_newcomer_gets_503() -> None:
    with serving(Connections(3)) as url, contextlib.ExitStack() as owned:
        RELEASE.clear()
        held = HEAD.replace("/slow", "/held") + "\r\n"
        busy = [owned.enter_context(sent(url, held)) for _ in range(3)]
        refused = httpx.get(f"{url}/slow", timeout=5)
        while refused.is_success:  # not all of them are at work yet
            refused = httpx.get(f"{url}/slow", timeout=5)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        RELEASE.set()
        for connection in busy:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert httpx.get(f"{url}/slow", timeout=5).is_success
