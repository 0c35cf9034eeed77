"""Text highlight answers become clip scores as SPEC B5 says."""

import pytest

from jobs.evaluation.scoring.highlights_text import clip_scores, true_answer

ANSWER = (
    "<answer> The highlight timestamps are in the {} seconds. "
    "Their saliency scores are {} </answer>"
)


def test_unmentioned_clips_score_zero() -> None:
    found = clip_scores(ANSWER.format("2, 6", "1.3, 2"), duration_s=11.0)

    assert found is not None
    assert found.scores == (0.0, 1.3, 0.0, 2.0, 0.0)
    assert found.outside == 0


def test_first_score_of_a_clip_wins_and_late_clips_are_counted() -> None:
    found = clip_scores(ANSWER.format("2, 3.5, 40", "1, 4, 3"), duration_s=6.0)

    assert found is not None
    assert found.scores == (0.0, 1.0, 0.0)
    assert found.outside == 1


@pytest.mark.parametrize("text", ["", "I see nothing.", "<answer> 3 to 9 </answer>"])
def test_what_is_no_highlight_answer_is_none(text: str) -> None:
    assert clip_scores(text, duration_s=10.0) is None


def test_true_answer_reads_back_as_the_mean_rating() -> None:
    text = true_answer([1, 3], saliency=[[1, 1, 2], [4, 4, 3]])

    found = clip_scores(text, duration_s=8.0)

    assert found is not None
    assert found.scores == (0.0, 1.3, 0.0, 3.7)
