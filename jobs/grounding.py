"""What an evaluation asked and got back, and what that is worth: answers → metrics. Pure.

    rows (JSONL) -> Row -> [jobs.evaluate asks a replica] -> Answer, SampledAnswers -> metrics

All shares and IoUs are in [0, 1]. An answer that cannot be read has IoU 0 and lowers `parse_rate`;
a query that got no answer is a `Failure`: it counts nowhere and is listed.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from common.answers import read_spans
from common.spans import Span, iou, union_iou


class Record(BaseModel):
    """Base of everything that is written to an evaluation's JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Row(Record):
    """One query of a split, from a trainer row (SPEC A1.1)."""

    row_id: str
    clip: str
    """Path of the video as the row writes it."""
    problem: str
    query: str
    true_span: Span
    """Seconds."""
    duration_s: float


class Answer(Record):
    """A greedy answer and how it compares with the spans of its clip."""

    row_id: str
    clip: str
    query: str
    duration_s: float
    true_span: Span
    text: str
    spans: tuple[Span, ...]
    """Seconds; empty when the text could not be read."""
    iou: float
    """With the span asked for, as the reward service computes it."""
    other_ious: tuple[float, ...]
    """With the spans of the clip's other queries, in the order of the rows."""


class SampledAnswers(Record):
    """Answers to one query at temperature 1."""

    row_id: str
    texts: tuple[str, ...]
    ious: tuple[float, ...]
    num_tokens: int
    """Over all answers, stop tokens included."""
    surprise_nats: float
    """Sum of -log p over these tokens."""


class Failure(Record):
    """A query that got no answer: the clip or the engine failed."""

    row_id: str
    clip: str
    asked_for: Literal["greedy", "sampled"]
    error: str


class GreedyMetrics(Record):
    """Over the greedy answers; None where no clip has two queries."""

    num_answers: int
    miou: float
    r1_at_0_3: float
    """Share of answers with IoU >= 0.3 (SPEC B5); likewise below."""
    r1_at_0_5: float
    r1_at_0_7: float
    parse_rate: float
    distractor_iou: float | None
    """Mean IoU of an answer with the objects that were not asked for."""
    gt_distractor_iou: float | None
    """The same for a perfect answer: what the true spans overlap by themselves."""
    answers_differ: float | None
    """Share of query pairs of one clip whose answers differ; two unreadable ones do not."""


class SampledMetrics(Record):
    """Over the answers sampled at temperature 1."""

    num_queries: int
    num_samples: int
    """Answers per query: G of best_of_g."""
    miou: float
    r1_at_0_5: float
    r1_at_0_7: float
    best_of_g: float
    """Mean over queries of the best IoU among their answers."""
    entropy_nats: float
    """Per token; see `entropy_nats`."""


class Evaluation(Record):
    """One policy on one split."""

    policy_version: int
    """Weights that wrote every answer."""
    answers: tuple[Answer, ...]
    sampled_answers: tuple[SampledAnswers, ...]
    failures: tuple[Failure, ...]
    greedy: GreedyMetrics
    sampled: SampledMetrics | None
    """None when nothing was sampled."""


def read_rows(path: Path) -> list[Row]:
    """Rows of a split.

    `query` and `spans` are taken from the row where it has them, else the problem stands for the
    query and the span is read from `answer`.

    Raises:
        ValueError: a line is not a row with one true span; names file and line.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError(f"{path}: found no rows, wanted at least one")
    return rows


def spans_of_clips(rows: Iterable[Row]) -> dict[str, list[Span]]:
    """Clip → true spans of its queries, in the order of the rows."""
    spans: dict[str, list[Span]] = {}
    for row in rows:
        spans.setdefault(row.clip, []).append(row.true_span)
    return spans


def score_answer(row: Row, *, text: str, other_spans: Sequence[Span]) -> Answer:
    """Read an answer with the default parser and compare it with the spans of its clip."""
    spans = read_spans(text).used
    return Answer(
        row_id=row.row_id,
        clip=row.clip,
        query=row.query,
        duration_s=row.duration_s,
        true_span=row.true_span,
        text=text,
        spans=spans,
        iou=answer_iou(spans, row.true_span),
        other_ious=tuple(answer_iou(spans, other) for other in other_spans),
    )


def answer_iou(spans: Sequence[Span], true_span: Span) -> float:
    """IoU of an answer with one span; 0 for an answer without spans."""
    return union_iou(spans, [true_span]) if spans else 0.0


def greedy_metrics(answers: Sequence[Answer]) -> GreedyMetrics:
    """Figures of a non-empty list of greedy answers."""
    ious = [answer.iou for answer in answers]
    others = [value for answer in answers for value in answer.other_ious]
    pairs = [pair for clip in _by_clip(answers) for pair in itertools.combinations(clip, 2)]
    return GreedyMetrics(
        num_answers=len(answers),
        miou=fmean(ious),
        r1_at_0_3=recall(ious, threshold=0.3),
        r1_at_0_5=recall(ious, threshold=0.5),
        r1_at_0_7=recall(ious, threshold=0.7),
        parse_rate=fmean(bool(answer.spans) for answer in answers),
        distractor_iou=fmean(others) if others else None,
        gt_distractor_iou=fmean(iou(a.true_span, b.true_span) for a, b in pairs) if pairs else None,
        answers_differ=fmean(a.spans != b.spans for a, b in pairs) if pairs else None,
    )


def sampled_metrics(answers: Sequence[SampledAnswers]) -> SampledMetrics | None:
    """Figures of sampled answers, the same number for each query; None without any."""
    if not answers:
        return None
    ious = [value for answer in answers for value in answer.ious]
    return SampledMetrics(
        num_queries=len(answers),
        num_samples=len(answers[0].ious),
        miou=fmean(ious),
        r1_at_0_5=recall(ious, threshold=0.5),
        r1_at_0_7=recall(ious, threshold=0.7),
        best_of_g=fmean(max(answer.ious) for answer in answers),
        entropy_nats=entropy_nats(answers),
    )


def recall(ious: Sequence[float], *, threshold: float) -> float:
    """R1@threshold: share of IoUs at or above it (SPEC B5)."""
    return fmean(value >= threshold for value in ious)


def entropy_nats(answers: Sequence[SampledAnswers]) -> float:
    """Entropy of the policy per generated token, in nats, estimated from its own samples.

    -log p of an answer sampled at temperature 1 is an unbiased estimate of the entropy of the
    distribution over answers; its sum over all answers is divided by their number of tokens.
    """
    num_tokens = sum(answer.num_tokens for answer in answers)
    return sum(answer.surprise_nats for answer in answers) / num_tokens


def _by_clip(answers: Sequence[Answer]) -> list[list[Answer]]:
    clips: dict[str, list[Answer]] = {}
    for answer in answers:
        clips.setdefault(answer.clip, []).append(answer)
    return list(clips.values())


def _row(path: Path, number: int, line: str) -> Row:
    try:
        document = json.loads(line)
        return Row(
            row_id=f"{path.parent.name}/{path.stem}:{number}",
            clip=document["videos"][0],
            problem=document["problem"],
            query=document.get("query") or document["problem"],
            true_span=_true_span(document),
            duration_s=document["duration"],
        )
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path}:{number}: not a trainer row: {error!r}") from error
    except (json.JSONDecodeError, ValidationError, ValueError) as error:
        raise ValueError(f"{path}:{number}: {error}") from error


def _true_span(document: Mapping[str, Any]) -> Span:
    spans = document.get("spans") or read_spans(document["answer"]).spans
    if len(spans) != 1:
        raise ValueError(f"found {len(spans)} true spans, wanted 1")
    start_s, end_s = spans[0]
    if not 0 <= start_s < end_s:
        raise ValueError(f"found the true span {start_s} to {end_s}, wanted 0 <= start < end")
    return float(start_s), float(end_s)
