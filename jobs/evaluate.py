"""Evaluate a policy over HTTP: rows of one split → `Evaluation`, asked of rollout replicas.

Every row is answered once, greedily; one query of each of the first clips is also answered several
times at temperature 1, which shows what greedy decoding hides (diversity, entropy, best of G).
Neighbours: POST /v1/generate of `services.rollout.app`; `jobs.grounding` scores; `jobs.demo` calls.

A refused query is listed as a failure and never scored. Replicas that cannot be reached, and
answers of more than one weight version, end the evaluation: half of one is not a result.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
from pydantic import SecretStr
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from common.answers import read_spans
from common.config import bearer
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

TIMEOUT = httpx.Timeout(10.0, read=120.0)
RETRY_S = 60.0
"""How long a replica may be unreachable or not ready."""
SEED_STEP = 1_000_003
"""Sampled query k has seed k times this: policies share their randomness, queries do not."""
UNAUTHORIZED = (401, 403)


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


class Refused(EngineError):
    """A replica answered that it cannot serve this request."""


class _NotReady(EngineError):
    """A replica is still loading."""


class Replicas:
    """Rollout replicas asked in turn; the clients belong to the caller."""

    def __init__(
        self, clients: Sequence[httpx.AsyncClient], *, concurrency: int, retry_s: float = RETRY_S
    ) -> None:
        self._clients = itertools.cycle(clients)
        self._in_flight = asyncio.Semaphore(concurrency)
        self._retry_s = retry_s

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Answers to one request; each retry asks the next replica.

        Raises:
            Refused: this request cannot be served (422 and the like).
            EngineError: no replica could be reached, or none lets us in.
        """
        body = request.model_dump_json().encode()
        attempts = AsyncRetrying(
            retry=retry_if_exception_type((httpx.TransportError, _NotReady)),
            wait=wait_random_exponential(multiplier=0.2, max=5.0),
            stop=stop_after_delay(self._retry_s),
            reraise=True,
        )
        async with self._in_flight:
            try:
                return await attempts(self._ask, body)
            except httpx.TransportError as error:
                raise EngineError(
                    f"no replica answered within {self._retry_s:.0f} s: {error!r}"
                ) from error

    async def _ask(self, body: bytes) -> GenerateResponse:
        client = next(self._clients)
        answer = await client.post(
            "/v1/generate", content=body, headers={"Content-Type": "application/json"}
        )
        if answer.status_code == httpx.codes.OK:
            return GenerateResponse.model_validate_json(answer.content)
        problem = f"{answer.url}: found status {answer.status_code}: {_detail(answer)}"
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise _NotReady(problem)
        if answer.status_code in UNAUTHORIZED:
            raise EngineError(f"{problem}; set TEMPSAMP_TOKEN to the replica's token")
        raise Refused(problem)


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
        async with contextlib.AsyncExitStack() as owned:
            clients = [
                await owned.enter_async_context(
                    httpx.AsyncClient(base_url=url, headers=bearer(token), timeout=TIMEOUT)
                )
                for url in endpoints
            ]
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


def one_version(replies: Iterable[GenerateResponse], *, wanted: int | None = None) -> int:
    """The weight version that wrote all answers.

    A replica that restarted serves older weights until the learner finds it.

    Raises:
        EngineError: several versions answered, or another one than `wanted`.
    """
    samples = [answer.sample for reply in replies for answer in reply.answers]
    versions = {span.version for sample in samples for span in sample.version_spans}
    if len(versions) != 1 or wanted not in (None, *versions):
        raise EngineError(
            f"found answers of weight versions {sorted(versions)}, wanted "
            f"{'one' if wanted is None else wanted}: weights changed or a replica restarted; "
            "wait until every replica serves the last version and evaluate again"
        )
    return versions.pop()


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


def _detail(answer: httpx.Response) -> str:
    """The reason in a problem document, else the start of the body."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
