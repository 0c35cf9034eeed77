"""Durations from another file, for annotations that have none: path → seconds by video name.

A CSV of `id,seconds`, one whose heading has `id` and a name of `LENGTHS` (as Charades' own
`Charades_v1_train.csv`), or JSON (lines or array) of records with `video_path` or `videos` and
`duration` (SPEC A2). Videos are matched by `common.video.names.video_key`: without folder and
suffix. Rows about a window say nothing of their file's length.
"""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from common.errors import ConfigError
from common.video.names import video_key
from jobs.data.annotations.containers import first_byte, json_records, open_bytes
from jobs.data.annotations.records import Record

LENGTHS = ("length", "duration", "seconds")
"""Headings of a column of seconds, the first that is there counts."""


def read_durations(path: Path) -> dict[str, float]:
    """Seconds by `video_key`.

    Raises:
        ConfigError: no such file, no durations in it, or two different ones for a video.
    """
    is_json = first_byte(path) in (b"{", b"[")
    durations: dict[str, float] = {}
    for name, duration_s in _json_pairs(path) if is_json else _csv_pairs(path):
        if durations.setdefault(name, duration_s) != duration_s:
            raise ConfigError(
                f"{path}: found durations {durations[name]} and {duration_s} s for {name!r}, "
                "wanted one; --duration-source needs unique file names"
            )
    if not durations:
        raise ConfigError(
            f"{path}: found no durations, wanted CSV `id,seconds`, CSV with a heading that has id "
            f"and {', '.join(LENGTHS[:-1])} or {LENGTHS[-1]}, or JSON records with video_path or "
            "videos and duration"
        )
    return durations


def is_duration(value: Any) -> TypeGuard[float]:
    """Whether it can be a video's length: a finite number above 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def _csv_pairs(path: Path) -> Iterator[tuple[str, float]]:
    """Rows with a duration, in their second cell where no heading names another."""
    with open_bytes(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        name_column, length_column = 0, 1
        for number, cells in enumerate(csv.reader(text)):
            if number == 0:
                name_column, length_column = _columns(cells)
            try:
                name, duration_s = cells[name_column].strip(), float(cells[length_column])
            except (IndexError, ValueError):
                continue
            if is_duration(duration_s):
                yield video_key(name), duration_s


def _columns(first: Sequence[str]) -> tuple[int, int]:
    """Of names and of seconds."""
    heading = [cell.strip().lower() for cell in first]
    lengths = [heading.index(name) for name in LENGTHS if name in heading]
    return (heading.index("id"), lengths[0]) if lengths and "id" in heading else (0, 1)


def _json_pairs(path: Path) -> Iterator[tuple[str, float]]:
    for record in json_records(path):
        if not isinstance(record, Record) or not isinstance(record.content, dict):
            continue
        if not {"start_s", "end_s"}.isdisjoint(record.content):
            continue
        videos = record.content.get("videos")
        video = record.content.get("video_path") or (videos[0] if videos else None)
        duration_s = record.content.get("duration")
        if isinstance(video, str) and is_duration(duration_s):
            yield video_key(video), float(duration_s)
