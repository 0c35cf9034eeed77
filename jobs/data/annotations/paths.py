"""Where a video lies: strip known prefixes, put a root in front. Doing it twice changes nothing."""

from collections.abc import Sequence
from pathlib import PurePosixPath

STRIP_PREFIXES = ("datasets/TimeLens-100K/", "datasets/")
"""The prefixes of the published training rows (SPEC A2)."""


class Rerooting:
    """Turns published paths into paths below a root.

    A prefix is whole folders. An absolute path changes only where a prefix matches it; gluing a
    root in front of one is how the published converter broke paths. URLs are left alone.
    """

    def __init__(
        self, *, strip_prefixes: Sequence[str] = STRIP_PREFIXES, video_root: str | None = None
    ) -> None:
        self._prefixes = tuple(sorted(map(_folder, strip_prefixes), key=len, reverse=True))
        self._root = None if video_root is None else _folder(video_root)

    def __call__(self, video: str) -> str:
        """The path to write."""
        if "://" in video:
            return video
        path = _plain(video)
        while (rerooted := self._once(path)) != path:
            path = rerooted
        return path

    def _once(self, path: str) -> str:
        """One step; each either shortens the path or brings it below the root, so steps end."""
        prefix = next((p for p in self._prefixes if path.startswith(p)), "")
        root = self._root
        if root is None:
            return path[len(prefix) :]
        if path.startswith(root) and len(prefix) <= len(root):
            return path
        if path.startswith("/") and not prefix:
            return path
        return root + path[len(prefix) :]


def _folder(name: str) -> str:
    """Normalised, with one slash at its end; the current folder is no prefix at all."""
    path = _plain(name)
    return "" if path == "." else path.rstrip("/") + "/"


def _plain(path: str) -> str:
    """Without `.` and doubled slashes; pathlib keeps two at the start, as POSIX allows."""
    plain = str(PurePosixPath(path))
    return plain[1:] if plain.startswith("//") else plain
