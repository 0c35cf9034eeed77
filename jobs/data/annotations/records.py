"""What every annotation reader yields: `Annotation`, or `BadRecord` where none could be read.

Reading checks types only. Whether a span can be true is the reader's user's business: conversion
(`jobs.data.convert`) rejects, evaluation and inspection want every record as it was published.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field, ValidationError

from common.answers.spans import Span
from common.messages import AnswerStyle, Highlight
from common.rows import UnusableRowError

SchemaName = Literal[
    "timelens-100k",
    "timelens-filter",
    "timelens-bench",
    "chat",
    "rows",
    "charades-sta",
    "activitynet-captions",
    "qvhighlights",
    "time-r1",
    "tvgbench",
    "museg",
]
SCHEMAS: tuple[SchemaName, ...] = get_args(SchemaName)

Number = Annotated[float, Field(strict=True)]
"""A JSON number, NaN and infinities included; never a bool or a string."""
RawSpan = Annotated[list[Number], Field(min_length=2, max_length=2)]

T = TypeVar("T")

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """One question about one video, with the values of its file."""

    position: str
    """Where it stands: `line 12` from 1, `[3]` and `v_abc[3]` from 0."""
    video: str
    """Path as the file and the layout of its data set imply; usually relative."""
    query: str | None = None
    """Untouched; `clean_query` gives what prompts ask for. None when only `problem` is known."""
    spans: tuple[Span, ...] = ()
    """Seconds, unchecked: reversed, negative, beyond the clip or NaN as published."""
    highlights: tuple[Highlight, ...] = ()
    duration_s: float | None = None
    """Length of the video, unchecked."""
    difficulty: float | None = None
    """0 (easy) to 1; 1 - IoU of a model's answer where the file gives that IoU."""
    problem: str | None = None
    """The file's own instruction, if it has one."""
    style: AnswerStyle | None = None
    """How the file writes the answer to it; None: as a sentence, or it has none."""
    qid: str | None = None
    """The file's own id of the question, if it has one."""
    window: Span | None = None
    """Seconds of the video file that the question is about, unchecked; None is all of it. Spans,
    highlights and duration are those of the window, counted from its start."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """The record's other keys."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that could not be read; `reason` is what is counted."""

    position: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Record:
    """A parsed piece of a file, before its schema is looked at."""

    position: str
    content: Any


def clean_query(query: str) -> str:
    """TimeLens' cleaning (SPEC A1.3): single spaces, no spaces or dots at either end."""
    return _SPACE.sub(" ", query).strip(" .")


def one_minus_iou(iou: float | None) -> float | None:
    """Difficulty in the published rows' sense, to their 4 decimals."""
    return None if iou is None else round(1.0 - iou, 4)


def raw_spans(pairs: Iterable[list[float]]) -> tuple[Span, ...]:
    """Lists of two numbers as spans."""
    return tuple((start, end) for start, end in pairs)


def each(
    records: Iterable[Record | BadRecord], read_one: Callable[[Record], T]
) -> Iterator[T | BadRecord]:
    """Read every record; what `read_one` cannot read becomes a `BadRecord` in its place.

    Args:
        records: in file order; bad ones pass through.
        read_one: raises ValidationError or UnusableRowError for a record it cannot read.
    """
    for record in records:
        yield record if isinstance(record, BadRecord) else _attempt(record, read_one)


def flat(groups: Iterable[list[Record] | BadRecord]) -> Iterator[Record | BadRecord]:
    """Records of a file whose entries hold several."""
    for group in groups:
        if isinstance(group, BadRecord):
            yield group
        else:
            yield from group


def _attempt(record: Record, read_one: Callable[[Record], T]) -> T | BadRecord:
    try:
        return read_one(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "record"
        wanted = "wanted an object" if first["type"] == "model_type" else first["msg"]
        found = repr(first["input"])[:80]
        return BadRecord(record.position, "bad record", f"{where}: found {found}, {wanted}")
    except UnusableRowError as error:
        return BadRecord(record.position, error.reason, error.detail)
