"""Bad input of every kind is a 4xx problem that names the field; nothing is ever a 500."""

import copy
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from common.config import Reward
from services.reward.app import create_app

GOOD: dict[str, Any] = {
    "items": [
        {
            "task": "temporal_grounding",
            "target": {"spans": [[7.0, 11.0]]},
            "duration_s": 60.0,
            "responses": ["a", "b"],
        }
    ]
}
SPANS = ("items", 0, "target", "spans")


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app()


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def changed(path: tuple[str | int, ...], value: Any) -> bytes:
    document = copy.deepcopy(GOOD)
    holder: Any = document
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("items",), [], "items"),
        (("items",), {}, "items"),
        (("items", 0, "responses"), [], "items.0.responses"),
        (("items", 0, "responses"), "abc", "items.0.responses"),
        (("items", 0, "responses"), ["a", 5], "items.0.responses.1"),
        (("items", 0, "task"), "juggling", "items.0.task"),
        (("items", 0, "task"), "", "items.0.task"),
        (("items", 0, "mode"), "dream", "items.0.mode"),
        (("items", 0, "colour"), "red", "items.0.colour"),
        (("colour",), "red", "colour"),
        (("items", 0, "duration_s"), -1, "items.0.duration_s"),
        (("items", 0, "duration_s"), 0, "items.0.duration_s"),
        (("items", 0, "duration_s"), "60", "items.0.duration_s"),
        (("items", 0, "duration_s"), float("nan"), "items.0.duration_s"),
        (("items", 0, "duration_s"), float("inf"), "items.0.duration_s"),
        (("items", 0, "target"), {}, "items.0.target"),
        (("items", 0, "target"), {"boxes": []}, "items.0.target"),
        (("items", 0, "target"), {"spans": [[1, 2]], "text": "x"}, "items.0.target.text"),
        (("items", 0, "target"), {"text": 5}, "items.0.target.text"),
        (("items", 0, "target"), {"text": "no span"}, "items.0.target.text"),
        (("items", 0, "target"), {"text": "9 to 8"}, "items.0.target.text"),
        (("items", 0, "target"), {"text": "9 to 99"}, "items.0.target.text.0"),
        (("items", 0, "target"), {"highlights": []}, "items.0.target.highlights"),
        (
            ("items", 0, "target"),
            {"highlights": [{"time_s": -1, "score": 1}]},
            "items.0.target.highlights.0.time_s",
        ),
        (("items", 0, "target"), {"highlights": [{"time_s": 1, "score": 1}]}, "items.0.target"),
        (SPANS, [], "items.0.target.spans"),
        ((*SPANS, 0), [1], "items.0.target.spans.0.1"),
        ((*SPANS, 0), [1, 2, 3], "items.0.target.spans.0"),
        ((*SPANS, 0), [-1, 2], "items.0.target.spans.0"),
        ((*SPANS, 0), [2, 1], "items.0.target.spans.0"),
        ((*SPANS, 0), [2, 2], "items.0.target.spans.0"),
        ((*SPANS, 0), [2, 60.5], "items.0.target.spans.0"),
        ((*SPANS, 0), [2, float("nan")], "items.0.target.spans.0.1"),
        ((*SPANS, 0), [float("-inf"), 2], "items.0.target.spans.0.0"),
        ((*SPANS, 0), [2, "3"], "items.0.target.spans.0.1"),
        (("parser",), "regex", "parser"),
        (("format",), "firm", "format"),
        (("format_weight",), -1, "format_weight"),
        (("format_weight",), float("nan"), "format_weight"),
        (("decimals",), 12, "decimals"),
        (("injection",), "yes", "injection"),
        (("think_injection",), "maybe", "think_injection"),
        (("shaping",), {"kind": "cubic"}, "shaping.kind"),
        (("shaping",), {"kind": "nonlinear", "threshold": 1.5}, "shaping.threshold"),
        (("shaping",), {"kind": "nonlinear", "alpha2": 1e9}, "shaping.alpha2"),
        (("shaping",), {"kind": "nonlinear", "tau": 0.8}, "shaping.tau"),
    ],
)
async def test_a_wrong_field_is_named(
    client: httpx.AsyncClient, path: tuple[str | int, ...], value: Any, field: str
) -> None:
    response = await client.post("/v1/score", content=changed(path, value))
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert field in [error["field"] for error in document["errors"]]
    assert field in document["detail"]


async def test_the_good_request_is_good(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/score", json=GOOD)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"not json",
        b'"text"',
        b"\xff\xfe\x00",
        json.dumps(GOOD).encode("utf-16"),
        json.dumps(GOOD).encode().replace(b'"a"', b'"\xff\xfe"'),
        json.dumps(GOOD).encode().replace(b'"a"', b'"\\ud800"'),
        b"[" * 100_000,
        b'{"items":' * 10_000,
    ],
    ids=lambda body: repr(body[:12]),
)
@pytest.mark.parametrize("path", ["/v1/score", "/v1/injection", "/v1/shape"])
async def test_what_is_not_json_in_utf8_names_the_body(
    client: httpx.AsyncClient, path: str, body: bytes
) -> None:
    response = await client.post(path, content=body)
    assert response.status_code in (400, 422)
    assert response.json()["errors"][0]["field"] == "body"


@pytest.mark.parametrize(
    ("responses", "field"),
    [
        (["a"] * 10_000, "items.0.responses"),
        (["a", "x" * 2**20], "items.0.responses.1"),
    ],
)
async def test_too_much_of_a_field_is_413_and_named(
    client: httpx.AsyncClient, responses: list[str], field: str
) -> None:
    body = changed(("items", 0, "responses"), responses)
    response = await client.post("/v1/score", content=body)
    assert response.status_code == 413
    assert response.json()["errors"][0]["field"] == field


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/shape", {"rewards": [0.5] * 70_000}, "rewards"),
        ("/v1/injection", {"target": {"spans": [[1, 2]]}, "rollout": "x" * 2**20}, "rollout"),
    ],
)
async def test_too_much_is_413_wherever_it_is_sent(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], field: str
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 413
    assert response.json()["errors"][0]["field"] == field


@pytest.mark.parametrize(
    ("task", "target"),
    [
        ("temporal_grounding", {"spans": [[0, 1e308]]}),
        ("highlight_detection", {"highlights": [{"time_s": 1e308, "score": 1}]}),
    ],
)
async def test_the_latest_time_is_named_without_a_duration(
    client: httpx.AsyncClient, task: str, target: dict[str, Any]
) -> None:
    body = {"items": [{"task": task, "target": target, "responses": ["x"]}]}
    response = await client.post("/v1/score", json=body)
    assert response.status_code == 422
    assert response.json()["detail"].endswith("<= 1000000000 s")


@pytest.mark.parametrize(
    ("path", "member", "field"),
    [
        (("items",), {}, "items.0.task"),
        (("items", 0, "responses"), 5, "items.0.responses.0"),
        (SPANS, [], "items.0.target.spans.0.0"),
    ],
)
async def test_of_many_wrong_members_only_the_first_is_looked_at(
    client: httpx.AsyncClient, path: tuple[str | int, ...], member: Any, field: str
) -> None:
    response = await client.post("/v1/score", content=changed(path, [member] * 50_000))
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == field
    assert len(response.content) < 2_000


async def test_of_thousands_of_unknown_fields_none_is_listed(client: httpx.AsyncClient) -> None:
    body = GOOD | {f"field_{index}": 1 for index in range(5_000)}
    response = await client.post("/v1/score", json=body)
    assert response.status_code == 422
    assert response.json()["errors"] == [
        {"field": "body", "pointer": "#", "detail": "5000 values are wrong"}
    ]


async def test_too_many_items_and_too_large_a_body_are_413() -> None:
    settings = Reward(max_items=2, max_body_bytes=2_000)
    transport = httpx.ASGITransport(app=create_app(settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        many = {"items": GOOD["items"] * 3}
        response = await client.post("/v1/score", json=many)
        assert response.status_code == 413
        assert response.json()["errors"][0]["field"] == "items"
        response = await client.post("/v1/score", content=b" " * 3_000)
        assert response.status_code == 413
        assert response.json()["errors"][0]["field"] == "body"


async def test_a_megabyte_answer_within_the_limit_is_scored(client: httpx.AsyncClient) -> None:
    text = "<answer>7 to 11</answer>" + "x" * 999_000
    body = changed(("items", 0, "responses"), [text])
    response = await client.post("/v1/score", content=body)
    assert response.json()["items"][0]["verdicts"][0]["parts"]["iou"] == 1.0


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/injection", {"target": {"spans": [[2, 1]]}}, "target.spans.0"),
        ("/v1/injection", {"target": {"spans": [[1, 2]]}, "task": "juggling"}, "task"),
        ("/v1/injection", {"target": {"spans": [[1, 2]]}, "parser": "x"}, "parser"),
        ("/v1/injection", {"target": {"spans": [[1, 2]]}, "duration_s": 1.5}, "target.spans.0"),
        ("/v1/injection", {}, "target"),
        ("/v1/shape", {"rewards": []}, "rewards"),
        ("/v1/shape", {"rewards": [11.0]}, "rewards.0"),
        ("/v1/shape", {"rewards": [1.0], "shaping": {"alpha1": -1}}, "shaping.alpha1"),
    ],
)
async def test_the_other_routes_name_fields_too(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], field: str
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == field


def huge_numbers(text: str) -> bytes:
    return json.dumps(GOOD).encode().replace(b"11.0", text.encode())


@pytest.mark.parametrize("make", [huge_numbers])
@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 5_000, "1e308", "0." + "1" * 5_000])
async def test_numbers_of_any_size_are_answered_without_a_crash(
    client: httpx.AsyncClient, make: Callable[[str], bytes], number: str
) -> None:
    assert (await client.post("/v1/score", content=make(number))).status_code in (400, 422)
