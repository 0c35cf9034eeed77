"""Figures of an evaluation, against those worked out by hand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from common.answers.spans import Span
from jobs.demo.figures import Evaluation, entropy_nats, evaluation_of, recall, sampled_metrics
from jobs.evaluation.scoring.predictions import PredictionRecord

FIRST, SECOND, THIRD = (0.0, 4.0), (2.0, 6.0), (6.0, 10.0)


def record(
    line: int,
    *true_spans: Span,
    text: str | None,
    video: str = "a.mp4",
    samples: Sequence[str] = (),
    num_tokens: int | None = None,
    surprise_nats: float | None = None,
) -> PredictionRecord:
    """A query of a clip of ten seconds; without a text, the engine failed."""
    return PredictionRecord(
        id=f"line {line}",
        video=video,
        query=f"query {line}",
        gt=true_spans,
        duration_s=10.0,
        mode="answer",
        text=text,
        failure="engine" if text is None else None,
        samples=tuple(samples),
        samples_tokens=num_tokens,
        samples_surprise_nats=surprise_nats,
        fingerprint="f",
    )


def said(start_s: float, end_s: float) -> str:
    return f"<answer> {start_s} to {end_s} </answer>"


def of_one_clip(*texts: str | None) -> Evaluation:
    spans = (FIRST, SECOND, THIRD)
    return evaluation_of(
        record(line, span, text=text)
        for line, (span, text) in enumerate(zip(spans, texts, strict=False), 1)
    )


def test_an_answer_is_compared_with_every_span_of_its_clip() -> None:
    answer, *_ = of_one_clip(said(1.0, 5.0), "", "").answers
    assert answer.spans == ((1.0, 5.0),)
    assert answer.iou == pytest.approx(3 / 5)
    assert answer.other_ious == pytest.approx((3 / 5, 0.0))


def test_greedy_metrics_by_hand() -> None:
    figures = of_one_clip(
        said(0.0, 4.0),  # IoU 1; others 2/6, 0
        said(0.0, 4.0),  # IoU 2/6; others 1, 0
        "at the end",  # unreadable: 0; others 0, 0
    ).greedy
    assert figures.num_answers == 3
    assert figures.miou == pytest.approx((1 + 1 / 3) / 3)
    assert figures.r1_at_0_3 == pytest.approx(2 / 3)
    assert figures.r1_at_0_5 == figures.r1_at_0_7 == pytest.approx(1 / 3)
    assert figures.parse_rate == pytest.approx(2 / 3)
    assert figures.distractor_iou == pytest.approx((1 / 3 + 1) / 6)
    assert figures.gt_distractor_iou == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert figures.answers_differ == pytest.approx(2 / 3)


def test_a_query_without_an_answer_is_listed_and_its_span_is_still_a_distractor() -> None:
    found = of_one_clip(said(2.0, 6.0), None, said(6.0, 10.0))
    assert [failure.id for failure in found.failures] == ["line 2"]
    assert found.greedy.num_answers == 2
    assert found.greedy.miou == pytest.approx((2 / 6 + 1) / 2)
    assert found.answers[0].other_ious == pytest.approx((1.0, 0.0))


def test_several_true_spans_are_one_truth() -> None:
    found = evaluation_of([record(1, (0.0, 2.0), (4.0, 6.0), text=said(0.0, 2.0))])
    assert found.greedy.miou == pytest.approx(2 / 4)


def test_answers_come_in_the_order_of_the_rows_whatever_the_journals_is() -> None:
    records = [record(line, FIRST, text="", video=f"{line}.mp4") for line in (10, 2, 1, 9)]
    found = evaluation_of(records)
    assert [answer.record.id for answer in found.answers] == [
        "line 1",
        "line 2",
        "line 9",
        "line 10",
    ]


def test_a_policy_that_ignores_the_query_never_differs() -> None:
    assert of_one_clip(*[said(3.0, 7.0)] * 3).greedy.answers_differ == 0.0


def test_two_unreadable_answers_do_not_count_as_different() -> None:
    assert of_one_clip("red", "blue").greedy.answers_differ == 0.0


def test_pairs_are_made_inside_a_clip_only() -> None:
    figures = evaluation_of(
        [
            record(1, FIRST, text=said(0.0, 1.0)),
            record(2, FIRST, text=said(2.0, 3.0), video="b.mp4"),
        ]
    ).greedy
    assert figures.answers_differ is None
    assert figures.distractor_iou is None
    assert figures.gt_distractor_iou is None


def test_recall_includes_the_threshold_itself() -> None:
    assert recall([0.5, 0.499999, 0.7, 0.0], threshold=0.5) == 0.5
    assert recall([0.7], threshold=0.7) == 1.0


def test_sampled_metrics_by_hand() -> None:
    drawn = [
        record(
            1,
            (0.0, 10.0),
            text="",
            samples=[said(0.0, 2.0), said(0.0, 8.0)],  # IoU .2, .8
            num_tokens=10,
            surprise_nats=4.0,
        ),
        record(2, FIRST, text=""),
        record(
            4,
            (0.0, 10.0),
            text="",
            samples=[said(0.0, 6.0), said(0.0, 4.0)],  # .6, .4
            num_tokens=30,
            surprise_nats=4.0,
        ),
    ]
    figures = sampled_metrics(drawn)
    assert figures is not None
    assert (figures.num_queries, figures.num_samples) == (2, 2)
    assert figures.miou == pytest.approx(0.5)
    assert figures.r1_at_0_5 == 0.5
    assert figures.r1_at_0_7 == 0.25
    assert figures.best_of_g == pytest.approx(0.7)
    assert figures.without_hit == 0.0
    missed = record(6, (0.0, 10.0), text="", samples=[said(0.0, 4.9)] * 2, num_tokens=9)
    assert (found := sampled_metrics([*drawn, missed])) is not None
    assert found.without_hit == pytest.approx(1 / 3)
    assert figures.entropy_nats == pytest.approx(0.2)
    assert evaluation_of(drawn).sampled == figures
    assert evaluation_of(drawn[1:2]).sampled is None


def test_entropy_estimate_finds_the_entropy_of_a_known_policy() -> None:
    """Tokens drawn independently from (1/2, 1/4, 1/4) have 1.5 ln 2 nats each."""
    rng = np.random.default_rng(0)
    surprises = -np.log(rng.choice([0.5, 0.25, 0.25], size=(400, 20), p=[0.5, 0.25, 0.25]))
    drawn = [
        record(line, FIRST, text="", samples=[""], num_tokens=20, surprise_nats=float(nats.sum()))
        for line, nats in enumerate(surprises, 1)
    ]
    assert entropy_nats(drawn) == pytest.approx(1.5 * math.log(2), abs=0.02)
