"""Wire types: what travels is pinned in tests/golden/messages, one file a type.

A failing golden test means that services of two versions would no longer understand each other. If
that is wanted, raise `SCHEMA_VERSION` and write the file anew: `message.model_dump_json(indent=2)`.
"""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from common import messages
from common.messages import Message, PromptRequest, Sample, Sampling, ScoredGroup, VersionSpan
from common.weights import messages as weight_messages
from tests.fixtures.wire import (
    CLIP,
    EXAMPLES,
    INJECTED,
    policy_sample,
    prompt_request,
    scored_group,
)

GOLDEN = Path(__file__).parents[3] / "golden" / "messages"

each_type = pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)


def golden(message: Message) -> str:
    return (GOLDEN / f"{type(message).__name__}.json").read_text().rstrip("\n")


def paths_to(wanted: type, value: Any) -> Iterator[tuple[Any, ...]]:
    """Keys and indices that lead to every value of a type inside a JSON document."""
    if isinstance(value, wanted):
        yield ()
    children = value.items() if isinstance(value, dict) else ()
    for key, child in enumerate(value) if isinstance(value, list) else children:
        yield from ((key, *path) for path in paths_to(wanted, child))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value at a path."""
    copy = json.loads(json.dumps(document))
    target = copy
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return copy


def test_every_wire_type_has_an_example_and_a_golden_file() -> None:
    types = {
        name
        for module in (messages, weight_messages)
        for name, member in vars(module).items()
        if isinstance(member, type) and issubclass(member, Message) and member is not Message
    }
    assert {type(example).__name__ for example in EXAMPLES} == types
    assert {path.stem for path in GOLDEN.glob("*.json")} == types


@each_type
def test_travels_as_its_golden_file_says(message: Message) -> None:
    assert message.model_dump_json(indent=2) == golden(message)


@each_type
def test_golden_file_reads_back_as_the_message(message: Message) -> None:
    assert type(message).model_validate_json(golden(message)) == message


@each_type
def test_unknown_field_is_refused_at_any_depth(message: Message) -> None:
    document = json.loads(golden(message))
    for path in paths_to(dict, document):
        if path and path[-1] == "parts":  # names of reward parts are the scorer's business
            continue
        broken = replaced(document, (*path, "colour"), "red")
        with pytest.raises(ValidationError):
            type(message).model_validate_json(json.dumps(broken))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("message", "path"),
    [
        pytest.param(message, path, id=f"{type(message).__name__}-{'.'.join(map(str, path))}")
        for message in EXAMPLES
        for path in paths_to(float, json.loads(message.model_dump_json()))
    ],
)
def test_nan_and_infinity_are_refused_at_any_depth(
    message: Message, path: tuple[Any, ...], number: float
) -> None:
    document = replaced(json.loads(golden(message)), path, number)
    with pytest.raises(ValidationError):
        type(message).model_validate_json(json.dumps(document))


@each_type
def test_is_frozen(message: Message) -> None:
    field = next(iter(type(message).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(message, field, None)


@pytest.mark.parametrize("message", [prompt_request(1), scored_group("p1")])
def test_other_schema_version_is_refused(message: BaseModel) -> None:
    document = json.loads(message.model_dump_json()) | {"schema_version": 1}
    with pytest.raises(ValidationError, match="schema_version"):
        type(message).model_validate(document)


def test_no_pickle_is_understood() -> None:
    with pytest.raises(ValidationError):
        PromptRequest.model_validate_json(pickle.dumps(prompt_request(1)))


class TestPromptRequest:
    def test_sequence_starts_at_one(self) -> None:
        document = prompt_request(1).model_dump() | {"sequence": 0}
        with pytest.raises(ValidationError, match="sequence"):
            PromptRequest.model_validate(document)

    @pytest.mark.parametrize("top_p", [0.0, 1.5])
    def test_top_p_is_a_probability_above_zero(self, top_p: float) -> None:
        with pytest.raises(ValidationError, match="top_p"):
            Sampling(top_p=top_p)


class TestSample:
    def test_needs_a_logprob_per_token(self) -> None:
        with pytest.raises(ValidationError, match="2 logprobs for 3 tokens"):
            Sample.model_validate(policy_sample(1).model_dump() | {"logprobs": (-1.0, -1.0)})

    @pytest.mark.parametrize("edges", [[(0, 2)], [(1, 3)], [(0, 2), (1, 3)], [(0, 1), (2, 3)], []])
    def test_version_spans_cover_the_tokens_without_gap_or_overlap(
        self, edges: list[tuple[int, int]]
    ) -> None:
        spans = [VersionSpan(version=1, start=start, end=end) for start, end in edges]
        with pytest.raises(ValidationError, match="do not cover 3 tokens"):
            Sample.model_validate(policy_sample(1).model_dump() | {"version_spans": spans})

    def test_may_change_version_on_the_way(self) -> None:
        spans = [VersionSpan(version=v, start=v, end=v + 1) for v in range(3)]
        sample = Sample.model_validate(policy_sample(1).model_dump() | {"version_spans": spans})
        group = scored_group("p1", version=7)
        mixed = group.model_copy(update={"samples": (group.samples[0], sample, INJECTED)})
        assert mixed.oldest_version == 0

    @pytest.mark.parametrize(
        "keys",
        [
            {"logprobs": (-1.0, -1.0)},
            {"version_spans": (VersionSpan(version=1, start=0, end=2),)},
        ],
    )
    def test_injected_has_neither_logprobs_nor_versions(self, keys: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match="an injected sample has no"):
            Sample.model_validate(INJECTED.model_dump() | keys)

    def test_has_at_least_one_token(self) -> None:
        with pytest.raises(ValidationError, match="token_ids"):
            Sample.model_validate(INJECTED.model_dump() | {"token_ids": ()})


class TestScoredGroup:
    def test_has_a_verdict_per_sample(self) -> None:
        group = scored_group("p1")
        with pytest.raises(ValidationError, match="2 verdicts for 3 samples"):
            ScoredGroup.model_validate(group.model_dump() | {"verdicts": group.verdicts[:2]})

    def test_without_policy_samples_has_no_oldest_version(self) -> None:
        group = scored_group("p1")
        alone = group.model_copy(update={"samples": (INJECTED,), "verdicts": group.verdicts[:1]})
        assert alone.oldest_version is None


def test_clip_duration_follows_from_its_frames() -> None:
    assert CLIP.duration_s == 10.0
