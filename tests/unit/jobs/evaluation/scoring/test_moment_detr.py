"""The QVHighlights evaluator: figures computed by hand, and the public evaluator's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.evaluation.scoring.highlights_text import clip_scores, true_answer
from jobs.evaluation.scoring.moment_detr import (
    Submission,
    Truth,
    average_precision,
    clip_average_precision,
    evaluate,
    positive_clips,
)

SHARED = Path(__file__).parents[6] / "shared"
GOLDENS = {
    "60 queries": (
        "reference/qvh60_gt.jsonl",
        "reference/qvh60_momentdetr_preds.jsonl",
        "reference/qvh60_momentdetr.metrics.json",
    ),
    "1,550 queries": (
        "data/qvhighlights/highlight_val_release.jsonl",
        "data/predictions/momentdetr_qvh_val_preds.jsonl",
        "reference/momentdetr_sample_val_preds.metrics.json",
    ),
}
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="../shared is not here")


def records(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHARED / path).read_text().splitlines()]


def truths(path: str) -> dict[str, Truth]:
    return {
        str(record["qid"]): Truth(
            windows=[(start, end) for start, end in record["relevant_windows"]],
            duration_s=record["duration"],
            clip_ids=record["relevant_clip_ids"],
            saliency=record["saliency_scores"],
        )
        for record in records(path)
    }


@needs_shared
@pytest.mark.parametrize("name", GOLDENS)
def test_every_number_equals_the_public_evaluators(name: str) -> None:
    truth, predictions, metrics = GOLDENS[name]
    submissions = {
        str(record["qid"]): Submission(
            windows=record["pred_relevant_windows"], saliency=record["pred_saliency_scores"]
        )
        for record in records(predictions)
    }

    found = evaluate(truths(truth), submissions=submissions, moments=True, highlights=True)

    assert found == json.loads((SHARED / metrics).read_text())


@needs_shared
def test_perfect_text_answers_score_what_the_public_evaluator_gives_them() -> None:
    annotated = truths("data/qvhighlights/highlight_val_release.jsonl")
    submissions = {}
    for qid, truth in annotated.items():
        text = true_answer(truth.clip_ids, saliency=truth.saliency)
        clips = clip_scores(text, duration_s=truth.duration_s)
        assert clips is not None
        windows = [(start, end, 1.0) for start, end in truth.windows]
        submissions[qid] = Submission(windows=windows, saliency=clips.scores)

    found = evaluate(annotated, submissions=submissions, moments=True, highlights=True)

    golden = (SHARED / "reference/qvh_oracle_text_target.metrics.json").read_text()
    assert found == json.loads(golden)


def test_average_precision_of_a_ranking_by_hand() -> None:
    true_W2 = np.array([[0.0, 10.0], [20.0, 30.0]])
    windows = [(20.0, 30.0, 0.2), (50.0, 60.0, 0.5), (0.0, 8.0, 0.9)]

    ap_T = average_precision(windows, true_W2=true_W2)

    at_or_below_080 = (1 + 2 / 3) / 2  # ranks 1 (IoU 0.8) and 3 (IoU 1) are hits
    above_080 = (1 / 3) / 2
    np.testing.assert_allclose(ap_T, [at_or_below_080] * 7 + [above_080] * 3)


def test_a_true_window_is_found_once() -> None:
    ap_T = average_precision(
        [(0, 10, 0.9), (0, 10, 0.8)], true_W2=np.array([[0.0, 10.0], [50.0, 60.0]])
    )

    np.testing.assert_allclose(ap_T, [0.5] * 10)


def test_only_the_first_ten_windows_count_for_precision() -> None:
    windows = [(50.0, 60.0, 0.1)] * 10 + [(0.0, 10.0, 0.9)]

    assert average_precision(windows, true_W2=np.array([[0.0, 10.0]])).sum() == 0.0


def test_first_window_decides_recall_whatever_its_confidence() -> None:
    truth = {"1": Truth(windows=[(0, 10), (20, 60)], duration_s=150)}
    windows = [(20.0, 60.0, 0.1), (100.0, 110.0, 0.9)]

    found = evaluate(
        truth, submissions={"1": Submission(windows=windows)}, moments=True, highlights=False
    )

    assert found["full"]["MR-R1"]["0.95"] == 100.0
    assert found["brief"]["MR-full-mAP"] == 25.0


def test_windows_are_sorted_into_ranges_open_below_and_closed_above() -> None:
    truth = {
        "short": Truth(windows=[(0, 10)], duration_s=150),
        "middle": Truth(windows=[(0, 30)], duration_s=150),
    }
    submissions = {
        "short": Submission(windows=[(0, 10, 1.0)]),
        "middle": Submission(windows=[(100, 130, 1.0)]),
    }

    found = evaluate(truth, submissions=submissions, moments=True, highlights=False)

    brief = found["brief"]
    assert (brief["MR-short-mAP"], brief["MR-middle-mAP"]) == (100.0, 0.0)
    assert "long" not in found


def test_query_without_a_window_counts_zero() -> None:
    truth = {qid: Truth(windows=[(0, 10)], duration_s=150) for qid in "ab"}
    submissions = {"a": Submission(windows=[(0, 10, 1.0)]), "b": Submission()}

    brief = evaluate(truth, submissions=submissions, moments=True, highlights=False)["brief"]

    assert (brief["MR-full-mAP"], brief["MR-full-R1@0.5"]) == (50.0, 50.0)


def test_clip_precision_by_hand_with_a_tie() -> None:
    positive_CL = np.array([[1], [0], [1], [0]], dtype=np.bool_)

    # Two clips enter together (precision 1/2), then the second hit (2/3), which lifts the first.
    found = clip_average_precision([0.9, 0.9, 0.5, 0.1], positive_CL=positive_CL)

    np.testing.assert_allclose(found, [2 / 3])


def test_clip_scores_are_cut_or_filled_to_the_video() -> None:
    positive_CL = np.array([[0], [1]], dtype=np.bool_)

    cut = clip_average_precision([0.1, 0.5, 0.9], positive_CL=positive_CL)
    filled = clip_average_precision([-1.0], positive_CL=positive_CL)

    assert (cut.item(), filled.item()) == (1.0, 1.0)


def test_all_negative_is_zero_and_all_positive_is_one() -> None:
    columns = np.array([[0, 1], [0, 1]], dtype=np.bool_)

    assert clip_average_precision([0.2, 0.1], positive_CL=columns).tolist() == [0.0, 1.0]


def test_best_clip_hits_if_one_rater_agrees_and_misses_past_the_end() -> None:
    truth = {
        qid: Truth(windows=[(0, 2)], duration_s=5, clip_ids=[1], saliency=[[1, 2, 4]])
        for qid in "ab"
    }
    submissions = {"a": Submission(saliency=[0, 1]), "b": Submission(saliency=[0, 0, 9])}

    found = evaluate(truth, submissions=submissions, moments=False, highlights=True)

    assert found["HL-min-VeryGood"]["HL-Hit1"] == 50.0
    assert list(found) == ["brief", "HL-min-Fair", "HL-min-Good", "HL-min-VeryGood"]


def test_unreadable_highlights_are_worth_nothing() -> None:
    truth = {"a": Truth(windows=[(0, 2)], duration_s=4, clip_ids=[0, 1], saliency=[[4, 4, 4]] * 2)}

    found = evaluate(truth, submissions={"a": Submission()}, moments=False, highlights=True)

    assert found["HL-min-Fair"] == {"HL-mAP": 0.0, "HL-Hit1": 0.0}


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (Truth(windows=[(0, 2)], duration_s=4, clip_ids=[2], saliency=[[1, 1, 1]]), "clip 2"),
        (Truth(windows=[(0, 2)], duration_s=4, clip_ids=[0], saliency=[[1, 1]]), "3 ratings"),
    ],
)
def test_rating_that_cannot_be_is_refused(truth: Truth, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        positive_clips(truth, qid="7")


def test_other_ids_and_missing_windows_are_refused() -> None:
    truth = {"7": Truth(windows=(), duration_s=4)}

    with pytest.raises(ValueError, match=r"\['7', '8'\]"):
        evaluate(truth, submissions={"8": Submission()}, moments=True, highlights=False)
    with pytest.raises(ValueError, match="no relevant window of qid 7"):
        evaluate(truth, submissions={"7": Submission()}, moments=True, highlights=False)
