"""What joins a group: the three options of think mode, by name."""

import pytest

from common.config import ThinkInjection
from services.reward.injection import inject

ANSWER = "<answer> 7.00 to 11.00 </answer>"
THOUGHTS = ("no thought here", "<Think>first</Think> <answer>1 to 2</answer>", "<think>b</think>")


@pytest.mark.parametrize("option", ["bare", "splice", "none"])
def test_answer_mode_injects_the_answer_whatever_the_option(option: ThinkInjection) -> None:
    assert inject(ANSWER, mode="answer", option=option).text == ANSWER


def test_bare_injects_the_answer_without_a_thought() -> None:
    assert inject(ANSWER, mode="think", option="bare", rollouts=THOUGHTS).text == ANSWER


def test_none_injects_nothing_and_says_why() -> None:
    injection = inject(ANSWER, mode="think", option="none", rollouts=THOUGHTS)
    assert injection.text is None
    assert injection.reason == "think_injection is none"


def test_splice_keeps_the_thought_of_the_best_rollout_that_has_one() -> None:
    injection = inject(ANSWER, mode="think", option="splice", rollouts=THOUGHTS)
    assert injection.text == f"<think>first</think>{ANSWER}"


@pytest.mark.parametrize("rollouts", [(), ("a",), ("<think>cut off",), ("<think> \n</think>x",)])
def test_splice_without_a_closed_thought_injects_nothing_and_says_why(
    rollouts: tuple[str, ...],
) -> None:
    injection = inject(ANSWER, mode="think", option="splice", rollouts=rollouts)
    assert injection.text is None
    assert "no response has a closed thought" in str(injection.reason)
