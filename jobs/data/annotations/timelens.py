"""TimeLens files: the 100K training set, its filtered form with model answers, the benchmarks.

Paths start at the annotation file's folder: `videos/<source>/…` and `videos/<subset>/<id>.mp4`.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from common.rows import UnusableRowError
from jobs.data.annotations.containers import json_members, json_records
from jobs.data.annotations.records import (
    Annotation,
    BadRecord,
    Number,
    RawSpan,
    Record,
    each,
    flat,
    one_minus_iou,
    raw_spans,
)

_BENCH_SUFFIX = "-timelens"


def _as_list_of_spans(value: Any) -> Any:
    """`span` is `[s, e]` in some files and `[[s, e], …]` in others."""
    if isinstance(value, list) and value and not isinstance(value[0], list):
        return [value]
    return value


Spans = Annotated[list[RawSpan], BeforeValidator(_as_list_of_spans)]


class _Video(BaseModel):
    source: str | None = None
    video_path: str
    duration: Number | None = None
    events: list[Any]


class _Event(BaseModel):
    query: str
    span: Spans


class _Filtered(BaseModel):
    model_config = ConfigDict(extra="allow")

    video_path: str
    duration: Number | None = None
    query: str
    span: Spans
    iou: Number | None = None


class _BenchVideo(BaseModel):
    duration: Number | None = None
    spans: list[Any]
    queries: list[Any]


def read_100k(path: Path) -> Iterator[Annotation | BadRecord]:
    """Official TimeLens-100K (SPEC A1.3): one video a line, each event a record."""

    def events(record: Record) -> list[Record]:
        video = _Video.model_validate(record.content)
        return [
            Record(f"{record.position}[{index}]", (video, event))
            for index, event in enumerate(video.events)
        ]

    return each(flat(each(json_records(path), events)), _event)


def read_filter(path: Path) -> Iterator[Annotation | BadRecord]:
    """TimeLens' rows with a model's answer (SPEC A1.4); difficulty is 1 - its IoU."""
    return each(json_records(path), _filtered)


def read_bench(path: Path) -> Iterator[Annotation | BadRecord]:
    """TimeLens-Bench (SPEC A1.5); the folder of the videos is the `<subset>` of the file's name."""
    stem = path.name.split(".")[0]
    subset = stem.removesuffix(_BENCH_SUFFIX) + "/" if stem.endswith(_BENCH_SUFFIX) else ""
    read_one = partial(_bench_event, folder=f"videos/{subset}")
    return each(flat(each(json_members(path), _bench_events)), read_one)


def _event(record: Record) -> Annotation:
    video, content = record.content
    event = _Event.model_validate(content)
    return Annotation(
        position=record.position,
        video=_below_videos(video.video_path),
        query=event.query,
        spans=raw_spans(event.span),
        duration_s=video.duration,
        extras={"source": video.source},
    )


def _filtered(record: Record) -> Annotation:
    row = _Filtered.model_validate(record.content)
    return Annotation(
        position=record.position,
        video=row.video_path,
        query=row.query,
        spans=raw_spans(row.span),
        duration_s=row.duration,
        difficulty=one_minus_iou(row.iou),
        extras={"iou": row.iou, **(row.model_extra or {})},
    )


def _bench_events(record: Record) -> list[Record]:
    video = _BenchVideo.model_validate(record.content)
    if len(video.spans) != len(video.queries):
        raise UnusableRowError(
            "bad record",
            f"found {len(video.spans)} spans for {len(video.queries)} queries, wanted one each",
        )
    return [
        Record(
            f"{record.position}[{index}]",
            (record.position, video.duration, {"query": query, "span": span}),
        )
        for index, (query, span) in enumerate(zip(video.queries, video.spans, strict=True))
    ]


def _bench_event(record: Record, *, folder: str) -> Annotation:
    video_id, duration_s, content = record.content
    event = _Event.model_validate(content)
    return Annotation(
        position=record.position,
        video=f"{folder}{video_id}.mp4",
        query=event.query,
        spans=raw_spans(event.span),
        duration_s=duration_s,
    )


def _below_videos(video_path: str) -> str:
    """The 100K file names its videos from the folder `videos` on."""
    return video_path if video_path.startswith("/") else f"videos/{video_path}"
