"""Arrays of token ids and log-probabilities: as a sequence, as a field, as base64."""

import copy
import json
import math
import pickle
import sys
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from common.messages import PACKED, Float32Array, Int32Array, Sample, ScoredGroup
from tests.fixtures.wire import policy_sample, scored_group

INT32 = st.integers(-(2**31), 2**31 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


class Both(BaseModel):
    ids: Int32Array = Int32Array()
    logprobs: Float32Array = Float32Array()


def float32(value: float) -> float:
    """The nearest float32, as a float."""
    return array("f", [value])[0]


class TestSequence:
    def test_behaves_like_the_tuple_of_its_numbers(self) -> None:
        ids = Int32Array([5, 6, 5, 2])
        assert (len(ids), ids[0], ids[-1], ids[1:3]) == (4, 5, 2, (6, 5))
        assert (ids.count(5), ids.index(6), 2 in ids, 3 in ids) == (2, 1, True, False)
        assert list(reversed(ids)) == [2, 5, 6, 5]
        assert repr(ids) == "(5, 6, 5, 2)"
        assert not Int32Array()

    def test_equals_whatever_holds_the_same_numbers_and_hashes_alike(self) -> None:
        ids, same = Int32Array([5, 6, 2]), (5, 6, 2)
        assert ids == same == ids
        assert ids == [5, 6, 2]
        assert ids == Int32Array(same)
        assert hash(ids) == hash(same)
        assert ids != (5, 6)
        assert ids != Int32Array([5, 6, 3])
        assert ids != "562"

    def test_cannot_be_changed(self) -> None:
        ids: Any = Int32Array([5, 6])
        with pytest.raises(TypeError):
            ids[0] = 7
        buffer = ids.to_buffer()
        buffer[0] = 7
        assert ids == (5, 6)

    def test_is_copied_and_pickled(self) -> None:
        logprobs = Float32Array([-0.5, -1.25])
        assert copy.deepcopy(logprobs) == pickle.loads(pickle.dumps(logprobs)) == logprobs

    def test_log_probabilities_are_rounded_when_they_are_set(self) -> None:
        assert Float32Array([-0.1]) == (float32(-0.1),)
        assert Float32Array([-0.1]) != (-0.1,)

    @pytest.mark.parametrize("numbers", [[math.nan], [-math.inf, math.inf], [0.0, 1e39]])
    def test_what_is_not_finite_in_float32_is_refused(self, numbers: list[float]) -> None:
        with pytest.raises(ValueError, match="not finite in float32"):
            Float32Array(numbers)

    def test_largest_float32_in_numbers_is_finite(self) -> None:
        largest = float.fromhex("0x1.fffffep127")
        assert Float32Array([largest] * 1000).count(largest) == 1000

    @pytest.mark.parametrize("number", [2**31, -(2**31) - 1, 2**70])
    def test_what_32_bits_do_not_hold_is_refused(self, number: int) -> None:
        with pytest.raises(ValueError, match="wanted integers of 32 bits"):
            Int32Array([number])


@given(st.lists(INT32), st.lists(FLOAT32))
def test_both_ways_to_write_read_back_bit_for_bit(ids: list[int], logprobs: list[float]) -> None:
    written = Both(ids=ids, logprobs=logprobs)
    assert written.ids == ids
    for context in (None, PACKED):
        read = Both.model_validate_json(written.model_dump_json(context=context))
        assert read == written
        assert read.logprobs.to_bytes() == written.logprobs.to_bytes()  # -0.0 too


class TestField:
    def test_is_a_list_of_numbers_for_everybody(self) -> None:
        assert json.loads(Both(ids=(5, 2), logprobs=(-0.5,)).model_dump_json()) == {
            "ids": [5, 2],
            "logprobs": [-0.5],
        }

    def test_is_little_endian_base64_where_packed(self) -> None:
        document = Both(ids=(1, -1), logprobs=(-0.5,)).model_dump(mode="json", context=PACKED)
        assert document == {"ids": "AQAAAP____8=", "logprobs": "AAAAvw=="}
        assert Both(ids="AQAAAP////8=").ids == (1, -1)  # the other alphabet of base64

    def test_big_endian_machine_writes_and_reads_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = Int32Array([1, -2]).to_bytes()
        monkeypatch.setattr(sys, "byteorder", "big" if sys.byteorder == "little" else "little")
        there = Int32Array([1, -2]).to_bytes()
        assert there == here[3::-1] + here[:3:-1]
        assert Int32Array.from_bytes(there) == (1, -2)

    def test_stays_what_it_is_in_python(self) -> None:
        assert type(policy_sample(1).model_dump()["token_ids"]) is Int32Array

    @pytest.mark.parametrize("mode", ["validation", "serialization"])
    def test_schema_is_a_list_of_numbers(self, mode: Any) -> None:
        fields = Both.model_json_schema(mode=mode)["properties"]
        assert (fields["ids"]["type"], fields["ids"]["items"]["type"]) == ("array", "integer")
        assert (fields["logprobs"]["type"], fields["logprobs"]["items"]) == (
            "array",
            {"type": "number"},
        )

    @pytest.mark.parametrize("mode", ["validation", "serialization"])
    def test_schema_says_that_a_sample_has_a_token(self, mode: Any) -> None:
        fields = Sample.model_json_schema(mode=mode)["properties"]
        assert fields["token_ids"]["minItems"] == 1

    @pytest.mark.parametrize(
        ("field", "value", "where", "message"),
        [
            ("ids", [1, "x"], ("ids", 1), "valid integer"),
            ("ids", [1, 1.5], ("ids", 1), "valid integer"),
            ("ids", [0, 2**31], ("ids", 1), "less than or equal to 2147483647"),
            ("ids", 3, ("ids",), "valid array"),
            ("ids", "AQ.A", ("ids",), "Invalid symbol 46, offset 2; wanted integers of 32 bits"),
            ("ids", "AQAB", ("ids",), "found 3 bytes, wanted integers of 32 bits"),
            ("logprobs", [0.0, math.nan], ("logprobs", 1), "finite number"),
            ("logprobs", [1e39], ("logprobs",), "not finite in float32"),
            ("logprobs", "AACAfw==", ("logprobs",), "not finite in float32"),
            ("logprobs", "AADAfw==", ("logprobs",), "not finite in float32"),
        ],
    )
    def test_bad_value_is_named(
        self, field: str, value: Any, where: tuple[str | int, ...], message: str
    ) -> None:
        with pytest.raises(ValidationError, match=message) as caught:
            Both.model_validate_json(json.dumps({field: value}))
        assert [error["loc"] for error in caught.value.errors()] == [where]


def test_group_reads_back_alike_from_both_forms() -> None:
    group = scored_group("p1")
    packed = group.model_dump_json(context=PACKED)
    assert ScoredGroup.model_validate_json(packed) == group
    assert ScoredGroup.model_validate_json(group.model_dump_json()) == group


def test_packed_sample_is_checked_as_any_other() -> None:
    document = json.loads(policy_sample(1).model_dump_json(context=PACKED))
    for broken, message in (
        ({"token_ids": ""}, "at least 1 item"),
        ({"logprobs": "AAAAvw=="}, "1 logprobs for 3 tokens"),
    ):
        with pytest.raises(ValidationError, match=message):
            Sample.model_validate_json(json.dumps(document | broken))
