"""Truncated sampling on the wire: what is new travels only where there is something to say."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from common.messages import MAX_TOP_K, PACKED, KeptTokens, Sample, Sampling
from tests.fixtures.wire import INJECTED, KEPT, policy_sample

TRUNCATED = policy_sample(3).model_copy(update={"kept": KEPT})


def changed(**keys: Any) -> dict[str, Any]:
    return TRUNCATED.model_dump() | keys


def test_what_was_kept_travels_as_ids_and_their_counts() -> None:
    document = json.loads(TRUNCATED.model_dump_json())
    assert document["kept"] == {"ids": [5, 9, 6, 2, 7, 9], "counts": [2, 1, 3]}
    assert Sample.model_validate_json(TRUNCATED.model_dump_json()) == TRUNCATED


def test_it_is_packed_in_redis() -> None:
    packed = TRUNCATED.model_dump_json(context=PACKED)
    assert isinstance(json.loads(packed)["kept"]["ids"], str)
    assert Sample.model_validate_json(packed) == TRUNCATED


def test_without_truncation_messages_are_those_of_before() -> None:
    assert "kept" not in policy_sample(3).model_dump_json()
    assert "top_k" not in Sampling().model_dump_json()
    assert not Sampling().truncates


@pytest.mark.parametrize("keys", [{"top_p": 0.85}, {"top_k": 1}, {"top_k": MAX_TOP_K}])
def test_either_bound_truncates_and_travels(keys: dict[str, Any]) -> None:
    sampling = Sampling(**keys)
    assert sampling.truncates
    assert Sampling.model_validate_json(sampling.model_dump_json()) == sampling
    assert keys.items() <= json.loads(sampling.model_dump_json()).items()


@pytest.mark.parametrize("top_k", [-1, MAX_TOP_K + 1])
def test_top_k_has_bounds(top_k: int) -> None:
    with pytest.raises(ValidationError, match="top_k"):
        Sampling(top_k=top_k)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({"ids": (5, 6), "counts": (1, 1)}, "2 kept counts for 3 tokens"),
        ({"ids": (5, 6, 7), "counts": (1, 1, 1)}, "token 2, 2, is not among its kept ids"),
        ({"ids": (6, 5, 2), "counts": (1, 1, 1)}, "token 0, 5, is not among its kept ids"),
        ({"ids": (5, 6, 2), "counts": (1, 1, 2)}, "3 kept ids for counts that add up to 4"),
        ({"ids": (5, 6), "counts": (1, 1, 0)}, "a token with 0 kept ids"),
        ({"ids": (5, 6, 2), "counts": (1, 3, -1)}, "a token with -1 kept ids"),
    ],
)
def test_it_covers_the_tokens_and_holds_each(kept: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Sample.model_validate(changed(kept=kept))


def test_an_injected_sample_was_not_sampled() -> None:
    kept = KeptTokens(ids=(7, 2), counts=(1, 1))
    with pytest.raises(ValidationError, match="an injected sample has no"):
        Sample.model_validate(INJECTED.model_dump() | {"kept": kept})
