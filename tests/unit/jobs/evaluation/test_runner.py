"""`jobs.evaluation.runner`: what an answer must have to be chosen from."""

from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import EngineError
from common.messages import GenerateRequest
from common.video.sampling import VideoSampling
from jobs.asking.answers import Answer, Reply
from jobs.evaluation.runner import Job, Runner
from jobs.evaluation.scoring.predictions import AnswerMode
from jobs.evaluation.settings import AnswerSampling, RunSettings, Served
from tests.fixtures.wire import CLIP


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


async def asked(mode: AnswerMode, *, logprobs: tuple[float, ...] | None, num_samples: int) -> int:
    """How many replies one question gets, of a server whose answers have these probabilities."""
    question: Any = SimpleNamespace(messages=lambda *_, **__: ())

    async def ask(request: GenerateRequest) -> Reply:
        made = Answer(text="<answer> 1 to 2 </answer>", ending="stop", logprobs=logprobs)
        return Reply(answers=(made,), versions=frozenset({3}))

    job = Job(asked=question, mode="answer", num_samples=num_samples, seed=0)
    return len(await runner(mode)._replies(job, CLIP, ask))


async def test_selection_by_probability_is_refused_where_greedy_answers_have_none() -> None:
    with pytest.raises(EngineError, match=r"--mode mixed_selected: .*shared\.sampling\.top_k"):
        await asked("mixed_selected", logprobs=None, num_samples=0)
    assert await asked("mixed_selected", logprobs=(-1.0,), num_samples=0) == 1
    # Agreement among samples needs none.
    assert await asked("mixed_selected", logprobs=None, num_samples=2) == 2
    assert await asked("answer", logprobs=None, num_samples=0) == 1
    assert await asked("mixed_oracle", logprobs=None, num_samples=0) == 1
