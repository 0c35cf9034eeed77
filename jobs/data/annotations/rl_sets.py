"""Training sets of other RL recipes: Time-R1 with its TVGBench, and MUSEG."""

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from common.answers.spans import Span
from common.rows import UnusableRowError
from jobs.data.annotations.containers import json_records
from jobs.data.annotations.records import (
    Annotation,
    BadRecord,
    Number,
    RawSpan,
    Record,
    each,
    one_minus_iou,
    raw_spans,
)

_PERCENT = 100.0
_NUMBER = r"(-?[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)"
_ANSWER = re.compile(rf"\s*{_NUMBER}\s*-\s*{_NUMBER}\s*")
_QUOTED = re.compile("'(.+)'", re.DOTALL)


class _TimeR1(BaseModel):
    model_config = ConfigDict(extra="allow")

    video: str
    duration: Number | None = None
    timestamp: RawSpan
    sentence: str
    qid: str | None = None
    video_start: Number | None = None
    video_end: Number | None = None
    difficulty: Number | None = None


class _TvgBench(BaseModel):
    model_config = ConfigDict(extra="allow")

    path: str
    question: str
    answer: str
    start: Number | None = None
    end: Number | None = None
    duration: Number | None = None


class _Museg(BaseModel):
    model_config = ConfigDict(extra="allow")

    idx: int | str | None = None
    problem: str
    solution: list[RawSpan]
    video: str
    duration: Number | None = None


def read_time_r1(path: Path) -> Iterator[Annotation | BadRecord]:
    """Time-R1's training array.

    Its `difficulty` is 100 x the IoU of `pred` (equal for each of its 2,500 records), so it falls
    as a question gets harder; ours is 1 - IoU.
    """
    return each(json_records(path), _time_r1)


def read_tvgbench(path: Path) -> Iterator[Annotation | BadRecord]:
    """TVGBench: answers are `13.4-28.1`."""
    return each(json_records(path), _tvgbench)


def read_museg(path: Path) -> Iterator[Annotation | BadRecord]:
    """MUSEG: several spans a record; the query stands in single quotes in its problem."""
    return each(json_records(path), _museg)


def _time_r1(record: Record) -> Annotation:
    row = _TimeR1.model_validate(record.content)
    return Annotation(
        position=record.position,
        video=row.video,
        query=row.sentence,
        spans=raw_spans([row.timestamp]),
        duration_s=row.duration,
        difficulty=one_minus_iou(None if row.difficulty is None else row.difficulty / _PERCENT),
        qid=row.qid,
        window=_window(row.video_start, row.video_end),
        extras=row.model_extra or {},
    )


def _tvgbench(record: Record) -> Annotation:
    row = _TvgBench.model_validate(record.content)
    answer = _ANSWER.fullmatch(row.answer)
    if answer is None:
        raise UnusableRowError("bad record", f"answer: found {row.answer!r}, wanted `start-end`")
    return Annotation(
        position=record.position,
        video=row.path,
        query=row.question,
        spans=((float(answer[1]), float(answer[2])),),
        duration_s=row.duration,
        window=_window(row.start, row.end),
        extras=row.model_extra or {},
    )


def _museg(record: Record) -> Annotation:
    row = _Museg.model_validate(record.content)
    query = _QUOTED.search(row.problem)
    if query is None:
        raise UnusableRowError("no query", f"found no quoted query in {row.problem[:80]!r}")
    return Annotation(
        position=record.position,
        video=row.video,
        query=query[1],
        spans=raw_spans(row.solution),
        duration_s=row.duration,
        qid=None if row.idx is None else str(row.idx),
        extras=row.model_extra or {},
    )


def _window(start_s: float | None, end_s: float | None) -> Span | None:
    if start_s is None and end_s is None:
        return None
    return start_s or 0.0, float("inf") if end_s is None else end_s
