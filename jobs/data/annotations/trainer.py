"""Trainer rows (SPEC A1.1, `common.rows`) and the chat records they were once made from (A1.2).

Both carry their own instruction, and their truth may be text; `common.answers.reading` reads it.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from common.answers.reading import answer_style, read_highlights, read_spans
from common.answers.spans import Span
from common.messages import Highlight
from common.prompts import VIDEO_TAG
from common.rows import UnusableRowError
from jobs.data.annotations.containers import json_records
from jobs.data.annotations.records import (
    Annotation,
    BadRecord,
    Number,
    RawSpan,
    Record,
    each,
    raw_spans,
)

Videos = Annotated[list[str], Field(min_length=1, max_length=1)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="allow")

    problem: str | None = None
    answer: str | None = None
    problem_type: str | None = None
    data_type: str | None = None
    videos: Videos
    duration: Number | None = None
    difficulty: Number | None = None
    start_s: Number | None = None
    end_s: Number | None = None
    gt_len: Number | None = None
    query: str | None = None
    spans: list[RawSpan] | None = None
    highlights: list[Highlight] | None = None


class _Message(BaseModel):
    content: str | list[Any]


class _Chat(BaseModel):
    messages: Annotated[list[_Message], Field(min_length=1)]
    videos: Videos
    solution: str
    duration: Number | None = None
    difficulty: Number | None = None


def read_rows(path: Path) -> Iterator[Annotation | BadRecord]:
    """Trainer rows; `spans` and `highlights` win over the text of `answer`."""
    return each(json_records(path), _row)


def read_chat(path: Path) -> Iterator[Annotation | BadRecord]:
    """`{messages, videos, solution}`; the first message is the instruction (SPEC A2)."""
    return each(json_records(path), _chat)


def spans_of_text(text: str) -> tuple[Span, ...]:
    """Spans that a published answer states.

    Raises:
        UnusableRowError: one is written end first, which our parser would put in order.
    """
    reading = read_spans(text)
    if reading.reversed:
        raise UnusableRowError("span reversed", f"found {text[:80]!r}, wanted start before end")
    return reading.spans


def _row(record: Record) -> Annotation:
    row = _Row.model_validate(record.content)
    highlights: tuple[Highlight, ...] = tuple(row.highlights or ())
    spans = raw_spans(row.spans or ())
    if not spans and not highlights and row.answer:
        highlights = read_highlights(row.answer)
        spans = () if highlights else spans_of_text(row.answer)
    return Annotation(
        position=record.position,
        video=row.videos[0],
        query=row.query,
        spans=spans,
        highlights=highlights,
        duration_s=row.duration,
        difficulty=row.difficulty,
        problem=row.problem,
        style=answer_style(row.answer or ""),
        window=_window(row),
        extras=row.model_extra or {},
    )


def _window(row: _Row) -> Span | None:
    if row.start_s is None and row.end_s is None:
        return None
    return row.start_s or 0.0, math.inf if row.end_s is None else row.end_s


def _chat(record: Record) -> Annotation:
    chat = _Chat.model_validate(record.content)
    problem = _text(chat.messages[0].content)
    return Annotation(
        position=record.position,
        video=chat.videos[0],
        spans=spans_of_text(chat.solution),
        duration_s=chat.duration,
        difficulty=chat.difficulty,
        problem=problem if VIDEO_TAG in problem else VIDEO_TAG + problem,
        style=answer_style(chat.solution),
    )


def _text(content: str | list[Any]) -> str:
    """A message's text; parts of another type than text are the clip's place."""
    if isinstance(content, str):
        return content
    return "".join(
        str(part.get("text", "")) if part.get("type") == "text" else VIDEO_TAG for part in content
    )
