"""Academic benchmarks (SPEC A1.6): Charades-STA, ActivityNet Captions, QVHighlights.

Their files give video ids; the path is `<id>.mp4`, until `paths.OnDisk` has seen the folder.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from common.messages import Highlight
from common.rows import UnusableRowError
from jobs.data.annotations.containers import json_members, json_records, text_lines
from jobs.data.annotations.records import (
    Annotation,
    BadRecord,
    Number,
    RawSpan,
    Record,
    each,
    flat,
    raw_spans,
)

CLIP_S = 2
"""QVHighlights rates clips of two seconds."""
_CHARADES_LINE = re.compile(r"(?P<video>\S+) (?P<start>\S+) (?P<end>\S+?) ?##(?P<query>.*)")


class _Captions(BaseModel):
    duration: Number | None = None
    timestamps: list[Any]
    sentences: list[Any]


class _Caption(BaseModel):
    timestamp: RawSpan
    sentence: str


class _Query(BaseModel):
    model_config = ConfigDict(extra="allow")

    qid: int | str
    query: str
    vid: str
    duration: Number | None = None
    relevant_windows: list[RawSpan] = []
    relevant_clip_ids: list[int] = []
    saliency_scores: list[list[Number]] = []


def read_charades_sta(path: Path) -> Iterator[Annotation | BadRecord]:
    """Lines `VID start end##sentence`; the file has no durations."""
    return each(text_lines(path), _charades_line)


def read_activitynet_captions(path: Path) -> Iterator[Annotation | BadRecord]:
    """One object, `{id: {duration, timestamps, sentences}}`."""
    return each(flat(each(json_members(path), _captions)), _caption)


def read_qvhighlights(path: Path) -> Iterator[Annotation | BadRecord]:
    """JSON lines; the test set's public file has no truth, its records no spans."""
    return each(json_records(path), _query)


def _charades_line(record: Record) -> Annotation:
    found = _CHARADES_LINE.fullmatch(record.content)
    if found is None:
        raise UnusableRowError(
            "bad record", f"found {record.content[:80]!r}, wanted `VID start end##sentence`"
        )
    try:
        span = float(found["start"]), float(found["end"])
    except ValueError as error:
        raise UnusableRowError("bad record", f"span: {error}") from error
    return Annotation(
        position=record.position,
        video=f"{found['video']}.mp4",
        query=found["query"],
        spans=(span,),
    )


def _captions(record: Record) -> list[Record]:
    video = _Captions.model_validate(record.content)
    if len(video.timestamps) != len(video.sentences):
        raise UnusableRowError(
            "bad record",
            f"found {len(video.timestamps)} timestamps for {len(video.sentences)} sentences, "
            "wanted one each",
        )
    pairs = zip(video.timestamps, video.sentences, strict=True)
    return [
        Record(
            f"{record.position}[{index}]",
            (record.position, video.duration, {"timestamp": timestamp, "sentence": sentence}),
        )
        for index, (timestamp, sentence) in enumerate(pairs)
    ]


def _caption(record: Record) -> Annotation:
    video_id, duration_s, content = record.content
    caption = _Caption.model_validate(content)
    return Annotation(
        position=record.position,
        video=f"{video_id}.mp4",
        query=caption.sentence,
        spans=raw_spans([caption.timestamp]),
        duration_s=duration_s,
    )


def _query(record: Record) -> Annotation:
    row = _Query.model_validate(record.content)
    return Annotation(
        position=record.position,
        video=f"{row.vid}.mp4",
        query=row.query,
        spans=raw_spans(row.relevant_windows),
        highlights=_highlights(row),
        duration_s=row.duration,
        qid=str(row.qid),
        extras={
            "vid": row.vid,
            "relevant_clip_ids": row.relevant_clip_ids,
            "saliency_scores": row.saliency_scores,
            **(row.model_extra or {}),
        },
    )


def _highlights(row: _Query) -> tuple[Highlight, ...]:
    """Time = start of the clip, score = mean of the raters to one decimal (SPEC B2)."""
    if len(row.relevant_clip_ids) != len(row.saliency_scores):
        raise UnusableRowError(
            "bad record",
            f"found {len(row.saliency_scores)} saliency_scores for "
            f"{len(row.relevant_clip_ids)} relevant_clip_ids, wanted one each",
        )
    rated = zip(row.relevant_clip_ids, row.saliency_scores, strict=True)
    return tuple(
        Highlight(time_s=CLIP_S * clip_id, score=round(math.fsum(scores) / len(scores), 1))
        for clip_id, scores in rated
        if scores
    )
