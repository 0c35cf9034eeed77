"""Highlight rewards: the reference table to 1e-6, and the decided edge cases of SPEC B2."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages import Highlight, HighlightsTarget, SpansTarget, Target, TextTarget
from common.rest.reward_api import ScoreItem, ScoreRequest
from services.reward.scorers.highlight_detection import (
    answer,
    bind,
    clip_scores,
    highlight_score,
)
from services.reward.scorers.targets import TargetError

TABLE = json.loads(
    (Path(__file__).parents[2] / "golden/reward/highlight_reward_table.json").read_text()
)
TRUE_SCORES = {float(time): score for time, score in TABLE["gt"].items()}
TARGET = HighlightsTarget(
    highlights=tuple(Highlight(time_s=t, score=s) for t, s in TRUE_SCORES.items())
)
clips = st.dictionaries(st.integers(0, 40), st.floats(0, 5), min_size=1, max_size=12)


def sentence(scores: dict[str, float]) -> str:
    times = ", ".join(scores)
    values = ", ".join(str(score) for score in scores.values())
    return (
        f"<answer> The highlight timestamps are in the {times} seconds. "
        f"Their saliency scores are {values} </answer>"
    )


def verdict(response: str, target: Target = TARGET, **options: Any) -> dict[str, Any]:
    item = ScoreItem(task="highlight_detection", target=target, responses=(response,))
    return bind(item, ScoreRequest(items=(item,), **options))(response)


@pytest.mark.parametrize("case", TABLE["cases"], ids=lambda case: case["case"])
def test_every_reference_case_in_both_readings_of_wmse(case: dict[str, Any]) -> None:
    for support, name in (("all", "all_gt"), ("matched", "matched")):
        found = verdict(sentence(case["pred"]), wmse_support=support, format_weight=0.0)
        assert found["reward"] == pytest.approx(case[f"R_ts_{name}"], abs=1e-6)
        assert found["parts"]["f2"] == pytest.approx(case["f2"], abs=1e-6)
        if case["pred"] and case[f"wmse_{name}"] is not None:
            assert found["parts"]["wmse"] == pytest.approx(case[f"wmse_{name}"], abs=1e-6)


def test_times_match_on_the_two_second_grid_and_the_first_score_of_a_clip_wins() -> None:
    highlights = (
        Highlight(time_s=82.0, score=1.0),
        Highlight(time_s=83.9, score=9.0),
        Highlight(time_s=84.0, score=2.0),
    )
    assert clip_scores(highlights) == {41: 1.0, 42: 2.0}


def test_without_a_matched_clip_there_is_no_saliency_term() -> None:
    assert highlight_score({0: 1.3}, {41: 1.3}).total == 0.0
    assert highlight_score({}, {41: 1.3}).total == 0.0


def test_a_ground_truth_of_zero_scores_weighs_nothing() -> None:
    assert highlight_score({1: 5.0}, {1: 0.0}).wmse == 0.0


def test_one_perfect_clip_earns_over_half_only_with_matched_support() -> None:
    truth = {41: 1.3, 42: 1.7, 43: 1.7, 44: 2.3, 45: 2.3}
    assert highlight_score({44: 2.3}, truth, support="matched").total > 0.5
    assert highlight_score({44: 2.3}, truth, support="all").total < 0.3


@given(clips, clips, st.sampled_from(["all", "matched"]))
def test_scores_stay_between_0_and_1(
    predicted: dict[int, float], truth: dict[int, float], support: Any
) -> None:
    score = highlight_score(predicted, truth, support=support)
    assert 0 <= score.total <= 1
    assert 0 <= score.f2 <= 1
    assert score.wmse >= 0


@given(clips)
def test_the_truth_itself_earns_1(truth: dict[int, float]) -> None:
    assert highlight_score(truth, truth).total == pytest.approx(1.0)


def test_format_and_what_was_read() -> None:
    found = verdict(sentence({"82": 1.3}), format_weight=1.0)
    assert found["parts"]["format"] == 1.0
    assert found["parsed"] == {"highlights": [{"time_s": 82.0, "score": 1.3}]}
    assert found["reward"] == found["parts"]["highlight"] + 1.0
    nothing = verdict("no idea")
    assert nothing["parsed"] is None
    assert nothing["reward"] == 0.0


def test_the_rendered_truth_earns_everything() -> None:
    text = answer(TARGET, duration_s=None, decimals=2)
    assert text == sentence({"82": 1.3, "84": 1.7, "86": 1.7, "88": 2.3, "90": 2.3})
    assert verdict(text)["reward"] == pytest.approx(1.1)


def test_text_targets_are_read_like_answers() -> None:
    assert verdict(sentence({"82": 1.3}), TextTarget(text=sentence({"82": 1.3})))["reward"] > 1


@pytest.mark.parametrize(
    ("target", "field"),
    [
        (TextTarget(text="nothing"), "target.text"),
        (SpansTarget(spans=((1.0, 2.0),)), "target"),
        (
            HighlightsTarget(highlights=(Highlight(time_s=99, score=1),)),
            "target.highlights.0.time_s",
        ),
        (
            HighlightsTarget(highlights=(Highlight(time_s=9, score=1e9),)),
            "target.highlights.0.score",
        ),
    ],
)
def test_impossible_targets_are_refused_by_field(target: Target, field: str) -> None:
    item = ScoreItem(task="highlight_detection", target=target, duration_s=60.0, responses=("x",))
    with pytest.raises(TargetError) as caught:
        bind(item, ScoreRequest(items=(item,)))
    assert caught.value.field == field
