"""`jobs.evaluation.runner`: what an answer must have to be chosen from."""

from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import EngineError
from common.messages import GeneratedAnswer, GenerateRequest, GenerateResponse, KeptTokens
from common.video.sampling import VideoSampling
from jobs.evaluation.runner import Job, Runner
from jobs.evaluation.scoring.predictions import AnswerMode
from jobs.evaluation.settings import AnswerSampling, RunSettings, Served
from tests.fixtures.wire import CLIP, policy_sample

ONE_KEPT = KeptTokens(ids=policy_sample(3).token_ids, counts=(1, 1, 1))


def runner(mode: AnswerMode) -> Runner:
    settings = RunSettings(
        bench="rows",
        annotations_sha256="0",
        model=Served(version=3),
        mode=mode,
        prompt="ours",
        templates={},
        sampling=AnswerSampling(max_tokens={"answer": 8}, num_samples=0, seed=0),
        clip=VideoSampling(),
    )
    nothing: Any = None
    return Runner(
        settings, journals={}, sample_clip=nothing, version=3, on_record=lambda record: None
    )


async def answer(mode: AnswerMode, *, kept: KeptTokens | None) -> GeneratedAnswer:
    """Of one question to a replica whose greedy answer has this mask."""
    asked: Any = SimpleNamespace(messages=lambda *_, **__: ())
    sample = policy_sample(3).model_copy(update={"kept": kept})

    async def ask(request: GenerateRequest) -> GenerateResponse:
        made = GeneratedAnswer(sample=sample, text="<answer> 1 to 2 </answer>")
        return GenerateResponse(
            prompt_token_ids=(1,), num_visual_tokens=0, grid_thw=(1, 1, 1), answers=(made,)
        )

    job = Job(asked=asked, mode="answer", num_samples=0, seed=0)
    greedy, _ = await runner(mode)._answers(job, CLIP, ask)
    return greedy


async def test_selection_by_probability_is_refused_where_greedy_answers_have_none() -> None:
    with pytest.raises(EngineError, match=r"--mode mixed_selected: .*shared\.sampling\.top_k"):
        await answer("mixed_selected", kept=ONE_KEPT)
    assert (await answer("mixed_selected", kept=None)).sample.kept is None
    assert (await answer("answer", kept=ONE_KEPT)).sample.kept == ONE_KEPT
    assert (await answer("mixed_oracle", kept=ONE_KEPT)).sample.kept == ONE_KEPT
