"""What is known while a run is under way."""

from collections.abc import Mapping

import pytest

from jobs.evaluation.runner import Tally
from jobs.evaluation.scoring.highlights_text import true_answer
from jobs.evaluation.scoring.predictions import PredictionRecord
from jobs.evaluation.terminal import figures_of

RIGHT = PredictionRecord(
    id="1",
    video="a.mp4",
    query="q",
    gt=((2.0, 4.0),),
    mode="answer",
    text="<answer> 2 to 4 </answer>",
    fingerprint="f",
)


def tallied(*changes: Mapping[str, object]) -> Tally:
    tally = Tally()
    for change in changes:
        tally.add(RIGHT.model_copy(update=change))
    return tally


def test_an_unreadable_answer_counts_0_and_a_failure_does_not_count() -> None:
    failed = {"text": None, "failure": "video"}
    tally = tallied({}, {"text": "no idea"}, failed)
    assert (tally.done, tally.miou) == (3, 50.0)
    assert tally.failures == {"parse": 1, "video": 1}


def test_before_the_first_answer_there_is_no_accuracy() -> None:
    assert tallied({"text": None, "failure": "engine"}).miou is None


def test_highlights_have_no_iou_and_a_span_is_none_of_them() -> None:
    ratings = {1: (4.0, 4.0, 4.0)}
    readable = true_answer([1], saliency=[ratings[1]])
    wrong = true_answer([0], saliency=[ratings[1]])
    asked = {"gt_ratings": ratings, "duration_s": 10.0}
    tally = tallied(asked | {"text": readable}, asked | {"text": wrong}, asked)
    assert (tally.done, tally.miou) == (3, None)
    assert tally.hit1 == pytest.approx(100 / 3)
    assert tally.failures["parse"] == 1
    wanted = ("HIT@1 33.33", "failed: 0 video, 0 engine, 1 parse")
    assert figures_of(tally) == wanted
