"""Which video files may be opened: `VideoRoots(roots).resolve(uri) -> real path of a local file`.

Rows and requests name videos, and come from outside. Whoever is about to open one asks here first;
`common.video.frames` then only sees absolute paths of regular files, so that no name is taken for
one of FFmpeg's protocols. Knobs: `shared.video.roots`, `shared.video.allow_urls`.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from common.errors import VideoError
from common.video.names import as_on_disk

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
DOWNLOAD_TIMEOUT_S = 3600.0
"""A server that drips is given up after this."""
MAX_DOWNLOAD_BYTES = 8 * 2**30
CHUNK_BYTES = 2**20

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


class VideoRoots:
    """Folders below which videos may be opened."""

    def __init__(
        self, roots: Sequence[Path], allow_urls: bool = False, downloads: Path | None = None
    ) -> None:
        """Remember the folders; none has to exist yet.

        Args:
            roots: folders; a path inside any of them is allowed, "/" allows all.
            allow_urls: whether http and https addresses are downloaded.
            downloads: where to; files there are allowed whatever the roots.

        Raises:
            ValueError: `allow_urls` without a folder for downloads.
        """
        if allow_urls and downloads is None:
            raise ValueError("shared.video.allow_urls: found true, wanted a folder for downloads")
        self._roots = tuple(roots)
        self._downloads = downloads if allow_urls else None

    def resolve(self, uri: str) -> Path:
        """The real path of a video, all links followed; letters may be composed in another way.

        Args:
            uri: a path, absolute or from the working directory; or an http(s) address, which is
                downloaded once.

        Raises:
            VideoError: the file is missing, no regular file, or outside of the roots; the address
                is not allowed or cannot be downloaded.
        """
        scheme = _SCHEME.match(uri)
        if scheme is None:
            return self._local(uri)
        if self._downloads is None or scheme.group().lower() not in ("http:", "https:"):
            raise VideoError(
                f"{_shown(uri)}: found {scheme.group()!r}, wanted a path below the roots "
                f"{self._listed()}; shared.video.allow_urls opens http and https addresses"
            )
        return _download(uri, folder=self._downloads)

    def _local(self, uri: str) -> Path:
        try:
            real = as_on_disk(Path(uri)).resolve(strict=True)
            mode = real.stat().st_mode
        except (OSError, RuntimeError, ValueError) as error:  # missing; a loop of links; a NUL
            raise VideoError(f"{uri!r}: {getattr(error, 'strerror', None) or error}") from error
        if not any(real.is_relative_to(root.resolve()) for root in self._roots):
            raise VideoError(
                f"{uri}: found it at {real}, wanted it below one of the roots {self._listed()}: "
                "add its folder to shared.video.roots"
            )
        if not stat.S_ISREG(mode):
            raise VideoError(f"{uri}: found a folder or device, wanted a video file")
        return real

    def _listed(self) -> str:
        return str([os.fspath(root.resolve()) for root in self._roots])


def _download(url: str, *, folder: Path) -> Path:
    """Fetch a file that is not there yet; other processes wait for the one that fetches."""
    target = folder.resolve() / hashlib.sha256(url.encode()).hexdigest()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_suffix(".lock")):
            if not target.exists():
                _fetch(url, target=target)
    except OSError as error:
        raise VideoError(f"{_shown(url)}: cannot be stored in {folder}: {error}") from error
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(url: str, *, target: Path) -> None:
    import httpx

    partial = target.with_suffix(f".{os.getpid()}.partial")
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    try:
        with (
            httpx.stream("GET", url, follow_redirects=True, timeout=timeout) as answer,
            open(partial, "wb") as file,
        ):
            answer.raise_for_status()
            for chunk in _bounded(answer.iter_bytes(CHUNK_BYTES), url=url):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VideoError(f"{_shown(url)}: cannot be downloaded: {reason}") from error
    except (ImportError, ValueError) as error:  # a proxy that httpx cannot use
        raise VideoError(
            f"{_shown(url)}: cannot be downloaded: {str(error).splitlines()[0]}; is HTTP_PROXY, "
            "HTTPS_PROXY, ALL_PROXY or NO_PROXY wrong?"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _bounded(chunks: Iterator[bytes], *, url: str) -> Iterator[bytes]:
    deadline_s = time.monotonic() + DOWNLOAD_TIMEOUT_S
    received_bytes = 0
    for chunk in chunks:
        received_bytes += len(chunk)
        if received_bytes > MAX_DOWNLOAD_BYTES:
            raise VideoError(f"{_shown(url)}: found more than {MAX_DOWNLOAD_BYTES} bytes")
        if time.monotonic() > deadline_s:
            raise VideoError(f"{_shown(url)}: found no end within {DOWNLOAD_TIMEOUT_S:.0f} s")
        yield chunk


def _shown(url: str) -> str:
    """Without user, password and query: signed addresses carry secrets there."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}:{'//' + parts.hostname if parts.hostname else ''}{parts.path}"
    except ValueError:
        return "an unreadable address"
