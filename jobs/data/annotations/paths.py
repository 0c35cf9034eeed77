"""Where a video lies: strip known prefixes, put a root in front. Doing it twice changes nothing.

Files that give ids alone leave the suffix to us: `OnDisk` takes that of the file there is.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from common.video.names import SUFFIXES, video_key
from jobs.data.annotations.records import SchemaName

STRIP_PREFIXES = ("datasets/TimeLens-100K/", "datasets/")
"""The prefixes of the published training rows (SPEC A2)."""
GIVE_IDS: frozenset[SchemaName] = frozenset(
    {"timelens-bench", "charades-sta", "activitynet-captions", "qvhighlights"}
)
"""Schemas of which the suffix of a path, .mp4, is not in the file."""


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


class OnDisk:
    """Paths whose suffix is a guess → the same with the suffix of the one video of that name that
    lies there. Without one, or with several, they stay; each folder is listed once."""

    def __init__(self, place: Callable[[str], str]) -> None:
        self._place = place
        self._listed: dict[str, Mapping[str, list[str]]] = {}

    def __call__(self, video: str) -> str:
        """The path to write."""
        path = PurePosixPath(placed := self._place(video))
        suffixes = self._suffixes(str(path.parent)).get(video_key(path.name), [])
        return str(path.with_suffix(suffixes[0])) if len(suffixes) == 1 else placed

    def _suffixes(self, folder: str) -> Mapping[str, list[str]]:
        """Of each video there, by its key."""
        if folder not in self._listed:
            found: defaultdict[str, list[str]] = defaultdict(list)
            for file in Path(folder).iterdir() if Path(folder).is_dir() else ():
                if file.suffix.lower() in SUFFIXES:
                    found[video_key(file.name)].append(file.suffix)
            self._listed[folder] = found
        return self._listed[folder]


def _folder(name: str) -> str:
    """Normalised, with one slash at its end; the current folder is no prefix at all."""
    path = _plain(name)
    return "" if path == "." else path.rstrip("/") + "/"


def _plain(path: str) -> str:
    """Without `.` and doubled slashes; pathlib keeps two at the start, as POSIX allows."""
    plain = str(PurePosixPath(path))
    return plain[1:] if plain.startswith("//") else plain
