"""What is read of a completion: token ends of texts that servers cut, and what is left unknown."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from jobs.asking.answers import Answer, Reply, Usage, endings_in_words, usage_of
from jobs.asking.openai.completion import Completion, token_ends


@pytest.mark.parametrize(
    ("tokens", "text", "ends"),
    [
        (["ab", "c", "<end>"], "abc", (2, 3, 3)),
        ([" ab", "c"], "abc", (2, 3)),  # a server that strips
        (["<think>", "ab", "</think>", "ab"], "ab", (0, 0, 0, 2)),  # a thought given apart
        (["ab"], "xy", ()),
        (["ab"], "", (0,)),
    ],
)
def test_token_ends_are_those_of_the_text_that_is_given(
    tokens: list[str], text: str, ends: tuple[int, ...]
) -> None:
    assert token_ends([token.encode() for token in tokens], text=text) == ends


def test_bytes_that_are_no_character_end_none() -> None:
    assert token_ends([b"\xe4", b"\xbd\xa0", b"!"], text="\u4f60!") == (0, 1, 2)


def reply(**choice: Any) -> Reply:
    document = {"choices": [{"message": {"content": "abc"}, **choice}], "object": "x", "more": 1}
    return Completion.model_validate_json(json.dumps(document)).reply()


def test_tokens_without_bytes_are_spelled_by_their_names() -> None:
    tokens = [{"token": "ab", "logprob": -0.5}, {"token": "c", "logprob": 1e-7, "bytes": None}]
    (answer,) = reply(logprobs={"content": tokens}).answers
    assert answer.logprobs == (-0.5, 0.0)  # rounding may lift a certain token above 0
    assert answer.token_ends == (2, 3)


NO_NUMBERS = [
    {"content": [{"token": "ab", "logprob": -0.5}, {"token": "c", "logprob": float(said)}]}
    for said in ("nan", "inf", "-inf")
]


@pytest.mark.parametrize("logprobs", [None, {"content": None}, {"content": []}, {}, *NO_NUMBERS])
def test_what_is_not_said_is_unknown(logprobs: dict[str, Any] | None) -> None:
    found = reply(logprobs=logprobs, finish_reason=None)
    assert found.answers == (Answer(text="abc", ending="stop"),)
    assert found.usage is None


def test_what_is_no_byte_is_no_completion() -> None:
    with pytest.raises(ValidationError):
        reply(logprobs={"content": [{"token": "abc", "logprob": -0.5, "bytes": [300]}]})


def test_usage_is_summed_only_if_every_reply_has_it() -> None:
    said = Reply(answers=(), usage=Usage(prompt_tokens=2, completion_tokens=3))
    assert usage_of([said, said]) == Usage(prompt_tokens=4, completion_tokens=6)
    assert usage_of([said, Reply(answers=())]) is None
    assert usage_of([]) is None


def test_endings_are_said_in_words() -> None:
    assert endings_in_words({"refusal": 2, "length": 1_000}) == [
        "1,000 cut off at --max-tokens",
        "2 refused by the model",
    ]
    assert endings_in_words({}) == []
