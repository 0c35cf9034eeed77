"""Addresses of replicas: what cannot be one is refused before anything is asked."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

import tempsamp
from common.errors import ConfigError
from jobs.asking.endpoints import check_endpoints
from tests.fixtures.replicas.stand_in_replica import serving, unused_url


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """URL of a service that says the same to everybody."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def do_POST(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("endpoint", ["localhost", "localhost:8100", "ftp://a", "http://", "a\nb"])
def test_an_address_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="--endpoint: found ") as refused:
        check_endpoints([endpoint])
    assert repr(endpoint) in str(refused.value)


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, '{"status":"ready"}'), (200, "<html>welcome</html>"), (404, "no such page")],
)
def test_another_service_is_named_with_what_it_answered(status: int, body: str) -> None:
    with answering(status, body) as url, pytest.raises(ConfigError) as refused:
        check_endpoints([url])
    assert f"found {url}, whose /readyz answers status {status}: {body!r}" in str(refused.value)
    assert "wanted a rollout replica" in str(refused.value)


def test_only_a_replica_is_drained() -> None:
    for status, body in ((200, '{"status":"ready"}'), (404, "no such page")):
        with answering(status, body) as url:
            refused = CliRunner().invoke(tempsamp.app, ["drain", url]).exception
        assert isinstance(refused, ConfigError)
        assert str(refused).startswith(f"REPLICA: found {url}, whose /readyz answers status")
        assert "wanted a rollout replica" in str(refused)
    with answering(503, "not ready") as url:
        refused = CliRunner().invoke(tempsamp.app, ["drain", url]).exception
    assert isinstance(refused, ConfigError)
    assert f"{url}, whose /v1/drain answers status 404: ''" in str(refused)


def test_replicas_pass_also_while_they_load_or_do_not_answer_yet() -> None:
    with serving(lambda _: "") as replica, answering(503, "the engine is still loading") as loading:
        check_endpoints([replica.url, f"{replica.url}/", loading, unused_url()])
