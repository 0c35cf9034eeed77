"""Durations from another file, for annotations that have none: path → seconds by video name.

A CSV of `id,seconds`, one whose heading has `id` and a name of `LENGTHS` (as Charades' own
`Charades_v1_train.csv`), or JSON (lines or array) of records with `video_path` or `videos` and
`duration` (SPEC A2). Videos are matched by `common.video.names.video_key`: without folder and
suffix. Rows about a window say nothing of their file's length.
"""

import csv
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from common.errors import ConfigError
from common.video.names import video_key
from jobs.data.annotations.containers import BROKEN, first_byte, json_records, open_bytes
from jobs.data.annotations.records import BadRecord, Record

LENGTHS = ("length", "duration", "seconds")
"""Headings of a column of seconds, the first that is there counts."""
_FORMATS = (
    f"CSV `id,seconds`, CSV with a heading that has id and {', '.join(LENGTHS[:-1])} or "
    f"{LENGTHS[-1]}, or JSON records with video_path or videos and duration"
)


def read_durations(path: Path, *, unreadable: list[str] | None = None) -> dict[str, float]:
    """Seconds by `video_key`.

    Args:
        path: the side file.
        unreadable: gets a few words for each value that is there and no duration, and for what of
            a JSON file cannot be read.

    Raises:
        ConfigError: no such file, no durations in it, or two different ones for a video.
    """
    if not path.is_file():
        raise ConfigError(f"--duration-source: found no file {path}, wanted {_FORMATS}")
    is_json = first_byte(path) in (b"{", b"[")
    durations: dict[str, float] = {}
    unreadable = [] if unreadable is None else unreadable
    for name, duration_s in (_json_pairs if is_json else _csv_pairs)(path, unreadable):
        if durations.setdefault(name, duration_s) != duration_s:
            raise ConfigError(
                f"--duration-source: {path}: found durations {durations[name]} and {duration_s} s "
                f"for {name!r}, wanted one: file names have to be unique"
            )
    if not durations:
        raise ConfigError(
            f"--duration-source: {path}: found no durations"
            f"{f' ({unreadable[0]})' if unreadable else ''}, wanted {_FORMATS}"
        )
    return durations


def is_duration(value: Any) -> TypeGuard[float]:
    """Whether it can be a video's length: a finite number above 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def _csv_pairs(path: Path, unreadable: list[str]) -> Iterator[tuple[str, float]]:
    """Rows with a duration, in their second cell where no heading names another.

    Others are noted, except a heading.
    """
    with open_bytes(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        lines = csv.reader(text)
        try:
            first = next(lines, [])
            columns = _columns(first)
            for cells in itertools.chain([first], lines):
                name, value = (cells[i].strip() if i < len(cells) else "" for i in columns)
                duration_s = _seconds(value)
                if is_duration(duration_s):
                    yield video_key(name), duration_s
                elif name and (cells is not first or any(map(str.isdigit, value))):
                    unreadable.append(f"line {lines.line_num}: {value!r} for {name!r}")
        except (*BROKEN, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(
                f"--duration-source: {path}: found a file that is no text or breaks off after "
                f"line {lines.line_num} ({error}), wanted {_FORMATS}"
            ) from error


def _columns(first: Sequence[str]) -> tuple[int, int]:
    """Of names and of seconds."""
    heading = [cell.strip().lower() for cell in first]
    lengths = [heading.index(name) for name in LENGTHS if name in heading]
    return (heading.index("id"), lengths[0]) if lengths and "id" in heading else (0, 1)


def _seconds(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan


def _json_pairs(path: Path, unreadable: list[str]) -> Iterator[tuple[str, float]]:
    for record in json_records(path):
        if isinstance(record, BadRecord):
            unreadable.append(f"{record.position}: {record.reason}")
        if not isinstance(record, Record) or not isinstance(record.content, dict):
            continue
        if not {"start_s", "end_s"}.isdisjoint(record.content):
            continue
        videos = record.content.get("videos")
        video = record.content.get("video_path") or (videos[0] if videos else None)
        duration_s = record.content.get("duration")
        if isinstance(video, str) and is_duration(duration_s):
            yield video_key(video), float(duration_s)
        elif isinstance(video, str) and duration_s is not None:
            unreadable.append(f"{record.position}: {duration_s!r} for {video!r}")
