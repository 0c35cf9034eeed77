"""Which files may be opened, and addresses fetched from a real server on this machine."""

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.errors import VideoError
from common.video import roots as video_roots
from common.video.roots import VideoRoots

CONTENT = b"moving pictures " * 4096


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a video in it, and a secret beside it."""
    folder = tmp_path / "videos"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "clip.mp4").write_bytes(CONTENT)
    (tmp_path / "secret.mp4").write_bytes(CONTENT)
    return folder


class TestPaths:
    def test_file_below_a_root_is_found(self, root: Path) -> None:
        assert VideoRoots([root]).resolve(f"{root}/a/clip.mp4") == (root / "a/clip.mp4").resolve()

    def test_any_of_several_roots_will_do_and_one_may_not_exist(
        self, root: Path, tmp_path: Path
    ) -> None:
        roots = VideoRoots([tmp_path / "not there", tmp_path / "b", root])
        assert roots.resolve(f"{root}/a/clip.mp4").name == "clip.mp4"

    def test_relative_path_starts_at_the_working_directory(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(root)
        assert VideoRoots([Path("a")]).resolve("a/clip.mp4") == (root / "a/clip.mp4").resolve()

    def test_root_of_the_file_system_allows_all(self, root: Path, tmp_path: Path) -> None:
        assert VideoRoots([Path("/")]).resolve(f"{tmp_path}/secret.mp4").name == "secret.mp4"

    def test_without_roots_nothing_is_allowed(self, root: Path) -> None:
        with pytest.raises(
            VideoError, match=r"below one of the roots \[\]: .*shared\.video\.roots"
        ):
            VideoRoots([]).resolve(f"{root}/a/clip.mp4")

    def test_refusal_names_path_roots_and_knob(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(VideoError) as caught:
            VideoRoots([root]).resolve(f"{tmp_path}/secret.mp4")
        for part in (f"{tmp_path}/secret.mp4", str(root), "shared.video.roots"):
            assert part in str(caught.value)

    def test_climbing_out_is_refused(self, root: Path) -> None:
        with pytest.raises(VideoError, match=r"shared\.video\.roots"):
            VideoRoots([root]).resolve(f"{root}/a/../../secret.mp4")

    def test_neighbour_whose_name_starts_alike_is_outside(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "videos2").mkdir()
        (tmp_path / "videos2" / "clip.mp4").write_bytes(CONTENT)
        with pytest.raises(VideoError, match=r"shared\.video\.roots"):
            VideoRoots([root]).resolve(f"{tmp_path}/videos2/clip.mp4")

    @pytest.mark.parametrize("folder_link", [True, False])
    def test_link_out_of_the_root_is_refused(
        self, root: Path, tmp_path: Path, folder_link: bool
    ) -> None:
        (root / "link").symlink_to(tmp_path if folder_link else tmp_path / "secret.mp4")
        uri = f"{root}/link/secret.mp4" if folder_link else f"{root}/link"
        with pytest.raises(VideoError, match=r"shared\.video\.roots"):
            VideoRoots([root]).resolve(uri)

    def test_link_into_a_root_and_a_root_that_is_a_link_are_followed(
        self, root: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "alias").symlink_to(root)
        found = VideoRoots([tmp_path / "alias"]).resolve(f"{tmp_path}/alias/a/clip.mp4")
        assert found == (root / "a/clip.mp4").resolve()

    def test_links_in_a_circle_are_refused(self, root: Path) -> None:
        (root / "circle").symlink_to(root / "circle")
        with pytest.raises(VideoError, match="circle"):
            VideoRoots([root]).resolve(f"{root}/circle")

    def test_missing_file_and_impossible_name_are_refused(self, root: Path) -> None:
        with pytest.raises(VideoError, match=r"none\.mp4.*No such file"):
            VideoRoots([root]).resolve(f"{root}/none.mp4")
        with pytest.raises(VideoError, match="null"):
            VideoRoots([root]).resolve(f"{root}/a\0.mp4")

    def test_folder_pipe_and_device_are_refused(self, root: Path) -> None:
        os.mkfifo(root / "pipe")
        for roots, uri in (([root], root / "a"), ([root], root / "pipe"), (["/"], "/dev/zero")):
            with pytest.raises(VideoError, match="found a folder or device"):
                VideoRoots([Path(root) for root in roots]).resolve(str(uri))

    @pytest.mark.parametrize(
        "uri",
        [
            "http://127.0.0.1/clip.mp4",
            "HTTPS://127.0.0.1/clip.mp4",
            "file:///etc/passwd",
            "concat:a.mp4|b.mp4",
            "rtsp://127.0.0.1/live",
            "subfile,,start,0,end,9,,:clip.mp4",
            "data:video/mp4;base64,AAAA",
        ],
    )
    def test_protocols_are_refused_even_where_all_paths_are_allowed(
        self, uri: str, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(root)
        with pytest.raises(VideoError):
            VideoRoots([Path("/")]).resolve(uri)

    def test_refused_address_names_the_knob_and_keeps_its_secrets(self) -> None:
        with pytest.raises(VideoError, match=r"shared\.video\.allow_urls") as caught:
            VideoRoots([Path("/")]).resolve("https://user:pass@host/clip.mp4?token=abc")
        assert "host/clip.mp4" in str(caught.value)
        assert "pass" not in str(caught.value)
        assert "abc" not in str(caught.value)


class Server(ThreadingHTTPServer):
    """Counts what it is asked for."""

    asked: int = 0

    @property
    def url(self) -> str:
        """Address of the video."""
        return f"http://127.0.0.1:{self.server_port}/clip.mp4"


class Handler(BaseHTTPRequestHandler):
    """`/clip.mp4` is a video, `/moved` leads to it, `/short` breaks off, the rest is missing."""

    server: Server

    def do_GET(self) -> None:
        """Answer one request."""
        self.server.asked += 1
        path = self.path.partition("?")[0]
        status = {"/clip.mp4": 200, "/short": 200, "/moved": 302, "/away": 302}.get(path, 404)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/clip.mp4" if path == "/moved" else "file:///etc/passwd")
        body = CONTENT if status == 200 else b""
        self.send_header("Content-Length", str(len(body) + (path == "/short")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on a free port of this machine."""
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class TestAddresses:
    @pytest.fixture
    def roots(self, tmp_path: Path) -> VideoRoots:
        return VideoRoots([], allow_urls=True, downloads=tmp_path / "downloads")

    def test_is_downloaded_under_the_digest_of_its_address(
        self, server: Server, roots: VideoRoots, tmp_path: Path
    ) -> None:
        found = roots.resolve(server.url)
        assert found.read_bytes() == CONTENT
        assert found.name == hashlib.sha256(server.url.encode()).hexdigest()
        assert found.parent == (tmp_path / "downloads").resolve()

    def test_is_downloaded_once_however_many_ask(self, server: Server, roots: VideoRoots) -> None:
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(roots.resolve, [server.url] * 8))
        assert len(found) == 1
        assert server.asked == 1

    def test_redirection_is_followed_but_not_to_a_file(
        self, server: Server, roots: VideoRoots
    ) -> None:
        assert roots.resolve(f"{server.url[:-9]}/moved").read_bytes() == CONTENT
        with pytest.raises(VideoError, match="cannot be downloaded"):
            roots.resolve(f"{server.url[:-9]}/away")

    @pytest.mark.parametrize(
        ("path", "reason"), [("/none", "404"), ("/short", "closed|incomplete")]
    )
    def test_failure_is_an_error_and_leaves_nothing_behind(
        self, server: Server, roots: VideoRoots, tmp_path: Path, path: str, reason: str
    ) -> None:
        with pytest.raises(VideoError, match=rf"{path}: cannot be downloaded: .*({reason})"):
            roots.resolve(server.url[:-9] + path)
        assert [file.suffix for file in (tmp_path / "downloads").iterdir()] == [".lock"]

    def test_too_large_file_is_given_up(
        self, server: Server, roots: VideoRoots, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(video_roots, "MAX_DOWNLOAD_BYTES", len(CONTENT) - 1)
        with pytest.raises(VideoError, match=rf"found more than {len(CONTENT) - 1} bytes"):
            roots.resolve(server.url)
        assert [file.suffix for file in (tmp_path / "downloads").iterdir()] == [".lock"]

    def test_server_that_is_not_there_is_an_error(self, roots: VideoRoots) -> None:
        with Server(("127.0.0.1", 0), Handler) as gone:
            url = gone.url
        with pytest.raises(VideoError, match=r"clip\.mp4: cannot be downloaded"):
            roots.resolve(url)

    def test_other_protocols_stay_refused(self, roots: VideoRoots) -> None:
        with pytest.raises(VideoError, match="rtsp:"):
            roots.resolve("rtsp://127.0.0.1/live")

    def test_folder_for_downloads_is_needed(self) -> None:
        with pytest.raises(ValueError, match="wanted a folder for downloads"):
            VideoRoots([], allow_urls=True)
