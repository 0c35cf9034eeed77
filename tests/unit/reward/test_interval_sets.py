"""Set rewards: hand-computed numbers, the reference table, and what shaping and penalties do."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from common.answers.spans import Span
from common.messages import Highlight, HighlightsTarget, SpansTarget, Target
from common.rest.reward_api import ScoreItem, ScoreRequest, Shaping
from services.reward.scorers import highlight_detection, temporal_grounding
from services.reward.scorers.interval_sets import ngiou, tiou, twass, wasserstein_s
from services.reward.shaping import nonlinear

TABLE = Path(__file__).parents[4] / "shared/reference/set_reward_table.json"
TRUTH = SpansTarget(spans=((7.0, 11.0),))
TWO = SpansTarget(spans=((7.0, 11.0), (20.0, 24.0)))


def test_the_reference_table_is_met() -> None:
    if not TABLE.exists():
        pytest.skip("needs ../shared/reference/set_reward_table.json")
    for row in json.loads(TABLE.read_text())["rows"]:
        predicted, truth = ([(start, end) for start, end in row[key]] for key in ("pred", "gt"))
        found = {
            "tiou": tiou(predicted, truth),
            "twass_beta1": twass(predicted, truth, beta=1),
            "twass_beta3": twass(predicted, truth, beta=3),
            "ngiou": ngiou(predicted, truth),
        }
        assert found == pytest.approx({key: row[key] for key in found}, abs=1e-8), row


@pytest.mark.parametrize(
    ("left", "right", "seconds"),
    [
        ([(7, 11)], [(6, 10)], 1.0),  # a shift by 1 s moves all of it by 1 s
        ([(0, 4)], [(7, 11)], 7.0),
        # |F - G| rises to 1/2 at 1, falls through 0 at 2 and mirrors: 2 triangles of 1/2.
        ([(0, 1), (3, 4)], [(1, 3)], 1.0),
        ([(0, 4)], [(1, 3)], 0.5),  # 1/4 at 1, 0 at 2, -1/4 at 3: 4 triangles of 1/8
        ([(1, 3), (30, 32)], [(1, 3), (30, 32)], 0.0),
    ],
)
def test_distance_by_hand(left: list[Span], right: list[Span], seconds: float) -> None:
    assert wasserstein_s(left, right) == pytest.approx(seconds, abs=1e-12)
    assert wasserstein_s(right, left) == pytest.approx(seconds, abs=1e-12)


def test_scores_by_hand() -> None:
    assert twass([(6, 10)], [(7, 11)], beta=1) == pytest.approx(math.exp(-1 / 4))
    assert twass([(6, 10)], [(7, 11)], beta=3) == pytest.approx(math.exp(-3 / 4))
    # (1 + 3/5) / 2, and a miss: hull 11, gap 3, (1 - 3/11) / 2; unmatched spans halve the mean.
    assert ngiou([(6, 10)], [(7, 11)]) == pytest.approx(0.8)
    assert ngiou([(0, 4)], [(7, 11)]) == pytest.approx(4 / 11)
    assert ngiou([(7, 11), (20, 24)], [(7, 11)]) == pytest.approx(0.5)
    # 4 s of 4 + 8 - 4; true spans that overlap count twice: 3 + 3 of 4 + 6 - 6.
    assert tiou([(7, 11)], [(7, 11), (20, 24)]) == pytest.approx(0.5)
    assert tiou([(7, 11)], [(7, 10), (8, 11)]) == pytest.approx(1.0)


def test_edges_have_numbers() -> None:
    assert twass([], [], beta=1) == 1.0
    assert twass([], [(1, 2)], beta=1) == twass([(5, 5)], [(1, 2)], beta=1) == 0.0
    assert tiou([], []) == ngiou([], []) == 0.0
    assert ngiou([(5, 5)], [(5, 6)]) == 0.0
    assert twass([(0, 1)], [(1e6, 1e6 + 1)], beta=100) == 0.0


def test_many_spans_cost_no_square() -> None:
    """20,000 spans on both sides in well under a second; overlapping true ones too."""
    many = [(float(i), i + 1.5) for i in range(20_000)]
    apart = [(3.0 * i, 3.0 * i + 1) for i in range(20_000)]
    assert 0 < tiou(apart, many) < 1
    assert 0 < twass(apart, many, beta=1) < 1
    assert 0 < ngiou(apart, many) < 1


def verdict(response: str, target: Target = TRUTH, **options: Any) -> dict[str, Any]:
    item = ScoreItem(task="temporal_grounding", target=target, responses=(response,))
    return temporal_grounding.bind(item, ScoreRequest(items=(item,), **options))(response)


def test_the_set_reward_adds_its_parts() -> None:
    found = verdict("<answer>6 to 10</answer>", reward="iou+wasserstein")
    assert found["reward"] == pytest.approx(0.6 + math.exp(-1 / 4) + 0.1)
    wanted = {"iou": 0.6, "iou_shaped": 0.6, "tiou": 0.6, "twass": math.exp(-1 / 4)}
    wanted |= {"ngiou": 0.8, "set_shaped": 0.6 + math.exp(-1 / 4), "format": 1.0}
    assert found["parts"] == pytest.approx(wanted)
    steep = verdict("<answer>6 to 10</answer>", reward="iou+wasserstein", beta=3)
    assert steep["parts"]["twass"] == pytest.approx(math.exp(-3 / 4))


def test_misses_are_told_apart_by_how_far_off_they_are() -> None:
    near, far = (verdict(f"<answer>{at}</answer>", reward="iou+wasserstein") for at in NEAR_FAR)
    assert near["parts"]["iou"] == far["parts"]["iou"] == 0.0
    assert near["reward"] > far["reward"] > 0.1


NEAR_FAR = ("12 to 14", "14 to 16")


def test_shaping_bends_tiou_or_the_sum() -> None:
    options: dict[str, Any] = {"reward": "iou+wasserstein", "shaping": Shaping(kind="nonlinear")}
    twass_1 = math.exp(-1 / 4)
    bent = verdict("<answer>6 to 10</answer>", **options)
    assert bent["parts"]["set_shaped"] == pytest.approx(nonlinear(0.6) + twass_1)
    assert bent["parts"]["iou_shaped"] == pytest.approx(nonlinear(0.6))
    whole = verdict("<answer>6 to 10</answer>", **options, shaped="sum")
    assert whole["parts"]["set_shaped"] == pytest.approx(2 * nonlinear((0.6 + twass_1) / 2))
    assert whole["parts"]["iou_shaped"] == pytest.approx(0.6)
    assert whole["reward"] == pytest.approx(whole["parts"]["set_shaped"] + 0.1)


@pytest.mark.parametrize("response", ["no idea", "<answer>11 to 7</answer>", "[[7, 11], [5, 5]]"])
def test_no_answer_gets_the_penalty_and_nothing_else(response: str) -> None:
    options: dict[str, Any] = {"shaping": Shaping(kind="nonlinear"), "parse_penalty": 1.0}
    for reward in ("iou", "iou+wasserstein"):
        found = verdict(response, reward=reward, **options)
        assert found["reward"] == found["parts"]["parse_penalty"] == -1.0
    assert {found["parts"][part] for part in ("tiou", "twass", "ngiou")} == {0.0}
    plain = verdict(response, reward="iou+wasserstein")
    assert plain["parts"].keys() == found["parts"].keys() - {"parse_penalty"}
    assert plain["reward"] == 0.0


def test_an_answer_pays_no_penalty() -> None:
    found = verdict("<answer>7 to 11</answer>", parse_penalty=1.0)
    assert (found["reward"], found["parts"]["parse_penalty"]) == (1.1, 0.0)


def test_highlights_know_the_penalty_too() -> None:
    target = HighlightsTarget(highlights=(Highlight(time_s=2.0, score=1.0),))
    item = ScoreItem(task="highlight_detection", target=target, responses=("nothing",))
    found = highlight_detection.bind(item, ScoreRequest(items=(item,), parse_penalty=0.5))(
        "nothing"
    )
    assert found["reward"] == found["parts"]["parse_penalty"] == -0.5


def test_two_spans_and_json_lists_score_alike() -> None:
    for response in ("<answer>7 to 11, 20 to 24</answer>", "[[7.0, 11.0], [20.0, 24.0]]"):
        parts = verdict(response, TWO, reward="iou+wasserstein")["parts"]
        assert (parts["tiou"], parts["twass"], parts["ngiou"]) == (1.0, 1.0, 1.0)


def test_seed_train_without_a_usable_truth_is_zero_in_every_part() -> None:
    found = verdict("<answer>7 to 11</answer>", TWO, parser="seed_train", reward="iou+wasserstein")
    assert found["reward"] == 0.0
    assert set(found["parts"].values()) == {0.0}
