"""The REST contract of the reward service, over the real app: what is sent, what comes back."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.reward.app import create_app

GOLDEN = Path(__file__).parents[1] / "golden/reward"
EXAMPLE: dict[str, Any] = {
    "items": [
        {
            "task": "temporal_grounding",
            "mode": "answer",
            "target": {"spans": [[7.0, 11.0]]},
            "duration_s": 60.0,
            "responses": ["<answer> 7.0 to 11.0 </answer>", "no idea"],
        }
    ],
    "shaping": {"kind": "nonlinear", "threshold": 0.8, "alpha1": 0.01, "alpha2": 1.0},
    "parser": "default",
    "format_weight": 0.1,
    "injection": True,
}
THOUGHT = "<think>She enters and leaves.</think>"


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def score(client: httpx.AsyncClient, item: dict[str, Any], **options: Any) -> dict[str, Any]:
    item = {"task": "temporal_grounding", "target": {"spans": [[7.0, 11.0]]}, **item}
    response = await client.post("/v1/score", json={"items": [item], **options})
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()["items"][0]
    return result


async def test_the_example_of_the_contract(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/score", json=EXAMPLE)
    assert response.headers["content-type"] == "application/json"
    (item,) = response.json()["items"]
    right, wrong = item["verdicts"]
    assert right == {
        "kind": "scored",
        "reward": pytest.approx(0.90182, abs=1e-5),
        "parts": {"iou": 1.0, "iou_shaped": pytest.approx(0.80182, abs=1e-5), "format": 1.0},
        "parsed": {"spans": [[7.0, 11.0]]},
    }
    assert wrong == {
        "kind": "scored",
        "reward": pytest.approx(0.08676, abs=1e-5),
        "parts": {"iou": 0.0, "iou_shaped": pytest.approx(0.08676, abs=1e-5), "format": 0.0},
        "parsed": None,
    }
    assert item["injected"] == {"text": "<answer> 7.00 to 11.00 </answer>", "verdict": right}


async def test_reference_scores_over_http(client: httpx.AsyncClient) -> None:
    rows = json.loads((GOLDEN / "seed_compute_score_table.json").read_text())
    rows = [row for row in rows if row["gt"] is not None and "overall" in row["tempsamp"]]
    items = [
        {
            "task": "temporal_grounding",
            "target": {"text": row["gt"]},
            "responses": [row["response"]],
        }
        for row in rows
    ]
    body = {"items": items, "parser": "seed_train", "shaping": {"kind": "nonlinear"}}
    results = (await client.post("/v1/score", json=body)).json()["items"]
    found = [result["verdicts"][0]["reward"] for result in results]
    assert found == pytest.approx([row["tempsamp"]["overall"] for row in rows], abs=1e-6)


async def test_items_and_responses_keep_their_order(client: httpx.AsyncClient) -> None:
    items = [
        {
            "task": "temporal_grounding",
            "target": {"spans": [[float(i), i + 2.0]]},
            "responses": [f"{i} to {i + 2}", f"{i} to {i + 1}"],
        }
        for i in range(20)
    ]
    results = (await client.post("/v1/score", json={"items": items})).json()["items"]
    for index, result in enumerate(results):
        assert [v["parsed"]["spans"][0][0] for v in result["verdicts"]] == [index, index]
        assert [v["reward"] for v in result["verdicts"]] == [1.0, 0.5]
        assert result["injected"] is None


@pytest.mark.parametrize(
    "target",
    [
        {"spans": [[7.0, 11.0]]},
        {"text": "<answer> 7.0 to 11.0 </answer>"},
        {"text": '{"time": [7.0, 11.0]}'},
    ],
)
async def test_every_kind_of_grounding_target(
    client: httpx.AsyncClient, target: dict[str, Any]
) -> None:
    result = await score(client, {"target": target, "responses": ["8 to 10"]}, injection=True)
    assert result["verdicts"][0]["parts"]["iou"] == 0.5
    assert result["injected"]["text"] == "<answer> 7.00 to 11.00 </answer>"


async def test_highlights_are_scored_and_injected(client: httpx.AsyncClient) -> None:
    target = {"highlights": [{"time_s": 82, "score": 1.3}, {"time_s": 84, "score": 2}]}
    item = {"task": "highlight_detection", "target": target, "responses": ["82s, scores 1.3"]}
    result = await score(client, item, injection=True)
    assert result["injected"]["verdict"]["reward"] == pytest.approx(1.1)
    assert 0 < result["verdicts"][0]["reward"] < 1
    assert result["verdicts"][0]["parsed"] == {"highlights": [{"time_s": 82.0, "score": 1.3}]}


async def test_strict_format_is_an_option(client: httpx.AsyncClient) -> None:
    item = {"responses": ["<answer>7 to 11</answer> I am sure"]}
    assert (await score(client, item))["verdicts"][0]["reward"] == pytest.approx(1.1)
    assert (await score(client, item, format="strict"))["verdicts"][0]["reward"] == 1.0


async def test_downscaling_shrinks_the_injected_reward_alone(client: httpx.AsyncClient) -> None:
    item = {"responses": ["<answer>7 to 11</answer>"]}
    shaping = {"kind": "downscale", "scale": 0.8, "cap": 0.85}
    result = await score(client, item, injection=True, shaping=shaping)
    assert result["verdicts"][0]["reward"] == pytest.approx(1.1)
    assert result["injected"]["verdict"]["reward"] == 0.85
    del shaping["cap"]
    result = await score(client, item, injection=True, shaping=shaping)
    assert result["injected"]["verdict"]["reward"] == pytest.approx(0.88)


async def test_an_item_may_refuse_injection(client: httpx.AsyncClient) -> None:
    item = {"responses": ["x"], "injection": False}
    assert (await score(client, item, injection=True))["injected"] is None


@pytest.mark.parametrize(
    ("option", "text", "format_part"),
    [
        ("bare", "<answer> 7.00 to 11.00 </answer>", 0.0),
        ("splice", THOUGHT + "<answer> 7.00 to 11.00 </answer>", 1.0),
    ],
)
async def test_think_injection_options(
    client: httpx.AsyncClient, option: str, text: str, format_part: float
) -> None:
    item = {
        "mode": "think",
        "responses": [
            "<think>bad</think><answer>1 to 2</answer>",
            THOUGHT + "<answer>7 to 10</answer>",
        ],
    }
    result = await score(client, item, injection=True, think_injection=option)
    assert result["injected"]["text"] == text
    assert result["injected"]["verdict"]["parts"] == {
        "iou": 1.0,
        "iou_shaped": 1.0,
        "format": format_part,
    }


async def test_think_injection_none_says_why(client: httpx.AsyncClient) -> None:
    item = {"mode": "think", "responses": ["x"]}
    result = await score(client, item, injection=True, think_injection="none")
    assert result["injected"] == {"text": None, "reason": "think_injection is none"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"target": {"spans": [[7, 11]]}}, "<answer> 7.00 to 11.00 </answer>"),
        ({"target": {"spans": [[7, 11]]}, "decimals": 1}, "<answer> 7.0 to 11.0 </answer>"),
        (
            {"target": {"spans": [[1, 3], [5, 9]]}},
            "<answer> 1.00 to 3.00, 5.00 to 9.00 </answer>",
        ),
        (
            {
                "target": {"text": "7 to 11"},
                "mode": "think",
                "rollout": f"{THOUGHT}<answer>1 to 2</answer>",
            },
            f"{THOUGHT}<answer> 7.00 to 11.00 </answer>",
        ),
        (
            {
                "task": "highlight_detection",
                "target": {"highlights": [{"time_s": 82, "score": 1.3}]},
            },
            "<answer> The highlight timestamps are in the 82 seconds. "
            "Their saliency scores are 1.3 </answer>",
        ),
    ],
)
async def test_injection_renders_targets(
    client: httpx.AsyncClient, body: dict[str, Any], text: str
) -> None:
    assert (await client.post("/v1/injection", json=body)).json() == {"text": text, "reason": None}


async def test_injection_says_why_there_is_none(client: httpx.AsyncClient) -> None:
    body = {"target": {"spans": [[7, 11]]}, "mode": "think"}
    document = (await client.post("/v1/injection", json=body)).json()
    assert document["text"] is None
    assert "no response has a closed thought" in document["reason"]


async def test_seed_injection_equals_the_reference_table(client: httpx.AsyncClient) -> None:
    for row in json.loads((GOLDEN / "parse_table.json").read_text()):
        body = {"target": {"text": row["text"]}, "parser": "seed_train"}
        document = (await client.post("/v1/injection", json=body)).json()
        assert document["text"] == row["seed_build_gt_response"]
        assert (document["reason"] is None) is (document["text"] is not None)


async def test_shape_equals_the_reference_points(client: httpx.AsyncClient) -> None:
    table = json.loads((GOLDEN / "transform_rewards_table.json").read_text())
    body = {
        "rewards": [point["r"] for point in table["points"]],
        "shaping": {"kind": "nonlinear"},
    }
    document = (await client.post("/v1/shape", json=body)).json()
    wanted = [point["shaped"] for point in table["points"]]
    assert document["shaped"] == pytest.approx(wanted, abs=1e-6)


async def test_scorers_lists_tasks_and_parsers(client: httpx.AsyncClient) -> None:
    document = (await client.get("/v1/scorers")).json()
    tasks = {scorer["task"]: scorer["origin"] for scorer in document["scorers"]}
    assert tasks["temporal_grounding"] == tasks["highlight_detection"] == "built-in"
    assert document["parsers"] == ["default", "seed_train", "seed_eval", "timelens", "timezero"]


async def test_health_readiness_and_docs_answer(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    assert (await client.get("/docs")).status_code == 200
    document = (await client.get("/openapi.json")).json()
    item = document["components"]["schemas"]["ScoreItem"]["properties"]
    assert item["task"]["enum"] == ["temporal_grounding", "highlight_detection"]


async def test_metrics_count_responses_and_injections(client: httpx.AsyncClient) -> None:
    await client.post("/v1/score", json=EXAMPLE)
    text = (await client.get("/metrics")).text
    for line in (
        'responses_total{outcome="scored",task="temporal_grounding"} 2.0',
        'injections_total{injected="true",task="temporal_grounding"} 1.0',
        'request_seconds_count{route="/v1/score",status="200"} 1.0',
    ):
        assert f"tempsamp_reward_{line}" in text


async def test_unknown_paths_are_one_label_in_the_metrics(client: httpx.AsyncClient) -> None:
    for path in ("/a", "/b", "/v1/score/x"):
        await client.get(path)
    text = (await client.get("/metrics")).text
    assert 'request_seconds_count{route="other",status="404"} 3.0' in text
