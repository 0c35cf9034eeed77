"""Each protocol reads and compares as its code base does; goldens are the public scorers'."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.answers.reading import read_spans
from common.answers.spans import Span
from jobs.evaluation.scoring.matching import Pair, Question, match, own_questions
from jobs.evaluation.scoring.predictions import FailureKind, Prediction, read_predictions
from jobs.evaluation.scoring.protocols import PROTOCOLS, judge, read_answer

REFERENCE = Path(__file__).parents[6] / "shared/reference"
needs_reference = pytest.mark.skipif(
    not REFERENCE.exists(), reason="../shared/reference is not here"
)


def pair(
    text: str | None = None,
    *truth: Span,
    spans: tuple[Span, ...] | None = None,
    failure: FailureKind | None = None,
    id: str = "1",
) -> Pair:
    question = Question(id=id, video="v.mp4", query="q", spans=truth or ((0.0, 10.0),))
    return Prediction(key=id, text=text, spans=spans, failure=failure), question


def iou_of(one: Pair, *, protocol: str) -> float:
    return float(judge([one], protocol=protocol).ious[0])


@needs_reference
def test_timelens_per_item_ious_and_figures_equal_the_public_scorers() -> None:
    golden = json.loads((REFERENCE / "timelens_made_preds.metrics.json").read_text())
    file = read_predictions(REFERENCE / "timelens_made_preds.json")
    matched = match(file.predictions, questions=own_questions(file.predictions))

    found = judge(matched.pairs, protocol="timelens")

    keys = [prediction.key for prediction, _ in matched.pairs]
    assert dict(zip(keys, found.ious.tolist(), strict=True)) == golden["per_item_iou"]
    assert found.miou == pytest.approx(golden["metrics"]["mIOU"], rel=1e-15)
    for threshold in (0.3, 0.5, 0.7):
        assert found.recall(threshold) == golden["metrics"][f"IOU {threshold}"]


@needs_reference
def test_500_real_predictions_equal_both_public_scorers() -> None:
    golden = json.loads((REFERENCE / "charades500_vtgllm.metrics.json").read_text())
    file = read_predictions(REFERENCE / "charades500_vtgllm_in_timelens_format.json")
    matched = match(file.predictions, questions=own_questions(file.predictions))

    found = judge(matched.pairs, protocol="timelens")

    assert found.failures["parse"] == golden["empty_predictions"]
    assert found.collapsed == golden["duplicate_keys_collapsed"]
    assert found.miou == pytest.approx(golden["timelens_evaluator"]["mIOU"], rel=1e-12)
    for threshold in (0.3, 0.5, 0.7):
        assert found.recall(threshold) == golden["timelens_evaluator"][f"IOU {threshold}"]
        assert found.recall(threshold) == golden["vtgllm_eval_tvg_printed"][f"R1@{threshold}"]


@needs_reference
def test_every_row_of_the_parse_table_reads_as_published() -> None:
    for row in json.loads((REFERENCE / "parse_table.json").read_text()):
        text = row["text"]
        for protocol, column in (
            ("timelens", "timelens_extract_time"),
            ("seed", "seed_eval_extract_time"),
        ):
            rules, wanted = PROTOCOLS[protocol], [tuple(span) for span in row[column]]
            found = read_answer(Prediction(key="1", text=text), rules)
            assert list(found.spans) == wanted, (protocol, text)
            whole = tuple((float(round(start)), float(round(end))) for start, end in wanted[:1])
            assert found.used == whole, (protocol, text)
        trained = read_spans(text, parser="seed_train").spans
        assert (list(trained[0]) if trained else None) == row["seed_reward_parse"], text


def test_official_protocols_take_the_first_pair_in_whole_seconds() -> None:
    one = pair("<answer> 0.4 to 9.6, 20 to 30 </answer>")

    assert iou_of(one, protocol="timelens") == 1.0
    assert iou_of(one, protocol="seed") == 1.0
    assert iou_of(one, protocol="exact") == pytest.approx(9.2 / 20)


def test_timelens_scores_numbers_in_thoughts_and_seed_does_not() -> None:
    one = pair("<think> maybe 50 to 60 </think><answer> 0 to 10 </answer>")

    assert iou_of(one, protocol="timelens") == 0.0
    assert iou_of(one, protocol="seed") == 1.0


def test_halves_round_to_even() -> None:
    assert read_answer(Prediction(key="1", text="2.5 to 3.5"), PROTOCOLS["seed"]).used == (
        (2.0, 4.0),
    )


def test_timezero_takes_the_last_pair() -> None:
    assert iou_of(pair("50 to 60, no, 0 and 10"), protocol="timezero") == 1.0


def test_unitime_wants_more_than_the_threshold() -> None:
    one = [pair("0 to 5")]

    assert judge(one, protocol="exact").recall(0.5) == 100.0
    assert judge(one, protocol="unitime").recall(0.5) == 0.0


def test_seed_counts_an_iou_that_rounds_up_to_the_threshold() -> None:
    one = [pair("0 to 69998", (0.0, 100_000.0))]

    assert judge(one, protocol="seed").recall(0.7) == 100.0
    assert judge(one, protocol="exact").recall(0.7) == 0.0


def test_timelens_keeps_the_last_of_equal_keys() -> None:
    pairs = [pair("50 to 60", id="1"), pair("0 to 10", id="2")]

    found = judge(pairs, protocol="timelens")

    assert (found.collapsed, found.miou) == (1, 100.0)
    assert judge(pairs, protocol="exact").miou == 50.0


def test_failures_are_counted_by_kind_and_only_official_protocols_score_them() -> None:
    pairs = [
        pair("0 to 10", id="1"),
        pair("nothing there", id="2"),
        pair(failure="video", id="3"),
        pair(failure="engine", id="4"),
    ]

    exact, seed = judge(pairs, protocol="exact"), judge(pairs, protocol="seed")

    assert exact.failures == seed.failures == {"parse": 1, "video": 1, "engine": 1}
    assert (len(exact.scored_ious), exact.miou) == (2, 50.0)
    assert (len(seed.scored_ious), seed.miou) == (4, 25.0)
    assert exact.parse_rate == seed.parse_rate == 0.5


def test_ready_spans_win_for_timelens_and_text_for_the_others() -> None:
    one = pair("0 to 10", spans=((0.0, 5.4),))

    assert iou_of(one, protocol="timelens") == pytest.approx(0.54)
    assert iou_of(one, protocol="exact") == 1.0


def test_reversed_answers_are_counted_and_only_our_parser_orders_them() -> None:
    one = [pair("10 to 0")]

    exact, timelens = judge(one, protocol="exact"), judge(one, protocol="timelens")

    assert (exact.reversed, exact.miou) == (1, 100.0)
    assert (timelens.reversed, timelens.miou) == (1, 0.0)


def test_several_true_spans_are_compared_as_a_union_or_refused() -> None:
    one = [pair("0 to 5 and 10 to 15", (0.0, 5.0), (10.0, 15.0))]

    assert judge(one, protocol="exact").miou == 100.0
    with pytest.raises(ValueError, match="found 2 true spans, wanted one"):
        judge(one, protocol="timelens")


def test_unknown_protocol_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="wanted one of exact, timelens, seed, timezero, unitime"):
        judge([], protocol="strict")


def test_all_failed_has_no_figure() -> None:
    found = judge([pair(failure="video")], protocol="exact")

    assert np.isnan([found.miou, found.recall(0.5), found.parse_rate]).all()
