"""Advantages against the reference table and against numbers restated here."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from common import config
from common.config import Advantage
from common.errors import ConfigError
from common.messages import Scored, ScoredGroup, Unscored, Verdict
from services.learner.objective.advantage import (
    StepAdvantages,
    sample_advantages,
    step_advantages,
)
from tests.fixtures.learner.groups import injected_sample, policy_sample

REFERENCE = Path(__file__).parents[5] / "shared" / "reference"
DEFAULTS = Advantage()
# (rewards, strategy, advantages); the last row is injected. Three groups of the reference table.
RESTATED: list[tuple[list[float], str, list[float]]] = [
    ([0.6, 0.7, 0.5, 1.0], "mixed", [-0.462907907, 0.0, -0.925815814, 1.388723721]),
    ([0.6, 0.7, 0.5, 1.0], "downscale", [-0.387295335, 0.387295335, -1.161886004, 1.161886004]),
    ([0.6, 0.7, 0.5, 1.0], "anchor", [0.0, 0.99999, -0.99999, 1.199988]),
    (
        [0.671148752, 0.738792975, 0.596390323, 0.801823216],
        "shaping",
        [-0.349580949, 0.415944541, -1.195617457, 1.129253866],
    ),
    ([0.0, 0.0, 0.0, 1.0], "mixed", [-0.499999, -0.499999, -0.499999, 1.499997]),
    ([0.0, 0.0, 0.0, 1.0], "anchor", [0.0, 0.0, 0.0, 0.0]),
    (
        [0.95, 0.97, 0.9, 1.0],
        "downscale",
        [0.592576426, 0.855943727, -0.065841825, -1.382678328],
    ),
]


def group_of(verdicts: list[Verdict], *, injected: int = 1) -> ScoredGroup:
    """Policy samples, then injected ones; only verdicts and provenance matter here."""
    samples = [policy_sample([1])] * (len(verdicts) - injected) + [injected_sample([1])] * injected
    return ScoredGroup.model_construct(samples=tuple(samples), verdicts=tuple(verdicts))


def scored(reward: float) -> Scored:
    return Scored(reward=reward, parts={})


def advantages(
    rewards: list[float], strategy: Any, settings: Advantage = DEFAULTS, *, injected: int = 1
) -> list[Any]:
    """Of a group whose last answers are injected."""
    group = group_of([scored(reward) for reward in rewards], injected=injected)
    return list(sample_advantages(group, strategy=strategy, settings=settings))


@pytest.mark.parametrize(("rewards", "strategy", "wanted"), RESTATED)
def test_restated_rows_of_the_reference(
    rewards: list[float], strategy: str, wanted: list[float]
) -> None:
    assert advantages(rewards, strategy) == pytest.approx(wanted, abs=1e-6)


def test_reference_table() -> None:
    table = REFERENCE / "advantage_table.json"
    if not table.exists():
        pytest.skip(f"{table} is not on this machine; restated rows are tested above")
    for group in json.loads(table.read_text())["groups"]:
        rewards = group["iou_rewards"]
        downscaled, anchored = group["reward_downscale_0.8"], group["advantage_anchor_1.2"]
        assert advantages(rewards, "mixed") == pytest.approx(group["grpo_mixed"], abs=1e-6)
        assert advantages(rewards, "downscale") == pytest.approx(downscaled["adv"], abs=1e-6)
        assert advantages(rewards, "anchor") == pytest.approx(
            [*anchored["adv_on"], anchored["adv_gt"]], abs=1e-6
        )
        for variant in ("nonlinear_shaping", "seed_full_with_format_0.1"):
            shaped = group[variant]
            found = advantages(shaped["rewards"], "shaping")
            assert found == pytest.approx(shaped["adv"], abs=1e-6)


def test_plain_grpo_is_eq_2_over_policy_rows() -> None:
    found = advantages([0.0, 1.0], "none", injected=0)
    assert found == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)], abs=2e-6)


def test_sft_trains_the_injected_row_alone() -> None:
    assert advantages([0.2, 0.9, 1.0], "sft") == [None, None, 1.0]


def test_sft_group_without_injected_row_is_unusable() -> None:
    assert advantages([0.2, 0.9], "sft", injected=0) == [None, None]


@pytest.mark.parametrize("strategy", ["none", "mixed", "downscale", "anchor", "shaping"])
def test_a_single_row_is_unusable(strategy: Any) -> None:
    assert advantages([1.0], strategy) == [None]


def test_anchor_of_tied_policy_rows_ignores_the_ground_truth_unless_floored() -> None:
    assert advantages([0.3, 0.3, 1.0], "anchor") == pytest.approx([0.0, 0.0, 0.0])
    floored = advantages([0.3, 0.3, 1.0], "anchor", Advantage(anchor_floor=0.5))
    assert floored == pytest.approx([0.0, 0.0, 0.5])


def test_downscale_pushes_down_a_ground_truth_that_the_policy_beats() -> None:
    assert advantages([1.0, 1.0, 1.0, 1.0], "downscale")[-1] == pytest.approx(-1.5, abs=1e-4)


def test_std_floor_keeps_near_ties_small() -> None:
    settings = Advantage(std_floor=0.1)
    found = advantages([0.95, 0.97, 0.9, 1.0], "mixed", settings)
    assert found == pytest.approx([-0.05, 0.15, -0.55, 0.45], abs=1e-4)


def test_without_std_rewards_are_only_centred() -> None:
    found = advantages([0.0, 0.5, 1.0], "mixed", Advantage(scale="none"))
    assert found == pytest.approx([-0.5, 0.0, 0.5])


def test_unscored_sample_leaves_mean_and_std() -> None:
    group = group_of([scored(0.6), Unscored(reason="down"), scored(0.7), scored(0.5), scored(1.0)])
    found = sample_advantages(group, strategy="mixed", settings=DEFAULTS)
    assert found[1] is None
    assert [found[0], *found[2:]] == pytest.approx(RESTATED[0][2], abs=1e-6)


def test_group_with_one_scored_sample_is_unusable() -> None:
    group = group_of([scored(0.6), Unscored(reason="down"), Unscored(reason="down")])
    assert sample_advantages(group, strategy="shaping", settings=DEFAULTS) == (None, None, None)


def test_downscale_is_a_share_of_the_largest_reward_whoever_has_it() -> None:
    """An answer of the policy with a format reward beats a bare true one: 0.8 x 1.1 = 0.88."""
    found = advantages([0.6, 0.7, 1.1, 1.0], "downscale")
    mean, std = 0.82, math.sqrt((0.22**2 + 0.12**2 + 0.28**2 + 0.06**2) / 3)
    assert found == pytest.approx([(r - mean) / std for r in (0.6, 0.7, 1.1, 0.88)], abs=1e-4)


def test_an_aborted_answer_leaves_its_group_as_an_unscored_one_does() -> None:
    group = group_of([scored(0.6), scored(0.9), scored(0.7), scored(0.5), scored(1.0)])
    cut = group.samples[1].model_copy(update={"finish_reason": "abort"})
    group = group.model_copy(update={"samples": (group.samples[0], cut, *group.samples[2:])})
    found = sample_advantages(group, strategy="mixed", settings=DEFAULTS)
    assert found[1] is None
    assert [found[0], *found[2:]] == pytest.approx(RESTATED[0][2], abs=1e-6)


def of_step(
    *rewards: list[float], cut: tuple[int, ...] = (), strategy: Any = "mixed", **settings: Any
) -> StepAdvantages:
    """Groups of these rewards; `cut` are samples of the first one."""
    groups = [group_of([scored(reward) for reward in group]) for group in rewards]
    samples = [
        s.model_copy(update={"finish_reason": "length"}) if i in cut else s
        for i, s in enumerate(groups[0].samples)
    ]
    groups[0] = groups[0].model_copy(update={"samples": tuple(samples)})
    return step_advantages(groups, strategy=strategy, settings=Advantage(**settings))


def test_a_step_is_its_groups_one_by_one() -> None:
    step = of_step([0.6, 0.7, 0.5, 1.0], [0.0, 0.0, 0.0, 1.0])
    assert list(step.by_group[0]) == advantages([0.6, 0.7, 0.5, 1.0], "mixed")
    assert list(step.by_group[1]) == advantages([0.0, 0.0, 0.0, 1.0], "mixed")


def test_batch_std_is_that_of_all_rewards_of_the_step() -> None:
    step = of_step([0.0, 1.0], [0.5, 0.5], scale="batch_std")
    std = math.sqrt(0.5 / 3)  # of 0, 1, .5, .5
    assert step.by_group[0] == pytest.approx((-0.5 / std, 0.5 / std), abs=1e-4)
    assert step.by_group[1] == (0.0, 0.0)
    floored = of_step([0.0, 1.0], [0.5, 0.5], scale="batch_std", std_floor=2.0)
    assert floored.by_group[0] == pytest.approx((-0.25, 0.25), abs=1e-6)


def test_batch_std_of_anchor_leaves_the_ground_truth_out() -> None:
    step = of_step([0.0, 1.0, 9.0], [0.5, 0.5, 9.0], scale="batch_std", strategy="anchor")
    std = math.sqrt(0.5 / 3)
    assert step.by_group[0] == pytest.approx((-0.5 / std, 0.5 / std, 0.6 / std), abs=1e-4)


def test_tied_groups_are_kept_unless_they_are_to_be_skipped() -> None:
    rewards = [[0.1, 0.1, 0.1], [0.0, 0.5, 1.0]]
    kept, skipped = of_step(*rewards), of_step(*rewards, zero_variance="skip")
    assert kept.by_group[0] == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)
    assert skipped.by_group == ((None, None, None), kept.by_group[1])
    assert (kept.num_tied, skipped.num_tied) == (1, 1)
    assert not skipped.is_empty


def test_a_step_of_tied_groups_alone_is_empty_if_they_are_skipped() -> None:
    assert of_step([0.1, 0.1], [1.0, 1.0], zero_variance="skip").is_empty
    assert not of_step([0.1, 0.1], [1.0, 1.0]).is_empty


def test_a_floored_anchor_teaches_in_a_tied_group() -> None:
    rewards = [0.3, 0.3, 1.0]
    step = of_step(rewards, strategy="anchor", anchor_floor=0.5, zero_variance="skip")
    assert step.by_group[0] == pytest.approx((0.0, 0.0, 0.5))
    assert of_step(rewards, strategy="anchor", zero_variance="skip").is_empty


def test_a_step_of_sft_without_a_true_answer_is_empty() -> None:
    group = ScoredGroup.model_construct(
        samples=(policy_sample([1]), policy_sample([1])), verdicts=(scored(0.0), scored(1.0))
    )
    step = step_advantages([group], strategy="sft", settings=Advantage())
    assert step.by_group == ((None, None),)
    assert step.is_empty


def test_truncated_answers_are_dropped_on_demand_and_still_count_in_mean_and_std() -> None:
    rewards = [0.6, 0.7, 0.5, 1.0]
    wanted = advantages(rewards, "mixed")
    trained = of_step(rewards, cut=(0, 3))  # the last one is injected: it has no limit of its own
    assert list(trained.by_group[0]) == wanted
    assert trained.num_truncated == 1
    dropped = of_step(rewards, cut=(0, 3), truncated="drop")
    assert list(dropped.by_group[0]) == [None, *wanted[1:]]
    assert not dropped.is_empty
    assert of_step(rewards, cut=(0, 1, 2), strategy="sft", truncated="drop").by_group == (
        (None, None, None, 1.0),
    )


def test_a_step_of_truncated_answers_alone_is_empty_if_they_are_dropped() -> None:
    cut = policy_sample([1]).model_copy(update={"finish_reason": "length"})
    group = ScoredGroup.model_construct(samples=(cut, cut), verdicts=(scored(0.0), scored(1.0)))
    for truncated, is_empty in (("train", False), ("drop", True)):
        settings = Advantage(truncated=truncated)  # type: ignore[arg-type]
        assert step_advantages([group], strategy="none", settings=settings).is_empty == is_empty


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale_by_std": True}, r"scale_by_std: found True, .* gone.*scale = 'group_std'"),
        ({"scale_by_std": False}, r"scale_by_std: found False, .* gone.*scale = 'none'"),
        ({"scale": "none", "std_floor": 0.1}, r"std_floor: found 0\.1, .*no effect.*'none'"),
    ],
)
def test_knobs_that_are_gone_or_do_nothing_are_refused(
    settings: dict[str, object], words: str
) -> None:
    document = {
        "shared": {"run_id": "a", "model": "m"},
        "learner": {"rows": "r", "run_dir": "d", "steps": 1, "advantage": settings},
    }
    with pytest.raises(ConfigError, match=words):
        config.parse(document, environ={})
