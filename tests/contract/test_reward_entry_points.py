"""A task from an installed package, over HTTP: listed, scored, shaped, injected, and survived."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psutil
import pytest

from common.config import Reward
from services.reward.app import create_app

TIMEOUT_S = 1.0


@contextlib.asynccontextmanager
async def running(**limits: float) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Reward.model_validate({"scorer_timeout_s": TIMEOUT_S, **limits}))
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


@pytest.fixture
async def client(scorer_packages: object) -> AsyncIterator[httpx.AsyncClient]:
    async with running() as client:
        yield client


async def score(
    client: httpx.AsyncClient, task: str, responses: list[str], **options: Any
) -> dict[str, Any]:
    item = {"task": task, "target": {"text": "3"}, "responses": responses}
    response = await client.post("/v1/score", json={"items": [item], **options})
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()["items"][0]
    return result


async def test_the_task_is_listed_with_its_package(client: httpx.AsyncClient) -> None:
    document = (await client.get("/v1/scorers")).json()
    listed = {scorer["task"]: scorer for scorer in document["scorers"]}
    assert listed["event_count"]["origin"] == "entry point"
    assert listed["event_count"]["distribution"] == "tempsamp-example-scorer 1.2.0"
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert "event_count" in schemas["ScoreItem"]["properties"]["task"]["enum"]


async def test_the_installed_scorer_is_called(client: httpx.AsyncClient) -> None:
    result = await score(client, "event_count", ["3 times", "5 times", "never"])
    assert [verdict["reward"] for verdict in result["verdicts"]] == [1.0, 1 / 3, 0.0]
    assert result["verdicts"][1] == {
        "kind": "scored",
        "reward": 1 / 3,
        "parts": {"readable": 1.0, "error": 2.0, "score": 1 / 3, "score_shaped": 1 / 3},
        "parsed": {"count": 5},
    }


async def test_its_rewards_are_shaped_and_its_truth_injected(client: httpx.AsyncClient) -> None:
    shaping = {"kind": "nonlinear"}
    result = await score(client, "event_count", ["3"], shaping=shaping, injection=True)
    assert result["verdicts"][0]["reward"] == pytest.approx(0.80182, abs=1e-5)
    assert result["injected"]["text"] == "<answer> 3 </answer>"
    assert result["injected"]["verdict"]["reward"] == pytest.approx(0.80182, abs=1e-5)
    scorers = (await client.get("/v1/scorers")).json()["scorers"]
    assert next(s for s in scorers if s["task"] == "event_count")["injects"] is True


async def test_a_scorer_without_answers_injects_nothing_and_says_so(
    client: httpx.AsyncClient,
) -> None:
    result = await score(client, "misbehaves", ["x"], injection=True)
    assert result["injected"] == {"text": None, "reason": "the task renders no answers"}


async def test_a_broken_call_leaves_that_response_alone_unscored_and_counted(
    client: httpx.AsyncClient,
) -> None:
    responses = ["a", "raise", "b", "hold", "c", "die", "d", "abyss"]
    result = await score(client, "misbehaves", responses)
    kinds = [verdict["kind"] for verdict in result["verdicts"]]
    assert kinds == ["scored", "unscored"] * 3 + ["scored", "scored"]
    reasons = [v["reason"].partition(":")[0] for v in result["verdicts"] if v["kind"] == "unscored"]
    assert reasons == ["error", "timeout", "error"]
    metrics = (await client.get("/metrics")).text
    name = "tempsamp_reward_responses_total"
    assert f'{name}{{outcome="scored",task="misbehaves"}} 5.0' in metrics
    assert f'{name}{{outcome="error",task="misbehaves"}} 2.0' in metrics
    assert f'{name}{{outcome="timeout",task="misbehaves"}} 1.0' in metrics


async def test_shaping_that_overflows_leaves_the_response_unscored(
    client: httpx.AsyncClient,
) -> None:
    shaping = {"kind": "nonlinear"}
    result = await score(client, "misbehaves", ["abyss", "x"], shaping=shaping)
    assert [verdict["kind"] for verdict in result["verdicts"]] == ["unscored", "scored"]


async def test_a_request_ends_within_its_time_whatever_the_scorer_does(
    scorer_packages: object,
) -> None:
    async with running(request_timeout_s=1.5) as client:
        started = time.monotonic()
        result = await score(client, "misbehaves", ["sleep"] * 50)
        assert time.monotonic() - started < 50 * TIMEOUT_S / 2
    reasons = {verdict["reason"] for verdict in result["verdicts"]}
    assert "timeout: the request's time was used up by earlier responses" in reasons


async def test_a_scorer_that_cannot_be_imported_leaves_all_unscored(
    client: httpx.AsyncClient,
) -> None:
    result = await score(client, "cannot_be_imported", ["x", "y"], injection=True)
    assert {verdict["kind"] for verdict in result["verdicts"]} == {"unscored"}
    assert result["injected"]["text"] is None
    assert result["injected"]["reason"].startswith("error:")


async def test_no_child_outlives_the_app(scorer_packages: object) -> None:
    before = len(psutil.Process().children(recursive=True))
    async with running() as client:
        await score(client, "event_count", ["3"])
        assert len(psutil.Process().children(recursive=True)) == before + 1
    assert len(psutil.Process().children(recursive=True)) == before
