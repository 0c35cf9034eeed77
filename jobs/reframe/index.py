"""`test_index.json` of the re-framing task → what is wanted: one crop ratio a video.

[{"video_id": "0001", "targetRatioWH": [9, 16]}, …] -> read_index() -> [Wanted, …]
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from common.errors import ConfigError
from jobs.reframe.crop import Size

SHOWN_CHARS = 80


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One entry."""

    video_id: str
    """Names `<video_id>.mp4`."""
    ratio: Size
    """Width and height of the wanted crop, such as 9 and 16."""


def read_index(path: Path) -> list[Wanted]:
    """The entries in their order.

    Raises:
        ConfigError: the file cannot be read, an entry is not as above, or an id stands there twice;
            names the entry.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--index: {path}: {error}, wanted a JSON list") from error
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            f"--index: {path}: found {str(entries)[:SHOWN_CHARS]!r}, wanted a list of entries"
        )
    wanted: dict[str, Wanted] = {}
    for number, entry in enumerate(entries, 1):
        try:
            one = _wanted(entry)
        except ValueError as error:
            raise ConfigError(f"--index: {path}: entry {number}: {error}") from error
        if one.video_id in wanted:
            raise ConfigError(
                f"--index: {path}: entry {number}: found {one.video_id!r} again, wanted an id once"
            )
        wanted[one.video_id] = one
    return list(wanted.values())


def is_ratio(found: Any) -> TypeGuard[list[int]]:
    """Whether it is two whole numbers above 0."""
    return (
        isinstance(found, list)
        and len(found) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) for side in found)
        and min(found) > 0
    )


def _wanted(entry: Any) -> Wanted:
    fields = entry if isinstance(entry, dict) else {}
    video_id, ratio = fields.get("video_id"), fields.get("targetRatioWH")
    if not isinstance(video_id, str) or not _is_name(video_id):
        raise ValueError(f"found video_id {video_id!r}, wanted a file's name without its .mp4")
    if not is_ratio(ratio):
        raise ValueError(f"found targetRatioWH {ratio!r}, wanted two whole numbers above 0")
    return Wanted(video_id=video_id, ratio=Size(*ratio))


def _is_name(video_id: str) -> bool:
    """An id that leads out of the folder of videos is none."""
    return video_id not in ("", ".", "..") and not set(video_id) & set("/\\\0")
