"""What lies in a run's streams: pinned in tests/golden/stream_entries, one file a wire type.

A failing golden test means what it means for wire types (`tests/unit/common/messages`); a file is
made anew by `json.dumps(json.loads(to_fields("p", message)[-1]), indent=2)`.
"""

import json
from pathlib import Path

import pytest

from common.messages import Message, PromptRequest, ScoredGroup
from common.queue.stream_entries import fields_of, parse, to_fields
from tests.fixtures.wire import EXAMPLES

GOLDEN = Path(__file__).parents[3] / "golden" / "stream_entries"

each_entry = pytest.mark.parametrize(
    "message",
    [item for item in EXAMPLES if isinstance(item, PromptRequest | ScoredGroup)],
    ids=lambda message: type(message).__name__,
)


def golden(message: Message) -> str:
    return (GOLDEN / f"{type(message).__name__}.json").read_text().rstrip("\n")


@each_entry
def test_body_is_what_its_golden_file_says(message: Message) -> None:
    fields = fields_of(to_fields("p5", message))
    assert list(fields) == ["prompt_id", "body"]
    assert json.dumps(json.loads(fields["body"]), indent=2) == golden(message)


@each_entry
def test_golden_file_reads_back_as_the_message(message: Message) -> None:
    assert parse(type(message), {"body": golden(message)}) == message


@each_entry
def test_body_as_everybody_writes_it_is_read_too(message: Message) -> None:
    assert parse(type(message), {"body": message.model_dump_json()}) == message


def test_a_body_that_is_no_message_at_all_is_named() -> None:
    assert "first: body: " in str(parse(ScoredGroup, {"body": "[]"}))


def test_broken_array_is_named() -> None:
    (group,) = (item for item in EXAMPLES if isinstance(item, ScoredGroup))
    body = json.loads(fields_of(to_fields("p5", group))["body"])
    body["samples"][1]["token_ids"] = "AQAB"
    assert parse(ScoredGroup, {"body": json.dumps(body)}) == (
        "1 problem(s), first: samples.1.token_ids: Value error, found 3 bytes, wanted integers of "
        "32 bits, four bytes each"
    )
