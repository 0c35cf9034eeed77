"""The format reward in both modes, loose and strict, and the public code's version of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.rest.reward_api import FormatRule
from services.reward.scorers.formatting import has_format, has_seed_format, has_timezero_format

PARSE_TABLE = json.loads((Path(__file__).parents[2] / "golden/reward/parse_table.json").read_text())


@pytest.mark.parametrize("row", PARSE_TABLE, ids=lambda row: row["text"][:40])
def test_seed_format_equals_every_row_of_the_reference_table(row: dict[str, Any]) -> None:
    assert has_seed_format(row["text"], rule="loose") == row["seed_format_loose"]
    assert has_seed_format(row["text"], rule="strict") == row["seed_format_strict"]


@pytest.mark.parametrize(
    ("response", "loose", "strict"),
    [
        ("<answer>1 to 2</answer>", True, True),
        ("<ANSWER>1 to 2</Answer>", True, True),
        ("It is <answer>1 to 2</answer>\n", True, True),
        ("<answer>\n1 to 2</answer>", True, False),
        ("<answer>1 to 2</answer> indeed", True, False),
        ("<answer>1 to 2</answer><answer>1 to 2</answer>", True, False),
        ("<answer> </answer><answer>1 to 2</answer>", True, False),
    ],
)
def test_answer_mode(response: str, loose: bool, strict: bool) -> None:
    assert has_format(response, mode="answer", rule="loose", readable=True) is loose
    assert has_format(response, mode="answer", rule="strict", readable=True) is strict


@pytest.mark.parametrize("rule", ["loose", "strict"])
def test_answer_mode_wants_a_readable_answer(rule: FormatRule) -> None:
    response = "<answer>2 to 1</answer>"
    assert not has_format(response, mode="answer", rule=rule, readable=False)


@pytest.mark.parametrize(
    ("response", "loose", "strict"),
    [
        ("<think>a</think><answer>1 to 2</answer>", True, True),
        ("<Think>a</Think>\n\n<Answer>1 to 2</Answer>\n", True, True),
        (" <think>line\nline</think> <answer>1 to 2</answer>", True, True),
        ("<think>a</think><answer>\n1 to 2\n</answer>", True, False),
        ("<think></think><answer>1 to 2</answer>", True, False),
        ("<think> \n</think><answer>1 to 2</answer>", True, False),
        ("<think>a</think><answer>1 to 2</answer><answer>1 to 2</answer>", True, False),
        ("<think>a</think>b</think><answer>1 to 2</answer>", True, False),
        ("<answer>1 to 2</answer>", False, False),
        ("a</think><answer>1 to 2</answer>", False, False),
        ("<think>a</think>1 to 2", False, False),
        ("<think>a<answer>1 to 2</answer>", False, False),
        ("<think>a</think> so <answer>1 to 2</answer>", False, False),
        ("so <think>a</think><answer>1 to 2</answer>", False, False),
        ("<think>a</think><answer>1 to 2</answer> so", False, False),
        ("<answer>1 to 2</answer><think>a</think>", False, False),
        ("", False, False),
    ],
)
def test_think_mode_wants_a_thought_and_then_an_answer(
    response: str, loose: bool, strict: bool
) -> None:
    assert has_format(response, mode="think", rule="loose", readable=True) is loose
    assert has_format(response, mode="think", rule="strict", readable=True) is strict


def test_timezero_wants_lower_case_tags_and_nothing_around_them() -> None:
    assert has_timezero_format(" <think>a</think> <answer>b</answer> ")
    assert not has_timezero_format("<Think>a</Think><answer>b</answer>")
    assert not has_timezero_format("<answer>b</answer>")
    assert not has_timezero_format("<think>a</think> so <answer>b</answer>")
