"""Training sets of other RL recipes: Time-R1 with its TVGBench, and MUSEG."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

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
_CUT_NAME = re.compile(r"_(\d\d):(\d\d):(\d\d):(\d{3})_(\d\d):(\d\d):(\d\d):(\d{3})\.")
"""Hours, minutes, seconds and milliseconds of the start and of the end."""
SAME_TIME_S = 0.01
"""Times of a file's name are cut to milliseconds."""
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
        window=_window(row.video, row.video_start, row.video_end),
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
        window=_window(row.path, row.start, row.end),
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


def _window(video: str, start_s: float | None, end_s: float | None) -> Span | None:
    """The part of the file that is asked about.

    A file whose name states the window, as those of InternVid's clips do
    (`4jujhM5qhEc_00:00:39:000_00:01:24:700.mp4`), is that part already: all of it is asked about.
    """
    if start_s is None and end_s is None:
        return None
    window = start_s or 0.0, float("inf") if end_s is None else end_s
    return None if _same_times(_times_of_name(video), window) else window


def _times_of_name(video: str) -> Span | None:
    """Seconds from and to which a file was cut, if its name says so."""
    found = _CUT_NAME.search(PurePosixPath(video).name)
    if found is None:
        return None
    numbers = [int(number) for number in found.groups()]
    start_s, end_s = (
        hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
        for hours, minutes, seconds, milliseconds in (numbers[:4], numbers[4:])
    )
    return start_s, end_s


def _same_times(one: Span | None, other: Span) -> bool:
    return one is not None and all(
        abs(a - b) < SAME_TIME_S for a, b in zip(one, other, strict=True)
    )
