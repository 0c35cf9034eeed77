"""Evaluate a policy over HTTP: rows of one split → `Evaluation`, asked of rollout replicas.

Every row is answered once, greedily; one query of each of the first clips is also answered several
times at temperature 1, which shows what greedy decoding hides (diversity, entropy, best of G).
Neighbours: POST /v1/generate of `services.rollout.app`; `jobs.grounding` scores; `jobs.demo` calls.

A refused query is listed as a failure and never scored. Replicas that cannot be reached, and
answers of more than one weight version, end the evaluation: half of one is not a result.
"""

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from common.answers import read_spans
from common.errors import EngineError, VideoError
from common.messages import ClipRef, GenerateRequest, GenerateResponse, Sampling
from common.prompts import chat_messages
from common.spans import Span
from common.video import sample_clip
from common.video_sampling import VideoSampling
from jobs.grounding import (
    Evaluation,
    Failure,
    Row,
    SampledAnswers,
    answer_iou,
    greedy_metrics,
    read_rows,
    sampled_metrics,
    score_answer,
    spans_of_clips,
)
from jobs.replicas import Refused, Replicas, connected, one_version

SEED_STEP = 1_000_003
"""Sampled query k has seed k times this: policies share their randomness, queries do not."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked."""

    max_tokens: int
    """Longest answer."""
    num_samples: int = 8
    """Answers per sampled query; 0 samples nothing."""
    sample_clips: int = 64
    """Clips of which one query each is sampled."""
    concurrency: int = 32
    """Requests in flight over all replicas."""
    policy_version: int | None = None
    """The weights that must answer; None takes any one version."""


def evaluate_rows(
    rows: Path,
    *,
    endpoints: Sequence[str],
    sampling_video: VideoSampling,
    plan: Plan,
    video_root: Path | None = None,
    token: SecretStr | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate the policy that the replicas serve now.

    Args:
        rows: JSONL of trainer rows.
        endpoints: base URLs of replicas.
        sampling_video: which frames stand for a clip; what the run trains with.
        plan: how much is asked.
        video_root: where relative video paths start; default: the folder of the rows.
        token: bearer token of the replicas.
        on_progress: called with (requests done, requests in all).

    Raises:
        ValueError: the rows cannot be used.
        EngineError: replicas are unreachable, changed weights meanwhile, or answered nothing.
    """

    async def run() -> Evaluation:
        async with connected(endpoints, token=token) as clients:
            return await evaluate(
                read_rows(rows),
                replicas=Replicas(clients, concurrency=plan.concurrency),
                sampling_video=sampling_video,
                plan=plan,
                video_root=rows.parent if video_root is None else video_root,
                on_progress=on_progress,
            )

    return asyncio.run(run())


async def evaluate(
    rows: Sequence[Row],
    *,
    replicas: Replicas,
    sampling_video: VideoSampling,
    plan: Plan,
    video_root: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """As `evaluate_rows`, with rows in memory and an open connection."""
    clips = await asyncio.to_thread(_sample_clips, rows, video_root, sampling_video)
    questions = _questions(rows, plan)
    done = itertools.count(1)

    async def ask(question: _Question) -> GenerateResponse | Failure:
        reply = await _ask(question, clip=clips[question.row.clip], replicas=replicas)
        if on_progress is not None:
            on_progress(next(done), len(questions))
        return reply

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(question)) for question in questions]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    replies = [task.result() for task in tasks]
    return _evaluation(rows, list(zip(questions, replies, strict=True)), plan=plan)


@dataclass(frozen=True)
class _Question:
    row: Row
    asked_for: Literal["greedy", "sampled"]
    num_samples: int
    sampling: Sampling


def _questions(rows: Sequence[Row], plan: Plan) -> list[_Question]:
    """A greedy one per row, and sampled ones for the first row of each of the first clips."""
    greedy = Sampling(temperature=0.0, max_tokens=plan.max_tokens)
    questions = [_Question(row, "greedy", 1, greedy) for row in rows]
    if plan.num_samples == 0:
        return questions
    first_rows: dict[str, Row] = {}
    for row in rows:
        first_rows.setdefault(row.clip, row)
    for number, row in enumerate(list(first_rows.values())[: plan.sample_clips]):
        sampling = Sampling(max_tokens=plan.max_tokens, seed=number * SEED_STEP)
        questions.append(_Question(row, "sampled", plan.num_samples, sampling))
    return questions


def _sample_clips(
    rows: Sequence[Row], video_root: Path, sampling: VideoSampling
) -> dict[str, ClipRef | VideoError]:
    """Every clip is probed once, however many rows share it."""
    clips: dict[str, ClipRef | VideoError] = {}
    for name in dict.fromkeys(row.clip for row in rows):
        try:
            clips[name] = sample_clip(video_root / name, sampling=sampling)
        except VideoError as error:
            clips[name] = error
    return clips


async def _ask(
    question: _Question, *, clip: ClipRef | VideoError, replicas: Replicas
) -> GenerateResponse | Failure:
    row = question.row
    try:
        if isinstance(clip, VideoError):
            raise clip
        return await replicas.generate(
            GenerateRequest(
                clip=clip,
                messages=chat_messages(row.problem),
                num_samples=question.num_samples,
                sampling=question.sampling,
            )
        )
    except (VideoError, Refused) as error:
        return Failure(
            row_id=row.row_id, clip=row.clip, asked_for=question.asked_for, error=str(error)
        )


def _evaluation(
    rows: Sequence[Row],
    replies: Sequence[tuple[_Question, GenerateResponse | Failure]],
    *,
    plan: Plan,
) -> Evaluation:
    failures = tuple(reply for _, reply in replies if isinstance(reply, Failure))
    answered = [(q, reply) for q, reply in replies if not isinstance(reply, Failure)]
    spans = spans_of_clips(rows)
    answers = tuple(
        score_answer(q.row, text=reply.answers[0].text, other_spans=_others(q.row, spans))
        for q, reply in answered
        if q.asked_for == "greedy"
    )
    sampled = tuple(_sampled(q.row, reply) for q, reply in answered if q.asked_for == "sampled")
    if not answers:
        raise EngineError(
            f"none of {len(rows)} queries was answered; the first: {failures[0].error}"
        )
    return Evaluation(
        policy_version=one_version([r for _, r in answered], wanted=plan.policy_version),
        answers=answers,
        sampled_answers=sampled,
        failures=failures,
        greedy=greedy_metrics(answers),
        sampled=sampled_metrics(sampled),
    )


def _sampled(row: Row, reply: GenerateResponse) -> SampledAnswers:
    texts = tuple(answer.text for answer in reply.answers)
    logprobs = [value for answer in reply.answers for value in answer.sample.logprobs]
    return SampledAnswers(
        row_id=row.row_id,
        texts=texts,
        ious=tuple(answer_iou(read_spans(text).used, row.true_span) for text in texts),
        num_tokens=len(logprobs),
        surprise_nats=-sum(logprobs),
    )


def _others(row: Row, spans: Mapping[str, Sequence[Span]]) -> list[Span]:
    """The spans of the clip's other rows. Of equal spans one is the row's own."""
    others = list(spans[row.clip])
    others.remove(row.true_span)
    return others
