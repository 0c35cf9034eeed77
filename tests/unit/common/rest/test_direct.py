"""Whatever the environment says, our own services are asked directly; downloads are not."""

import asyncio
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from common.errors import ConfigError, RewardError, VideoError
from common.rest import direct
from common.rest.reward_client import RewardClient
from common.video.roots import VideoRoots

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
NOBODY = "http://127.0.0.1:9"
PROXIES: list[Mapping[str, str]] = [
    {"HTTP_PROXY": NOBODY},
    {"HTTP_PROXY": NOBODY, "NO_PROXY": "127.0.0.0/8"},
    {"HTTP_PROXY": NOBODY, "NO_PROXY": "localhost,fe80::/10"},
    {"ALL_PROXY": "socks5://127.0.0.1:1080"},
    {"ALL_PROXY": "nonsense"},
]


class Service(BaseHTTPRequestHandler):
    """Says that it is there."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def say(environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        for spelt in (name, name.lower()):
            monkeypatch.delenv(spelt, raising=False)
            if name in environ:
                monkeypatch.setenv(spelt, environ[name])


@pytest.mark.parametrize("environ", PROXIES, ids=str)
def test_services_are_asked_directly(
    environ: Mapping[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(environ, monkeypatch)

    async def asked() -> int:
        async with direct.async_client(base_url=url) as client:
            return (await client.get("/readyz")).status_code

    with direct.client(base_url=url) as client:
        assert client.get("/readyz").status_code == 200
    assert asyncio.run(asked()) == 200
    with RewardClient(url) as reward, pytest.raises(RewardError, match="404"):
        reward.scorers()


@pytest.mark.parametrize("environ", PROXIES, ids=str)
def test_a_download_goes_through_the_proxy_and_a_broken_one_is_one_line(
    environ: Mapping[str, str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(environ, monkeypatch)
    with pytest.raises(VideoError, match="cannot be downloaded: ") as caught:
        VideoRoots([], allow_urls=True, downloads=tmp_path).resolve(f"{url}/a.mp4")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"), [("SSL_CERT_FILE", None), ("SSL_CERT_DIR", None), ("SSL_CERT_FILE", "no")]
)
def test_authorities_that_are_none_are_named(
    name: str, content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "authorities"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(name, str(path))
    with pytest.raises(ConfigError, match=f"{name}: found {path}.*wanted certificates"):
        direct.client()
