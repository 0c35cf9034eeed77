"""Grounding rewards: the reference scores, the contract's example, spans that cannot be targets."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.answers.reading import read_spans
from common.messages import HighlightsTarget, SpansTarget, Target, TextTarget
from common.rest.reward_api import ScoreItem, ScoreRequest, Shaping
from services.reward.scorers.targets import TargetError, UnrenderableTarget
from services.reward.scorers.temporal_grounding import answer, bind, seed_ground_truth

GOLDEN = Path(__file__).parents[2] / "golden/reward"
SCORES = json.loads((GOLDEN / "seed_compute_score_table.json").read_text())
PARSE_TABLE = json.loads((GOLDEN / "parse_table.json").read_text())
EVENT = SpansTarget(spans=((7.0, 11.0),))
NONLINEAR = Shaping(kind="nonlinear")


def verdict(response: str, target: Target = EVENT, **options: Any) -> dict[str, Any]:
    mode, duration_s = options.pop("mode", "answer"), options.pop("duration_s", None)
    item = ScoreItem(
        task="temporal_grounding",
        mode=mode,
        target=target,
        duration_s=duration_s,
        responses=(response,),
    )
    return bind(item, ScoreRequest(items=(item,), **options))(response)


VARIANTS: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "tempsamp": {"shaping": NONLINEAR},
    "strict_format": {"shaping": NONLINEAR, "format": "strict"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("index", range(len(SCORES)))
def test_seed_train_equals_every_row_of_the_reference_scores(index: int, variant: str) -> None:
    row = SCORES[index]
    wanted = row[variant]
    found = verdict(
        row["response"],
        TextTarget(text=row["gt"] or ""),
        parser="seed_train",
        **VARIANTS[variant],
    )
    if wanted["task"] == "bbox-misroute":  # the table has no numbers: scored as an image box, 0
        wanted = {"overall": 0.0, "iou": 0.0, "iou_raw": 0.0, "format": 0.0}
    assert found["reward"] == pytest.approx(wanted["overall"], abs=1e-6)
    assert found["parts"]["iou"] == pytest.approx(wanted["iou_raw"], abs=1e-6)
    assert found["parts"]["iou_shaped"] == pytest.approx(wanted["iou"], abs=1e-6)
    assert found["parts"]["format"] == wanted["format"]
    if wanted.get("pred"):
        assert [list(span) for span in found["parsed"]["spans"]] == [wanted["pred"]]


def test_a_missing_ground_truth_is_unusable_like_an_empty_one() -> None:
    assert seed_ground_truth(None) == seed_ground_truth("") == ()


def test_seed_train_knows_one_span() -> None:
    target = SpansTarget(spans=((1.0, 3.0), (5.0, 9.0)))
    assert verdict("<answer>1 to 3</answer>", target, parser="seed_train")["reward"] == 0.0
    with pytest.raises(UnrenderableTarget, match="seed_train knows one"):
        answer(target, duration_s=None, parser="seed_train", decimals=2)


def test_contract_example() -> None:
    found = verdict("<answer> 7.0 to 11.0 </answer>", shaping=NONLINEAR)
    assert found["kind"] == "scored"
    assert found["reward"] == pytest.approx(0.90182, abs=1e-5)
    assert found["parts"] == {
        "iou": 1.0,
        "iou_shaped": pytest.approx(0.80182, abs=1e-5),
        "format": 1.0,
    }
    assert found["parsed"] == {"spans": ((7.0, 11.0),)}
    found = verdict("no idea", shaping=NONLINEAR)
    assert found["reward"] == pytest.approx(0.08676, abs=1e-5)
    assert found["parsed"] is None


def test_several_spans_are_compared_by_their_unions() -> None:
    target = SpansTarget(spans=((1.0, 3.0), (5.0, 9.0)))
    assert verdict("<answer>1 to 3, 5 to 9</answer>", target)["parts"]["iou"] == 1.0
    assert verdict("<answer>1 to 9</answer>", target)["parts"]["iou"] == pytest.approx(0.75)
    assert verdict("<answer>1 to 3</answer>", target)["parts"]["iou"] == pytest.approx(2 / 6)


def test_a_reversed_span_is_compared_in_order_flagged_and_earns_no_format() -> None:
    found = verdict("<answer>11 to 7</answer>")
    assert found["parts"] == {"iou": 1.0, "iou_shaped": 1.0, "format": 0.0}
    assert found["parsed"] == {"spans": ((7.0, 11.0),), "reversed": True}


def test_think_mode_wants_the_thought_for_the_format_part_alone() -> None:
    bare = verdict("<answer>7 to 11</answer>", mode="think", format_weight=1.0)
    full = verdict("<think>a</think><answer>7 to 11</answer>", mode="think", format_weight=1.0)
    assert (bare["reward"], full["reward"]) == (1.0, 2.0)


def test_seed_eval_compares_whole_seconds_and_says_so() -> None:
    found = verdict("<answer>7.4 to 10.6</answer>", parser="seed_eval")
    assert found["parts"]["iou"] == 1.0
    assert found["parsed"] == {"spans": ((7.4, 10.6),), "used": ((7.0, 11.0),)}


def test_the_official_timelens_scorer_has_no_format_reward() -> None:
    assert verdict("<answer>7 to 11</answer>", parser="timelens")["parts"]["format"] == 0.0
    assert verdict("<think>7 to 11</think>", parser="timelens")["parts"]["iou"] == 1.0


def test_timezero_wants_its_whole_template() -> None:
    found = verdict("<think>a</think><answer>7 to 11</answer>", parser="timezero")
    assert found["parts"]["format"] == 1.0
    assert verdict("<answer>7 to 11</answer>", parser="timezero")["parts"]["format"] == 0.0


@pytest.mark.parametrize(
    ("target", "field"),
    [
        (SpansTarget(spans=((-1.0, 3.0),)), "target.spans.0"),
        (SpansTarget(spans=((1.0, 2.0), (5.0, 3.0))), "target.spans.1"),
        (SpansTarget(spans=((3.0, 3.0),)), "target.spans.0"),
        (SpansTarget(spans=((3.0, 60.1),)), "target.spans.0"),
        (SpansTarget(spans=((3.0, 2e9),)), "target.spans.0"),
        (TextTarget(text="no span"), "target.text"),
        (TextTarget(text="5 to 3"), "target.text"),
        (TextTarget(text="5 to 61"), "target.text.0"),
        (TextTarget(text="-5 to 6"), "target.text.0"),
        (HighlightsTarget.model_validate({"highlights": [{"time_s": 1, "score": 1}]}), "target"),
    ],
)
def test_impossible_targets_are_refused_by_field(target: Target, field: str) -> None:
    with pytest.raises(TargetError) as caught:
        verdict("x", target, duration_s=60.0)
    assert caught.value.field == field


def test_a_span_may_end_with_the_video() -> None:
    assert verdict("50 to 60", SpansTarget(spans=((50.0, 60.0),)), duration_s=60.0)["reward"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "<answer> 7.0 to 11.0 </answer>",
        "7.0 to 11.0",
        '{"time": [7.0, 11.0]}',
        "00:07 - 00:11",
    ],
)
def test_text_targets_in_any_shape_are_rendered_alike(text: str) -> None:
    rendered = answer(TextTarget(text=text), duration_s=None, parser="default", decimals=2)
    assert rendered == "<answer> 7.00 to 11.00 </answer>"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[[7.0, 11]]", "[[7.00, 11.00]]"),
        (" [[7, 11],\n [20.5, 24]] ", "[[7.00, 11.00], [20.50, 24.00]]"),
        ("<answer>[[7.0, 11.0]]</answer>", "<answer> [[7.00, 11.00]] </answer>"),
        ("[7.0, 11.0]", "<answer> 7.00 to 11.00 </answer>"),
        ("[[10, 20, 0.9]]", "<answer> 10.00 to 20.00 </answer>"),
    ],
)
def test_a_json_list_stays_one(text: str, wanted: str) -> None:
    target = TextTarget(text=text)
    assert answer(target, duration_s=None, parser="default", decimals=2) == wanted
    assert read_spans(wanted).spans == read_spans(text).spans
    sentence = answer(target, duration_s=None, parser="default", decimals=2, mode="think")
    assert sentence == answer(target, duration_s=None, parser="timelens", decimals=2)
    assert sentence.startswith("<answer> ")
    assert " to " in sentence


def test_typed_spans_are_written_as_their_row_does() -> None:
    target = SpansTarget(spans=((7.0, 11.0), (20.0, 24.0)), style="json_list")
    rendered = answer(target, duration_s=None, parser="default", decimals=1)
    assert rendered == "[[7.0, 11.0], [20.0, 24.0]]"


@pytest.mark.parametrize("row", PARSE_TABLE, ids=lambda row: row["text"][:40])
def test_seed_train_renders_every_row_of_the_reference_table(row: dict[str, Any]) -> None:
    target = TextTarget(text=row["text"])
    if row["seed_build_gt_response"] is None:
        with pytest.raises(TargetError, match="no time span"):
            answer(target, duration_s=None, parser="seed_train", decimals=2)
        return
    rendered = answer(target, duration_s=None, parser="seed_train", decimals=2)
    assert rendered == row["seed_build_gt_response"]


@pytest.mark.parametrize(
    ("decimals", "wanted"),
    [
        (0, "<answer> 7 to 11 </answer>"),
        (1, "<answer> 7.1 to 11.0 </answer>"),
        (3, "<answer> 7.125 to 11.000 </answer>"),
    ],
)
def test_decimals_of_the_rendered_answer(decimals: int, wanted: str) -> None:
    target = SpansTarget(spans=((7.125, 11.0),))
    assert answer(target, duration_s=None, parser="default", decimals=decimals) == wanted


def test_a_span_that_vanishes_at_these_decimals_is_not_rendered() -> None:
    target = SpansTarget(spans=((7.1, 7.4),))
    with pytest.raises(TargetError, match="empty at 0 decimals: raise decimals"):
        answer(target, duration_s=None, parser="default", decimals=0)
