"""The best constant span and a random one, against figures worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.answers.spans import Span, iou, union_iou
from jobs.demo.baselines import best_constant, blind_baselines, grid_spans, iou_matrix, padded
from jobs.evaluation.scoring.matching import Question


def asked(*spans: Span, duration_s: float | None = 10.0) -> Question:
    return Question(id="line 1", video="a.mp4", query="?", spans=spans, duration_s=duration_s)


def test_grid_holds_every_valid_span_once() -> None:
    spans = grid_spans(1.5, grid_s=0.5)
    assert spans.tolist() == [[0, 0.5], [0, 1], [0, 1.5], [0.5, 1], [0.5, 1.5], [1, 1.5]]
    assert len(grid_spans(16.0)) == 32 * 33 // 2


def test_best_constant_is_chosen_on_training_questions_and_scored_on_the_others() -> None:
    train = [asked((2.0, 4.0)), asked((2.0, 4.0)), asked((8.0, 10.0))]
    evaluated = [asked((2.0, 4.0)), asked((3.0, 7.0))]
    found = blind_baselines(train, evaluated=evaluated)
    assert found.constant_span == (2.0, 4.0)
    assert found.constant_miou == pytest.approx((1 + 1 / 5) / 2)
    assert found.constant_r1_at_0_5 == 0.5


def test_no_constant_on_the_grid_beats_the_one_found() -> None:
    rng = np.random.default_rng(3)
    starts = rng.integers(0, 12, 20) / 2
    spans = [(float(s), float(s + e)) for s, e in zip(starts, rng.integers(1, 8, 20), strict=True)]
    best = best_constant([[span] for span in spans])
    means = {
        (a / 2, b / 2): np.mean([iou((a / 2, b / 2), span) for span in spans])
        for a in range(28)
        for b in range(a + 1, 29)
    }
    assert means[best] == pytest.approx(max(means.values()))


def test_random_span_is_the_exact_expectation() -> None:
    """In a 1 s clip the candidates are 0-0.5, 0-1 and 0.5-1: IoU with 0-0.5 is 1, 1/2, 0."""
    question = asked((0.0, 0.5), duration_s=1.0)
    found = blind_baselines([question], evaluated=[question])
    assert found.random_miou == pytest.approx(0.5)
    assert found.random_r1_at_0_5 == pytest.approx(2 / 3)


def test_a_question_without_a_duration_is_refused() -> None:
    question = asked((0.0, 1.0), duration_s=None)
    with pytest.raises(ValueError, match="line 1: found no duration"):
        blind_baselines([asked((0.0, 1.0))], evaluated=[question])


def test_several_true_spans_are_one_truth() -> None:
    """Of 1 to 3 and 5 to 7, 1 to 7 covers 4 of 6 s and 1 to 3 covers 2 of 4."""
    question = asked((1.0, 3.0), (5.0, 7.0))
    assert blind_baselines([question], evaluated=[question]).constant_span == (1.0, 7.0)
    assert blind_baselines([question], evaluated=[question]).constant_miou == pytest.approx(4 / 6)


TIMES = st.floats(0, 50, allow_nan=False)
SPANS = st.tuples(TIMES, TIMES).filter(lambda pair: pair[1] - pair[0] > 1e-6)


@given(
    st.lists(SPANS, min_size=1, max_size=5),
    st.lists(st.lists(SPANS, min_size=1, max_size=3), min_size=1, max_size=5),
)
def test_iou_matrix_equals_iou(candidates: list[Span], true: list[list[Span]]) -> None:
    matrix = iou_matrix(np.array(candidates), padded(true))
    expected = [[union_iou([candidate], spans) for spans in true] for candidate in candidates]
    assert matrix == pytest.approx(np.array(expected), abs=1e-9)
