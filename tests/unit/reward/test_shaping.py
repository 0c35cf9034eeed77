"""Non-linear shaping and downscaling: the reference table, and what the paper promises."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.rest.reward_api import Shaping
from services.reward.shaping import (
    downscaled,
    injected_shaper,
    nonlinear,
    score_shaper,
    shape_all,
)

TABLE = json.loads(
    (Path(__file__).parents[2] / "golden/reward/transform_rewards_table.json").read_text()
)
thresholds = st.floats(0.05, 0.95)
alphas2 = st.floats(0.01, 5.0)
rewards = st.floats(0.0, 1.0)


@pytest.mark.parametrize("point", TABLE["points"], ids=lambda point: str(point["r"]))
def test_reference_points(point: dict[str, float]) -> None:
    assert nonlinear(point["r"]) == pytest.approx(point["shaped"], abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "parameters"),
    [("alpha2_0.5", {"alpha2": 0.5}), ("tau_0.7", {"threshold": 0.7})],
)
def test_reference_points_of_other_parameters(rows: str, parameters: dict[str, float]) -> None:
    for point in TABLE[rows]:
        assert nonlinear(point["r"], **parameters) == pytest.approx(point["shaped"], abs=1e-6)


@given(rewards, rewards, thresholds, st.floats(0.0, 1.0), alphas2)
def test_shaping_is_monotone(
    first: float, second: float, threshold: float, alpha1: float, alpha2: float
) -> None:
    low, high = sorted((first, second))
    shaped = [
        nonlinear(reward, threshold=threshold, alpha1=alpha1, alpha2=alpha2)
        for reward in (low, high)
    ]
    assert shaped[0] <= shaped[1] + 1e-12


@given(thresholds, st.floats(0.0, 1.0), alphas2)
def test_shaping_is_continuous_at_the_threshold(
    threshold: float, alpha1: float, alpha2: float
) -> None:
    def shaped(reward: float) -> float:
        return nonlinear(reward, threshold=threshold, alpha1=alpha1, alpha2=alpha2)

    assert shaped(threshold) == pytest.approx(threshold)
    assert shaped(threshold - 1e-9) == pytest.approx(threshold, abs=1e-6)
    assert shaped(threshold + 1e-9) == pytest.approx(threshold, abs=1e-6)


def test_it_expands_low_rewards_and_flattens_high_ones() -> None:
    slope_at_0 = (nonlinear(1e-6) - nonlinear(0.0)) / 1e-6
    slope_above = (nonlinear(0.8 + 1e-6) - nonlinear(0.8)) / 1e-6
    assert slope_at_0 == pytest.approx(1.295, abs=1e-3)
    assert slope_above == pytest.approx(0.01, abs=1e-4)


def test_without_curvature_rewards_below_the_threshold_are_cut_at_0() -> None:
    assert nonlinear(0.3, alpha2=0.0) == 0.3
    assert nonlinear(-0.3, alpha2=0.0) == 0.0


def test_downscaling_is_a_factor_and_then_a_cap() -> None:
    assert downscaled(1.1) == pytest.approx(0.88)
    assert downscaled(1.1, scale=0.5) == pytest.approx(0.55)
    assert downscaled(1.1, scale=1.0, cap=0.9) == 0.9
    assert downscaled(0.2, cap=0.9) == pytest.approx(0.16)


def test_kinds_touch_what_their_name_says() -> None:
    plain, curve, down = (Shaping(kind=kind) for kind in ("none", "nonlinear", "downscale"))
    assert score_shaper(plain)(0.5) == score_shaper(down)(0.5) == 0.5
    assert score_shaper(curve)(0.5) == nonlinear(0.5)
    assert injected_shaper(plain)(1.1) == injected_shaper(curve)(1.1) == 1.1
    assert injected_shaper(down)(1.0) == 0.8


def test_shape_all_shapes_each_reward() -> None:
    assert shape_all((0.0, 1.0), Shaping()) == [0.0, 1.0]
    assert shape_all((0.0, 1.0), Shaping(kind="nonlinear")) == [nonlinear(0.0), nonlinear(1.0)]
    assert shape_all((0.0, 1.0), Shaping(kind="downscale", cap=0.5)) == [0.0, 0.5]
