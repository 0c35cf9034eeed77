"""The ring's view of the reward service: the real app's verdicts and GT answers, or its absence."""

import asyncio
import socket

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from common.config import Rollout, Scoring, Shared
from common.errors import RewardError
from common.messages import (
    ChatMessage,
    ClipRef,
    Grading,
    PromptRequest,
    Sampling,
    Scored,
    SpansTarget,
    Unscored,
    VideoPart,
)
from services.reward.app import create_app
from services.rollout import reward_client
from services.rollout.reward_client import GroupScorer

PERFECT = "<answer> 3.0 to 7.0 </answer>"
PROSE = "Somewhere in the middle, I would say."


def shared(**changed: object) -> Shared:
    settings = {"run_id": "t", "model": "m", "scoring": Scoring(answer_decimals=1)}
    return Shared.model_validate({**settings, **changed})


def request() -> PromptRequest:
    clip = ClipRef(
        uri="clip.mp4",
        sha256="0" * 64,
        decoder="decord",
        source_fps=4.0,
        total_frames=64,
        frame_indices=(0, 63),
        frame_times_s=(0.0, 15.75),
        frame_hw=(32, 32),
        sampling="s",
    )
    return PromptRequest(
        prompt_id="p",
        sequence=1,
        row_id="r",
        epoch=0,
        mode="answer",
        task="temporal_grounding",
        clip=clip,
        messages=(ChatMessage(role="user", content=(VideoPart(),)),),
        target=SpansTarget(spans=((3.0, 7.0),)),
        num_samples=2,
        sampling=Sampling(),
        min_version=0,
    )


def scorer(settings: Shared, app: FastAPI) -> GroupScorer:
    return GroupScorer(settings, rollout=Rollout(), transport=httpx.ASGITransport(app))


async def test_a_prompt_of_a_phase_is_graded_as_its_phase_says() -> None:
    grading = Grading(strategy="mixed", format_weight=0.5, think_injection="none")
    asked = request().model_copy(update={"grading": grading})
    scoring = await scorer(shared(), create_app()).score(asked, texts=[PERFECT])
    (good,) = scoring.verdicts
    assert isinstance(good, Scored)
    assert good.reward == pytest.approx(1.5), "not shaped, and another weight"
    assert scoring.injected is not None
    thinking = asked.model_copy(update={"mode": "think"})
    assert (await scorer(shared(), create_app()).score(thinking, texts=[PERFECT])).injected is None
    plain = grading.model_copy(update={"strategy": "none"})
    asked = request().model_copy(update={"grading": plain})
    assert (await scorer(shared(), create_app()).score(asked, texts=[PERFECT])).injected is None


async def test_shaped_verdicts_and_the_injected_answer_come_back() -> None:
    scoring = await scorer(shared(), create_app()).score(request(), texts=[PERFECT, PROSE])
    good, prose = scoring.verdicts
    assert isinstance(good, Scored)
    assert good.reward == pytest.approx(0.90182, abs=1e-5)
    assert isinstance(prose, Scored)
    assert prose.parts == {
        "iou": 0.0,
        "iou_shaped": pytest.approx(0.08676, abs=1e-5),
        "format": 0.0,
    }
    assert scoring.injected is not None
    text, verdict = scoring.injected
    assert text == "<answer> 3.0 to 7.0 </answer>"
    assert isinstance(verdict, Scored)
    assert verdict.reward == pytest.approx(0.90182, abs=1e-5)


async def test_plain_grpo_gets_raw_rewards_and_no_injection() -> None:
    scoring = await scorer(shared(strategy="none"), create_app()).score(request(), texts=[PERFECT])
    assert scoring.injected is None
    verdict = scoring.verdicts[0]
    assert isinstance(verdict, Scored)
    assert verdict.reward == pytest.approx(1.1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_client, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(reward_client, "LONGEST_PAUSE_S", 0.05)


class Outage(httpx.AsyncBaseTransport):
    """The real service, away until `is_over`."""

    def __init__(self, app: FastAPI) -> None:
        self._real = httpx.ASGITransport(app)
        self.is_over = False
        self.status: int | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.is_over:
            return await self._real.handle_async_request(request)
        if self.status is not None:
            return httpx.Response(self.status, request=request)
        raise httpx.ConnectError("refused", request=request)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("status", [None, 401, 429, 502, 503, 504])
async def test_answers_wait_for_a_service_that_is_away_and_are_scored(status: int | None) -> None:
    """Before: given up after 1.6 s (median of 64), 2.9 s at most."""
    outage = Outage(create_app())
    outage.status = status
    waiting = GroupScorer(shared(), rollout=Rollout(), transport=outage)
    scoring = asyncio.create_task(waiting.score(request(), texts=[PERFECT, PROSE]))
    await asyncio.sleep(0.3)
    assert not scoring.done()
    assert "answers wait for their verdicts" in str(waiting.trouble)
    outage.is_over = True
    assert all(isinstance(verdict, Scored) for verdict in (await scoring).verdicts)
    assert waiting.trouble is None


@pytest.mark.usefixtures("quick")
async def test_after_its_patience_the_prompt_is_to_be_answered_anew() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        down = GroupScorer(shared(reward_url=url), rollout=Rollout(reward_patience_s=0.3))
        with pytest.raises(RewardError, match=r"is the reward service up.*reward_patience_s"):
            await down.score(request(), texts=[PERFECT, PROSE])
        with pytest.raises(RewardError):
            await down.check()
        await down.close()


@pytest.mark.usefixtures("quick")
async def test_answers_that_break_a_service_that_is_there_stay_unscored() -> None:
    broken = create_app()
    broken.router.routes.insert(0, APIRoute("/v1/score", _fails, methods=["POST"]))
    scoring = await scorer(shared(), broken).score(request(), texts=[PERFECT, PROSE])
    assert scoring.injected is None
    assert [type(verdict) for verdict in scoring.verdicts] == [Unscored, Unscored]


async def _fails() -> Response:
    return Response(status_code=500)


async def test_a_server_error_is_tried_again_and_a_refusal_is_not() -> None:
    calls: list[int] = []
    real = create_app()
    flaky = FastAPI()

    @flaky.post("/v1/score")
    async def score(body: Request) -> Response:
        calls.append(1)
        if len(calls) == 1:
            return Response(status_code=503)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(real), base_url="http://reward"
        ) as client:
            answer = await client.post(
                "/v1/score",
                content=await body.body(),
                headers={"Content-Type": "application/json"},
            )
        return Response(answer.content, answer.status_code, media_type="application/json")

    scoring = await scorer(shared(), flaky).score(request(), texts=[PERFECT])
    assert isinstance(scoring.verdicts[0], Scored)
    assert len(calls) == 2

    calls.clear()
    calls.append(0)
    wrong = shared(scoring=Scoring().model_copy(update={"parser": "no-such-parser"}))
    refused = await scorer(wrong, flaky).score(request(), texts=[PERFECT])
    assert isinstance(refused.verdicts[0], Unscored)
    assert "no-such-parser" in refused.verdicts[0].reason
    assert len(calls) == 2


async def test_a_target_that_ends_just_after_its_clip_is_scored() -> None:
    """The learner lets ends up to a second late pass, as published annotations have them."""
    late = request().model_copy(update={"target": SpansTarget(spans=((12.0, 16.8),))})
    assert late.clip.duration_s < 16.8
    scoring = await scorer(shared(), create_app()).score(
        late, texts=["<answer> 12.0 to 16.8 </answer>"]
    )
    (verdict,) = scoring.verdicts
    assert isinstance(verdict, Scored)
    assert verdict.parts["iou"] == 1.0
    assert scoring.injected is not None
    assert scoring.injected[0] == "<answer> 12.0 to 16.8 </answer>"


async def test_the_run_says_which_reward_and_a_row_how_it_writes_answers() -> None:
    settings = shared(
        strategy="mixed",
        scoring=Scoring(
            answer_decimals=1, reward="iou+wasserstein", beta=3.0, parse_penalty=1.0, shaped="sum"
        ),
    )
    target = SpansTarget(spans=((3.0, 7.0), (9.0, 10.0)), style="json_list")
    asked = request().model_copy(update={"target": target})
    scoring = await scorer(settings, create_app()).score(asked, texts=["[[2.0, 6.0]]", PROSE])
    near, prose = scoring.verdicts
    assert isinstance(near, Scored)
    assert near.parts["tiou"] == pytest.approx(3 / 6)
    assert near.reward == pytest.approx(near.parts["tiou"] + near.parts["twass"])
    assert isinstance(prose, Scored)
    assert prose.reward == -1.0
    assert scoring.injected is not None
    text, verdict = scoring.injected
    assert text == "[[3.0, 7.0], [9.0, 10.0]]"
    assert isinstance(verdict, Scored)
    assert verdict.reward == 2.0


async def test_beta_reaches_the_service() -> None:
    async def twass(**scoring: object) -> float:
        settings = shared(scoring=Scoring.model_validate({"reward": "iou+wasserstein", **scoring}))
        (verdict,) = (await scorer(settings, create_app()).score(request(), texts=[LATE])).verdicts
        assert isinstance(verdict, Scored)
        return verdict.parts["twass"]

    assert await twass() == pytest.approx(await twass(beta=3.0) ** (1 / 3))


LATE = "<answer> 4.0 to 8.0 </answer>"
