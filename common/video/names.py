"""Names of videos as people write them: which mean one video, and which are near.

    video_key("videos/Kühlschrank.MP4") == video_key("Kühlschrank")

Folders, the suffix of a video and how letters are composed (NFC, NFD) do not count. Upper and lower
case do: ids of YouTube may differ by them alone; a name that differs so is shown as the nearest.
Durations, predictions and files are all looked for by this (`jobs.data.annotations.durations`,
`jobs.evaluation`), paths as rows write them by `as_on_disk` (`common.video.roots`).
"""

import functools
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from types import MappingProxyType

SUFFIXES = (
    *(".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v"),
    *(".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".3gp", ".ogv"),
)
"""Of videos, those that are preferred first. Dots of `NUsG9BgSes0_210.0_360.0` are no suffix."""
SHOWN = 5
"""Names in a message."""
MANY = 20_000
"""Of more names than this only those are compared that differ in their letter case: comparing them
all takes a second a name."""


def video_key(name: str) -> str:
    """What all ways to write the name of a video have in common; equal keys mean one video."""
    path = PurePosixPath(name)
    plain = path.stem if path.suffix.lower() in SUFFIXES else path.name
    return unicodedata.normalize("NFC", plain)


def nearest(name: str, known: Collection[str], *, count: int = 1) -> list[str]:
    """Names like one that was not found, the most alike first.

    Args:
        name: what was looked for.
        known: what there is, keys or not; names are compared by their keys.
        count: at most so many.
    """
    wanted = video_key(name)
    folded = [one for one in known if video_key(one).casefold() == wanted.casefold()]
    if folded or len(known) > MANY:
        return sorted(folded)[:count]
    by_key = {video_key(one): one for one in known}
    return [by_key[key] for key in get_close_matches(wanted, by_key, n=count)]


def with_nearest(names: Collection[str], known: Collection[str]) -> str:
    """Names that were not found, the first `SHOWN`, each with what it may have been."""
    shown = [_with_hint(name, nearest(name, known)) for name in list(names)[:SHOWN]]
    return ", ".join(shown) + (", \u2026" if len(names) > SHOWN else "")


def as_on_disk(path: Path) -> Path:
    """The path itself, or the one there is whose letters are composed in another way.

    A copy of a folder may come with other compositions than the annotations were written with.
    """
    if str(path).isascii() or path.exists():
        return path
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        there = next((found / form for form in _forms(part) if (found / form).exists()), None)
        if there is None:
            return path
        found = there
    return found


def videos_in(folder: Path) -> Mapping[str, Path]:
    """Files of a folder by key; a folder that is not there has none. Read anew when it changes."""
    try:
        return _listed(folder, folder.stat().st_mtime_ns)
    except OSError:
        return MappingProxyType({})


def near_files(path: Path) -> str:
    """What a message may add about a file that is missing: `; nearest there: b.mp4`, or nothing."""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    there = {file.name for file in videos_in(path.parent).values()}
    found = nearest(path.name, there)
    return f"; nearest there: {found[0]!r}" if found else ""


def _with_hint(name: str, near: list[str]) -> str:
    return f"{name!r} (nearest: {near[0]!r})" if near else repr(name)


def _forms(part: str) -> Iterator[str]:
    yield part
    for form in ("NFC", "NFD"):
        yield unicodedata.normalize(form, part)


@functools.lru_cache(maxsize=64)
def _listed(folder: Path, _mtime_ns: int) -> Mapping[str, Path]:
    """Of several files with one key the preferred suffix counts, then the first in order."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES]
    files.sort(key=lambda file: (SUFFIXES.index(file.suffix.lower()), file.name))
    by_key: dict[str, Path] = {}
    for file in files:
        by_key.setdefault(video_key(file.name), file)
    return MappingProxyType(by_key)
