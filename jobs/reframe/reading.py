"""Replies → what they say: highlight segments in seconds, a point in a frame. Pure.

    text -> read_segments() -> Segments; text -> read_point() -> Read

Models wrap JSON in prose and fences, write several objects, or are cut off. The last object that
answers counts, and every liberty taken is noted by kind, so that a run can say how often. SPEC A11
has the fall-backs: pairs after the word `segments`, the last two numbers of a reply about a point.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from common.answers.reading import read_spans

Note = Literal["several objects", "no JSON", "answer tags"]
"""Liberties: the last of several objects was used; numbers were taken out of prose, or out of the
tags in which models that this project trains answer."""
Pair = tuple[float, float]

POINT_KEYS = ("center", "subject_center", "focus", "point", "cxcy")
START_KEYS, END_KEYS = ("start", "start_time", "start_s"), ("end", "end_time", "end_s")
_NUMBER = r"\d+(?:\.\d+)?"
_PAIR = re.compile(
    rf"(?<![\d.])({_NUMBER})\s*s?\s*(?:,|-|\u2013|to|and)\s*({_NUMBER})", re.IGNORECASE
)
_SIGNED = re.compile(rf"-?{_NUMBER}")
_CLOCK = re.compile(rf"(?:(\d+):)?(\d+):({_NUMBER})")
_SECONDS = re.compile(rf"({_NUMBER})\s*(?:s|sec|seconds)?", re.IGNORECASE)


@dataclass(frozen=True)
class Segments:
    """What a reply about highlights says."""

    spans: tuple[Pair, ...]
    """Start and end in seconds as written, in the order of the reply; ends may precede starts."""
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Read:
    """What a reply about a frame says."""

    point: Pair
    """As written, in a unit that `jobs.reframe.scales` finds out; not negative."""
    size: Pair | None
    """The frame's width and height in that unit, if the reply says so."""
    notes: tuple[Note, ...] = ()


def read_segments(text: str) -> Segments | None:
    """Segments of a reply; None when it names none. An empty list is an answer.

    In JSON: pairs, one flat pair, objects with start and end; numbers, `12.5 s` or `0:12.5`. Else
    pairs after the word `segments`, else what stands in `<answer>` tags.
    """
    found = [one for one in _objects(text) if _spans_of(one) is not None]
    if found:
        spans = _spans_of(found[-1])
        assert spans is not None
        return Segments(tuple(spans), _several(found))
    for word in reversed(list(re.finditer("segments", text, re.IGNORECASE))):
        pairs = [(float(a), float(b)) for a, b in _PAIR.findall(text[word.end() :])]
        pairs = [pair for pair in pairs if math.isfinite(sum(pair))]
        if pairs:
            return Segments(tuple(pairs), ("no JSON",))
    tagged = read_spans(text).used if "<answer>" in text else ()
    return Segments(tuple(tagged), ("answer tags",)) if tagged else None


def read_point(text: str) -> Read | None:
    """The point of a reply; None when it has none, or one with a negative coordinate."""
    found = [(one, point) for one in _objects(text) if (point := _point_of(one)) is not None]
    notes: tuple[Note, ...]
    if found:
        (last, point), notes = found[-1], _several(found)
        size = _pair(last.get("size"))
    else:
        numbers = [float(number) for number in _SIGNED.findall(text)]
        if len(numbers) < 2:
            return None
        point, size, notes = (numbers[-2], numbers[-1]), None, ("no JSON",)
    if min(point) < 0 or not math.isfinite(sum(point)):
        return None
    return Read(point, size if size is not None and min(size) > 0 else None, notes)


def _several(found: Sequence[object]) -> tuple[Note, ...]:
    return ("several objects",) if len(found) > 1 else ()


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object that stands in a text, outermost ones alone."""
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield found
        at = text.find("{", end)


def _spans_of(found: dict[str, Any]) -> list[Pair] | None:
    segments = found.get("segments")
    if not isinstance(segments, list):
        return None
    if (flat := _times(segments)) is not None:
        return [flat]
    spans = [span for one in segments if (span := _times(_ends(one))) is not None]
    return spans if spans or not segments else None


def _ends(one: Any) -> Any:
    """Start and end of an object."""
    if not isinstance(one, dict):
        return one
    starts = [one[key] for key in START_KEYS if key in one]
    ends = [one[key] for key in END_KEYS if key in one]
    return [*starts[:1], *ends[:1]]


def _times(found: Any) -> Pair | None:
    if not isinstance(found, list) or len(found) != 2:
        return None
    start, end = map(_seconds, found)
    return None if start is None or end is None else (start, end)


def _seconds(found: Any) -> float | None:
    if isinstance(found, str):
        if clock := _CLOCK.fullmatch(found.strip()):
            hours, minutes, seconds = clock.groups()
            return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds)
        number = _SECONDS.fullmatch(found.strip())
        return None if number is None else float(number[1])
    return _number(found)


def _point_of(found: dict[str, Any]) -> Pair | None:
    for key in POINT_KEYS:
        value = found.get(key)
        if isinstance(value, dict):
            value = [value.get("x"), value.get("y")]
        if (pair := _pair(value)) is not None:
            return pair
    return None


def _pair(found: Any) -> Pair | None:
    if not isinstance(found, list) or len(found) != 2:
        return None
    first, second = map(_number, found)
    return None if first is None or second is None else (first, second)


def _number(found: Any) -> float | None:
    """Python reads NaN and Infinity as JSON, and a whole number may be too large for a float."""
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    try:
        number = float(found)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
