"""What answers to held-out queries are worth: `PredictionRecord`s → `Evaluation`. Pure.

    HeldOut.ask -> predictions.jsonl -> read_records -> evaluation_of() -> summary.json, report.html

`jobs.evaluation.scoring.score` has the figures of the benchmarks; here are those that show how a
policy learned: whether the query matters, and what greedy decoding hides. All shares and IoUs are
in [0, 1]. An answer that cannot be read has IoU 0 and lowers `parse_rate`; a query that got no
answer counts nowhere and is listed.
"""

import itertools
from collections.abc import Iterable, Sequence
from statistics import fmean

from pydantic import BaseModel, ConfigDict

from common.answers.reading import read_spans
from common.answers.spans import Span, union_iou
from jobs.evaluation.scoring.predictions import PredictionRecord

HIT_IOU = 0.5
"""An answer with so much IoU has found its span, as R1@.5 counts; the learner's diagnostics too."""


class Record(BaseModel):
    """Base of figures that can be written as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Answer(Record):
    """A greedy answer and how it compares with the spans of its clip."""

    record: PredictionRecord
    spans: tuple[Span, ...]
    """Seconds; empty when the text could not be read."""
    iou: float
    """With the spans asked for, as the reward service computes it."""
    other_ious: tuple[float, ...]
    """With those of the clip's other queries, answered or not."""

    @property
    def duration_s(self) -> float:
        """Length of the clip."""
        assert self.record.duration_s is not None  # an answer was given to frames of a clip
        return self.record.duration_s


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
    without_hit: float
    """Share of queries none of whose answers reaches IoU `HIT_IOU`."""
    entropy_nats: float
    """Per token; see `entropy_nats`."""


class Evaluation(Record):
    """One policy on one split."""

    answers: tuple[Answer, ...]
    """In the order of the rows."""
    failures: tuple[PredictionRecord, ...]
    """Queries that got no answer: the clip or the engine failed."""
    greedy: GreedyMetrics
    sampled: SampledMetrics | None
    """None when nothing was sampled."""


def evaluation_of(records: Iterable[PredictionRecord]) -> Evaluation:
    """Figures of the records of one run, in whatever order they were answered.

    Args:
        records: at least one of them an answer; ids are positions of rows, such as `line 12`.
    """
    # The shorter id first: numbers in the order in which they are counted.
    ordered = sorted(records, key=lambda record: (len(record.id), record.id))
    answers = tuple(
        _answer(record, others=[one for one in of_clip if one is not record])
        for of_clip in _by_video(ordered)
        for record in of_clip
        if record.failure is None
    )
    return Evaluation(
        answers=answers,
        failures=tuple(record for record in ordered if record.failure is not None),
        greedy=greedy_metrics(answers),
        sampled=sampled_metrics(ordered),
    )


def greedy_metrics(answers: Sequence[Answer]) -> GreedyMetrics:
    """Figures of a non-empty list of greedy answers."""
    ious = [answer.iou for answer in answers]
    others = [value for answer in answers for value in answer.other_ious]
    pairs = [
        pair
        for _, of_clip in itertools.groupby(answers, key=lambda answer: answer.record.video)
        for pair in itertools.combinations(of_clip, 2)
    ]
    true_overlaps = [union_iou(a.record.gt, b.record.gt) for a, b in pairs]
    return GreedyMetrics(
        num_answers=len(answers),
        miou=fmean(ious),
        r1_at_0_3=recall(ious, threshold=0.3),
        r1_at_0_5=recall(ious, threshold=0.5),
        r1_at_0_7=recall(ious, threshold=0.7),
        parse_rate=fmean(bool(answer.spans) for answer in answers),
        distractor_iou=fmean(others) if others else None,
        gt_distractor_iou=fmean(true_overlaps) if pairs else None,
        answers_differ=fmean(a.spans != b.spans for a, b in pairs) if pairs else None,
    )


def sampled_metrics(records: Iterable[PredictionRecord]) -> SampledMetrics | None:
    """Figures of the records that have samples, the same number each; None without any."""
    sampled = [record for record in records if record.samples]
    if not sampled:
        return None
    ious = [
        [answer_iou(read_spans(text).used, record.gt) for text in record.samples]
        for record in sampled
    ]
    flat = list(itertools.chain.from_iterable(ious))
    return SampledMetrics(
        num_queries=len(sampled),
        num_samples=len(ious[0]),
        miou=fmean(flat),
        r1_at_0_5=recall(flat, threshold=0.5),
        r1_at_0_7=recall(flat, threshold=0.7),
        best_of_g=fmean(map(max, ious)),
        without_hit=fmean(max(of_query) < HIT_IOU for of_query in ious),
        entropy_nats=entropy_nats(sampled),
    )


def answer_iou(spans: Sequence[Span], true_spans: Sequence[Span]) -> float:
    """IoU of an answer with what is true; 0 for an answer without spans."""
    return union_iou(spans, true_spans) if spans else 0.0


def recall(ious: Sequence[float], *, threshold: float) -> float:
    """R1@threshold: share of IoUs at or above it (SPEC B5)."""
    return fmean(value >= threshold for value in ious)


def entropy_nats(sampled: Sequence[PredictionRecord]) -> float:
    """Entropy of the policy per generated token, in nats, estimated from its own samples.

    -log p of an answer sampled at temperature 1 is an unbiased estimate of the entropy of the
    distribution over answers; its sum over all answers is divided by their number of tokens.
    """
    num_tokens = sum(record.samples_tokens or 0 for record in sampled)
    return sum(record.samples_surprise_nats or 0.0 for record in sampled) / num_tokens


def _answer(record: PredictionRecord, *, others: Sequence[PredictionRecord]) -> Answer:
    """Read an answer with the default parser and compare it with the spans of its clip."""
    spans = read_spans(record.text or "").used
    return Answer(
        record=record,
        spans=spans,
        iou=answer_iou(spans, record.gt),
        other_ious=tuple(answer_iou(spans, other.gt) for other in others),
    )


def _by_video(records: Iterable[PredictionRecord]) -> list[list[PredictionRecord]]:
    """Records of each clip, clips in the order of their first."""
    videos: dict[str, list[PredictionRecord]] = {}
    for record in records:
        videos.setdefault(record.video, []).append(record)
    return list(videos.values())
