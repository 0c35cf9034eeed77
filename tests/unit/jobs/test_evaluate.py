"""Rows, metrics and baselines of an evaluation, against figures worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.spans import Span, iou
from jobs import clips
from jobs.baselines import best_constant, blind_baselines, grid_spans, iou_matrix
from jobs.grounding import (
    Answer,
    Row,
    SampledAnswers,
    entropy_nats,
    greedy_metrics,
    read_rows,
    recall,
    sampled_metrics,
    score_answer,
    spans_of_clips,
)


def a_row(number: int, span: Span, *, clip: str = "a.mp4") -> Row:
    return Row(
        row_id=f"rows:{number}",
        clip=clip,
        problem="<video>when?",
        query=f"query {number}",
        true_span=span,
        duration_s=10.0,
    )


def answers(*given: tuple[Row, str]) -> list[Answer]:
    """Scored answers; the other spans of a clip are those of its other rows given."""
    rows = [row for row, _ in given]
    return [
        score_answer(
            row,
            text=text,
            other_spans=[r.true_span for r in rows if r.clip == row.clip and r is not row],
        )
        for row, text in given
    ]


FIRST = a_row(1, (0.0, 4.0))
SECOND = a_row(2, (2.0, 6.0))
THIRD = a_row(3, (6.0, 10.0))


def test_an_answer_is_compared_with_every_span_of_its_clip() -> None:
    (answer, *_) = answers((FIRST, "<answer> 1.0 to 5.0 </answer>"), (SECOND, ""), (THIRD, ""))
    assert answer.spans == ((1.0, 5.0),)
    assert answer.iou == pytest.approx(3 / 5)
    assert answer.other_ious == pytest.approx((3 / 5, 0.0))


def test_greedy_metrics_by_hand() -> None:
    figures = greedy_metrics(
        answers(
            (FIRST, "<answer> 0.0 to 4.0 </answer>"),  # IoU 1; others 2/6, 0
            (SECOND, "<answer> 0.0 to 4.0 </answer>"),  # IoU 2/6; others 1, 0
            (THIRD, "at the end"),  # unreadable: 0; others 0, 0
        )
    )
    assert figures.num_answers == 3
    assert figures.miou == pytest.approx((1 + 1 / 3) / 3)
    assert figures.r1_at_0_3 == pytest.approx(2 / 3)
    assert figures.r1_at_0_5 == figures.r1_at_0_7 == pytest.approx(1 / 3)
    assert figures.parse_rate == pytest.approx(2 / 3)
    assert figures.distractor_iou == pytest.approx((1 / 3 + 1) / 6)
    assert figures.gt_distractor_iou == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert figures.answers_differ == pytest.approx(2 / 3)


def test_a_policy_that_ignores_the_query_never_differs() -> None:
    same = "<answer> 3.0 to 7.0 </answer>"
    figures = greedy_metrics(answers((FIRST, same), (SECOND, same), (THIRD, same)))
    assert figures.answers_differ == 0.0


def test_two_unreadable_answers_do_not_count_as_different() -> None:
    assert greedy_metrics(answers((FIRST, "red"), (SECOND, "blue"))).answers_differ == 0.0


def test_pairs_are_made_inside_a_clip_only() -> None:
    elsewhere = a_row(4, (0.0, 4.0), clip="b.mp4")
    figures = greedy_metrics(answers((FIRST, "0 to 1"), (elsewhere, "2 to 3")))
    assert figures.answers_differ is None
    assert figures.distractor_iou is None
    assert figures.gt_distractor_iou is None


def test_recall_includes_the_threshold_itself() -> None:
    assert recall([0.5, 0.499999, 0.7, 0.0], threshold=0.5) == 0.5
    assert recall([0.7], threshold=0.7) == 1.0


def test_sampled_metrics_by_hand() -> None:
    drawn = [
        SampledAnswers(
            row_id="rows:1", texts=("", ""), ious=(0.2, 0.8), num_tokens=10, surprise_nats=4.0
        ),
        SampledAnswers(
            row_id="rows:4", texts=("", ""), ious=(0.6, 0.4), num_tokens=30, surprise_nats=4.0
        ),
    ]
    figures = sampled_metrics(drawn)
    assert figures is not None
    assert (figures.num_queries, figures.num_samples) == (2, 2)
    assert figures.miou == pytest.approx(0.5)
    assert figures.r1_at_0_5 == 0.5
    assert figures.r1_at_0_7 == 0.25
    assert figures.best_of_g == pytest.approx(0.7)
    assert figures.entropy_nats == pytest.approx(0.2)
    assert sampled_metrics([]) is None


def test_entropy_estimate_finds_the_entropy_of_a_known_policy() -> None:
    """Tokens drawn independently from (1/2, 1/4, 1/4) have 1.5 ln 2 nats each."""
    rng = np.random.default_rng(0)
    surprises = -np.log(rng.choice([0.5, 0.25, 0.25], size=(400, 20), p=[0.5, 0.25, 0.25]))
    drawn = [
        SampledAnswers(
            row_id=str(k),
            texts=("",),
            ious=(0.0,),
            num_tokens=20,
            surprise_nats=float(surprises[k].sum()),
        )
        for k in range(400)
    ]
    assert entropy_nats(drawn) == pytest.approx(1.5 * math.log(2), abs=0.02)


def test_rows_of_the_demo_are_read_with_their_spans(tmp_path: Path) -> None:
    path = clips.write_split(tmp_path, "validation", num_clips=2, num_processes=1)
    rows = read_rows(path)
    events = [event for index in range(2) for event in clips.scene_events("validation", index)]
    assert [row.true_span for row in rows] == [event.span_s for event in events]
    assert [row.query for row in rows] == [event.query for event in events]
    assert rows[3].row_id == "validation/rows:4"
    assert list(spans_of_clips(rows)) == ["validation/00000.mp4", "validation/00001.mp4"]


def test_a_published_row_without_query_and_spans_is_read_from_its_answer(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {
        "problem": "<video>when?",
        "answer": "<answer> 7.0 to 11.0 </answer>",
        "videos": ["x.mp4"],
        "duration": 30.5,
    }
    path.write_text(json.dumps(row) + "\n")
    (read,) = read_rows(path)
    assert (read.true_span, read.query) == ((7.0, 11.0), "<video>when?")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"videos": []}, "not a trainer row"),
        ({"answer": "<answer> later </answer>"}, "found 0 true spans, wanted 1"),
        ({"answer": "<answer> 1 to 2, 5 to 6 </answer>"}, "found 2 true spans, wanted 1"),
        ({"spans": [[5.0, 5.0]]}, "wanted 0 <= start < end"),
        ({"duration": "long"}, "duration_s"),
    ],
)
def test_a_row_that_cannot_be_scored_is_refused_with_its_line(
    tmp_path: Path, change: dict[str, object], problem: str
) -> None:
    row = {
        "problem": "<video>when?",
        "answer": "<answer> 1 to 2 </answer>",
        "videos": ["x.mp4"],
        "duration": 9.0,
    }
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | change) + "\n")
    with pytest.raises(ValueError, match=problem) as caught:
        read_rows(path)
    assert f"{path}:2" in str(caught.value)


def test_an_empty_file_of_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="found no rows"):
        read_rows(tmp_path / "rows.jsonl")


def test_grid_holds_every_valid_span_once() -> None:
    spans = grid_spans(1.5, grid_s=0.5)
    assert spans.tolist() == [[0, 0.5], [0, 1], [0, 1.5], [0.5, 1], [0.5, 1.5], [1, 1.5]]
    assert len(grid_spans(16.0)) == 32 * 33 // 2


def test_best_constant_is_chosen_on_the_training_rows_and_scored_on_the_others() -> None:
    train = [a_row(1, (2.0, 4.0)), a_row(2, (2.0, 4.0)), a_row(3, (8.0, 10.0))]
    evaluated = [a_row(4, (2.0, 4.0)), a_row(5, (3.0, 7.0))]
    found = blind_baselines(train, eval_rows=evaluated)
    assert found.constant_span == (2.0, 4.0)
    assert found.constant_miou == pytest.approx((1 + 1 / 5) / 2)
    assert found.constant_r1_at_0_5 == 0.5


def test_no_constant_on_the_grid_beats_the_one_found() -> None:
    rng = np.random.default_rng(3)
    starts = rng.integers(0, 12, 20) / 2
    spans = [(float(s), float(s + e)) for s, e in zip(starts, rng.integers(1, 8, 20), strict=True)]
    best = best_constant(spans)
    means = {
        (a / 2, b / 2): np.mean([iou((a / 2, b / 2), span) for span in spans])
        for a in range(28)
        for b in range(a + 1, 29)
    }
    assert means[best] == pytest.approx(max(means.values()))


def test_random_span_is_the_exact_expectation() -> None:
    """In a 1 s clip the candidates are 0-0.5, 0-1 and 0.5-1: IoU with 0-0.5 is 1, 1/2, 0."""
    row = Row(**a_row(1, (0.0, 0.5)).model_dump() | {"duration_s": 1.0})
    found = blind_baselines([row], eval_rows=[row])
    assert found.random_miou == pytest.approx(0.5)
    assert found.random_r1_at_0_5 == pytest.approx(2 / 3)


TIMES = st.floats(0, 50, allow_nan=False)
SPANS = st.tuples(TIMES, TIMES).filter(lambda pair: pair[1] - pair[0] > 1e-6)


@given(st.lists(SPANS, min_size=1, max_size=5), st.lists(SPANS, min_size=1, max_size=5))
def test_iou_matrix_equals_iou(candidates: list[Span], true: list[Span]) -> None:
    matrix = iou_matrix(np.array(candidates), np.array(true))
    expected = [[iou(candidate, span) for span in true] for candidate in candidates]
    assert matrix == pytest.approx(np.array(expected), abs=1e-9)
