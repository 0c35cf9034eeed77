"""SPEC A7's diagnostics against numbers worked out by hand."""

import math
from typing import Any

import pytest

from common.config import Advantage
from common.messages import Scored, ScoredGroup, Unscored
from services.learner.objective.advantage import step_advantages
from services.learner.objective.diagnostics import diagnostics, search
from tests.fixtures.learner.groups import injected_sample, policy_sample


def figures(
    *rewards: list[float], strategy: Any = "mixed", injected: bool = True, **settings: Any
) -> dict[str, float]:
    groups = []
    for group in rewards:
        samples = [policy_sample([1]) for _ in group]
        if injected:
            samples[-1] = injected_sample([1])
        verdicts = tuple(Scored(reward=reward, parts={}) for reward in group)
        groups.append(ScoredGroup.model_construct(samples=tuple(samples), verdicts=verdicts))
    return diagnostics(step_advantages(groups, strategy=strategy, settings=Advantage(**settings)))


def test_the_ground_truth_moves_mean_and_std() -> None:
    """Policy 0, .1, .2 and .6, truth 1: means .225 and .38; nobody is between them."""
    found = figures([0.0, 0.1, 0.2, 0.6, 1.0])
    policy_std = math.sqrt((0.225**2 + 0.125**2 + 0.025**2 + 0.375**2) / 3)
    group_std = math.sqrt((0.38**2 + 0.28**2 + 0.18**2 + 0.22**2 + 0.62**2) / 4)
    assert found["advantage/mean_policy"] == pytest.approx(0.225)
    assert found["advantage/mean_group"] == pytest.approx(0.38)
    assert found["advantage/std_policy"] == pytest.approx(policy_std)
    assert found["advantage/std_group"] == pytest.approx(group_std)
    assert found["advantage/contamination"] == pytest.approx(0.155 / policy_std)
    assert found["advantage/sign_flip_share"] == 0.0
    assert found["advantage/groups_without_positive"] == 0.0
    assert found["advantage/injected_abs_mean"] == pytest.approx(0.62 / group_std, rel=1e-5)


def test_an_answer_between_the_two_means_is_pushed_the_other_way() -> None:
    """Policy 0 and .3: .3 is the better one, until a truth of 1 lifts the mean to .4333."""
    found = figures([0.0, 0.3, 1.0], [0.0, 1.0, 1.0])
    assert found["advantage/sign_flip_share"] == 0.25
    assert found["advantage/groups_without_positive"] == 1.0


def test_injected_advantages_have_mean_and_maximum_over_groups() -> None:
    found = figures([0.0, 0.3, 1.0], [1.0, 1.0, 1.0, 0.0], scale="none")
    assert found["advantage/injected_abs_mean"] == pytest.approx((1 - 1.3 / 3 + 0.75) / 2)
    assert found["advantage/injected_abs_max"] == pytest.approx(0.75)


def test_rewards_are_those_that_enter_the_advantages() -> None:
    assert figures([0.5, 1.0, 1.0], strategy="downscale")["advantage/mean_group"] == (
        pytest.approx((0.5 + 1.0 + 0.8) / 3)
    )


def test_a_group_whose_policy_rows_tie_has_no_contamination_to_speak_of() -> None:
    found = figures([0.2, 0.2, 1.0])
    assert "advantage/contamination" not in found
    assert found["advantage/mean_group"] == pytest.approx(1.4 / 3)
    assert found["advantage/groups_tied"] == 0.0


def test_without_injected_rows_only_what_concerns_the_policy_is_said() -> None:
    assert figures([0.2, 0.2], [0.0, 1.0], strategy="none", injected=False) == {
        "advantage/groups_tied": 1.0,
        "advantage/groups_without_positive": 1.0,
        "advantage/samples_truncated": 0.0,
    }


def test_sft_trains_no_policy_row_so_none_is_positive() -> None:
    found = figures([0.2, 0.9, 1.0], strategy="sft")
    assert found["advantage/groups_without_positive"] == 1.0
    assert found["advantage/injected_abs_mean"] == 1.0


def searched(*groups: list[float | None], strategy: Any = "mixed") -> dict[str, float]:
    """IoU is the reward; the last answer of a group is the truth, None has no verdict."""
    found = []
    for ious in groups:
        samples = (*(policy_sample([1]) for _ in ious[:-1]), injected_sample([1]))
        verdicts = tuple(
            Unscored(reason="?") if iou is None else Scored(reward=iou, parts={"iou": iou})
            for iou in ious
        )
        found.append(ScoredGroup.model_construct(samples=samples, verdicts=verdicts))
    return search(found, step_advantages(found, strategy=strategy, settings=Advantage()))


def test_groups_without_a_hit_and_what_the_truth_gets_there() -> None:
    """[0, 0, 1]: A = (1 - 1/3) / std, std = 1/sqrt(3); .49 is no hit, .5 is one."""
    missed = 2 / 3 * math.sqrt(3)
    assert searched([0.0, 0.0, 1.0], [0.0, 0.5, 1.0]) == pytest.approx(
        {"advantage/without_hit_share": 0.5, "advantage/injected_without_hit_mean": missed},
        abs=1e-5,
    )
    assert searched([0.0, 0.49, 1.0])["advantage/without_hit_share"] == 1.0
    assert searched([0.0, 0.9, 1.0]) == {"advantage/without_hit_share": 0.0}
    assert searched([None, 0.1, 1.0])["advantage/without_hit_share"] == 1.0
    assert searched([None, None, 1.0]) == {}
    assert searched([0.0, 0.1, 1.0], strategy="sft")["advantage/injected_without_hit_mean"] == 1.0


def test_a_task_without_iou_has_nothing_to_search() -> None:
    group = ScoredGroup.model_construct(
        samples=(policy_sample([1]), policy_sample([1])),
        verdicts=(Scored(reward=1.0, parts={}), Scored(reward=0.0, parts={"f2": 0.0})),
    )
    step = step_advantages([group], strategy="none", settings=Advantage())
    assert search([group], step) == {}
