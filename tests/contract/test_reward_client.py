"""Both clients against the real app and a real server."""

import functools
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from common.errors import RewardError
from common.messages import Scored, SpansTarget, Unscored
from common.rest.reward_api import (
    InjectionRequest,
    ScoredAnswer,
    ScoreItem,
    ScoreRequest,
    ShapeRequest,
    Shaping,
    to_message,
)
from common.rest.reward_client import AsyncRewardClient, RewardClient
from common.secrets import Tokens
from services.reward.app import create_app
from tests.fixtures.servers.reward_server import reward_server

TARGET = SpansTarget(spans=((7.0, 11.0),))
REQUEST = ScoreRequest(
    items=(
        ScoreItem(
            task="temporal_grounding", target=TARGET, responses=("<answer>7 to 11</answer>",)
        ),
    ),
    injection=True,
)
BAD = ScoreRequest(items=(ScoreItem(task="juggling", target=TARGET, responses=("x",)),))

MakeClient = Callable[..., AsyncRewardClient]


@pytest.fixture
def connect() -> MakeClient:
    transport = httpx.ASGITransport(app=create_app())
    return functools.partial(AsyncRewardClient, "http://test", transport=transport)


async def test_async_client_speaks_every_route(connect: MakeClient) -> None:
    async with connect() as reward:
        (item,) = (await reward.score(REQUEST)).items
        assert isinstance(item.verdicts[0], ScoredAnswer)
        assert item.verdicts[0].parsed == {"spans": [[7.0, 11.0]]}
        assert item.injected is not None
        assert item.injected.text == "<answer> 7.00 to 11.00 </answer>"
        injection = await reward.injection(InjectionRequest(target=TARGET, decimals=1))
        assert injection.text == "<answer> 7.0 to 11.0 </answer>"
        shaped = await reward.shape(ShapeRequest(rewards=(0.8,), shaping=Shaping(kind="nonlinear")))
        assert shaped.shaped == (0.8,)
        assert (await reward.scorers()).scorers[0].task == "temporal_grounding"


async def test_a_refusal_is_a_reward_error_with_the_services_words(connect: MakeClient) -> None:
    async with connect() as reward:
        with pytest.raises(RewardError, match=r"422: items\.0\.task: found 'juggling'") as caught:
            await reward.score(BAD)
    assert isinstance(caught.value.__cause__, httpx.HTTPStatusError)


async def test_a_token_is_sent() -> None:
    transport = httpx.ASGITransport(app=create_app(tokens=Tokens(general=SecretStr("sesame"))))
    async with AsyncRewardClient("http://test", "sesame", transport=transport) as reward:
        await reward.score(REQUEST)
    async with AsyncRewardClient("http://test", SecretStr("x"), transport=transport) as reward:
        with pytest.raises(RewardError, match="401: missing or wrong bearer token"):
            await reward.score(REQUEST)


async def test_a_reply_of_another_shape_is_a_reward_error() -> None:
    other = FastAPI()
    other.add_api_route("/v1/score", lambda: {"items": "none"}, methods=["POST"])
    transport = httpx.ASGITransport(app=other)
    async with AsyncRewardClient("http://test", transport=transport) as reward:
        with pytest.raises(RewardError, match="not a ScoreResponse"):
            await reward.score(REQUEST)


def test_an_unreachable_service_is_a_reward_error() -> None:
    with (
        RewardClient("http://127.0.0.1:9", timeout_s=2.0) as reward,
        pytest.raises(RewardError, match="is the reward service up"),
    ):
        reward.score(REQUEST)


def test_sync_client_speaks_every_route_with_a_real_server() -> None:
    with reward_server() as server, RewardClient(server.url) as reward:
        (item,) = reward.score(REQUEST).items
        assert item.verdicts[0].kind == "scored"
        text = reward.injection(InjectionRequest(target=TARGET)).text
        assert text == "<answer> 7.00 to 11.00 </answer>"
        assert reward.shape(ShapeRequest(rewards=(0.5,))).shaped == (0.5,)
        assert "default" in reward.scorers().parsers


def test_verdicts_become_messages_of_the_ring() -> None:
    answer = ScoredAnswer(reward=0.5, parts={"iou": 0.5}, parsed={"spans": []})
    assert to_message(answer) == Scored(reward=0.5, parts={"iou": 0.5})
    assert to_message(Unscored(reason="x")) == Unscored(reason="x")
