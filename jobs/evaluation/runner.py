"""Questions → records, asked of a fleet of replicas or servers: one benchmark of one run.

    Asked + mode -> GenerateRequest -> [who answers] -> Reply -> PredictionRecord -> Journal, Tally

The scored answer is greedy; further samples are asked for only when a selector wants them. A
failure is a record with its kind, never an answer. Neighbours: `jobs.evaluation.questions` before,
`jobs.evaluation.journal` and `jobs.evaluation.scoring.score` after; `jobs.asking.replicas` carries.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.answers.reading import read_spans
from common.errors import EngineError, VideoError
from common.messages import ClipRef, GenerateRequest, Mode, Sampling, Window
from jobs.asking.answers import Answer, Reply, one_version, usage_of
from jobs.asking.refusals import Refused
from jobs.asking.replicas import Ask, Fleet
from jobs.evaluation.journal import Journal
from jobs.evaluation.questions import Asked
from jobs.evaluation.scoring.highlights_text import clip_scores, hits
from jobs.evaluation.scoring.matching import Question
from jobs.evaluation.scoring.modes import answer_logprob, true_iou
from jobs.evaluation.scoring.predictions import FailureKind, PredictionRecord
from jobs.evaluation.settings import RunSettings

SEED_STEP = 1_000_003
"""Sampled query k has seed k times this: modes share their randomness, queries do not."""
MAX_REFUSED_IN_A_ROW = 20
"""So many refusals without an answer in between are a wrong setting, not bad questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One query in one mode."""

    asked: Asked
    mode: Mode
    num_samples: int
    """Further answers at temperature 1."""
    seed: int
    """Of these."""


class Tally:
    """What is known while a run is under way."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0
        self.failures: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()
        """Of answers that did not end by themselves."""
        self._iou_sum = 0.0
        self._num_ious = 0
        self._num_hits = 0
        self._num_rated = 0

    def start(self, *, total: int) -> None:
        """So many records are wanted."""
        self.total = total

    def add(self, record: PredictionRecord) -> None:
        """Count one record: how good it is, or why it cannot be used."""
        self.done += 1
        if record.failure is not None:
            self.failures[record.failure] += 1
            return
        if record.ending is not None:
            self.endings[record.ending] += 1
        if record.gt_ratings is not None:
            found = clip_scores(record.text or "", duration_s=record.duration_s or 0.0)
            self._num_rated += 1
            self._num_hits += found is not None and hits(found.scores, ratings=record.gt_ratings)
            self.failures["parse"] += found is None
            return
        self._num_ious += 1
        self._iou_sum += true_iou(record)
        self.failures["parse"] += not read_spans(record.text or "").used

    @property
    def miou(self) -> float | None:
        """Mean IoU of the answers so far, in percent; None before the first, and of highlights."""
        return 100 * self._iou_sum / self._num_ious if self._num_ious else None

    @property
    def hit1(self) -> float | None:
        """HIT@1 at Very Good of the highlights so far, in percent; None without any."""
        return 100 * self._num_hits / self._num_rated if self._num_rated else None


class Runner:
    """Asks one benchmark."""

    def __init__(
        self,
        settings: RunSettings,
        *,
        journals: Mapping[Mode, Journal],
        sample_clip: Callable[[Path, Window | None], ClipRef],
        version: int | None,
        on_record: Callable[[PredictionRecord], None],
    ) -> None:
        """Nothing is asked yet.

        Args:
            settings: of the run.
            journals: where each mode's records go.
            sample_clip: file and window → frames that stand for it; raises VideoError.
            version: the weights that must answer; None where a server does not say.
            on_record: told about every record.
        """
        self._settings = settings
        self._journals = journals
        self._sample_clip = sample_clip
        self._version = version
        self._on_record = on_record
        self._clips: dict[tuple[Path, Window | None], asyncio.Task[ClipRef]] = {}
        self._refused_in_a_row = 0

    def jobs(self, asked: Iterable[Asked]) -> list[Job]:
        """What is left to ask, the longest clips first."""
        settings = self._settings.sampling
        numbered = list(enumerate(asked))
        first_of_clip: dict[tuple[str, Window | None], int] = {}
        for number, one in numbered:
            first_of_clip.setdefault((one.question.video, one.question.window), number)
        return [
            Job(
                asked=one,
                mode=mode,
                num_samples=(
                    settings.num_samples
                    if settings.sampled == "queries"
                    or first_of_clip[one.question.video, one.question.window] == number
                    else 0
                ),
                seed=settings.seed + number * SEED_STEP,
            )
            for number, one in sorted(numbered, key=lambda entry: entry[1].longest_first)
            for mode, journal in self._journals.items()
            if one.question.id not in journal.answered
        ]

    async def run(self, jobs: Iterable[Job], *, fleet: Fleet) -> None:
        """Ask everything.

        Raises:
            EngineError: no replica can be reached, other weights answered, answers that are to be
                selected have no probabilities, or question after question was refused.
        """
        await fleet.work(
            jobs,
            do=self._do,
            give_up=lambda job, error: self._record_failure(job, kind="engine", error=error),
            pile_of=lambda job: job.asked.video,
        )

    async def _do(self, job: Job, ask: Ask) -> None:
        try:
            clip = await self._clip(job.asked.video, job.asked.question.window)
            replies = await self._replies(job, clip, ask)
        except VideoError as error:
            self._record_failure(job, kind="video", error=str(error))
            return
        except Refused as error:
            self._record_failure(
                job, kind="video" if error.field == "clip" else "engine", error=str(error)
            )
            self._check_refusals(error)
            return
        self._refused_in_a_row = 0
        self._record(job, clip, replies)

    async def _replies(self, job: Job, clip: ClipRef, ask: Ask) -> list[Reply]:
        """The greedy answer's, and that of further samples."""
        settings = self._settings.sampling
        greedy = GenerateRequest(
            clip=clip,
            messages=job.asked.messages(self._settings.prompt, job.mode, task=self._settings.task),
            sampling=Sampling(temperature=0.0, max_tokens=settings.max_tokens[job.mode]),
        )
        replies = [await ask(greedy)]
        if not job.num_samples:
            self._check_confidence(replies[0])
        else:
            sampling = Sampling(max_tokens=settings.max_tokens[job.mode], seed=job.seed)
            update = {"num_samples": job.num_samples, "sampling": sampling}
            replies.append(await ask(greedy.model_copy(update=update)))
        if self._version is not None:
            one_version(replies, wanted=self._version)
        return replies

    async def _clip(self, video: Path, window: Window | None) -> ClipRef:
        """Probed once, however many queries share it and wait for it."""
        key = video, window
        if key not in self._clips:
            self._clips[key] = asyncio.create_task(asyncio.to_thread(self._sample_clip, *key))
        return await asyncio.shield(self._clips[key])

    def _record(self, job: Job, clip: ClipRef, replies: Sequence[Reply]) -> None:
        question = job.asked.question
        (answer, *_), *further = (reply.answers for reply in replies)
        samples = [one for answers in further for one in answers]
        usage = usage_of(replies)
        self._add(
            job,
            PredictionRecord(
                id=question.id,
                video=question.video,
                query=question.query,
                gt=question.spans,
                gt_ratings=self._ratings(question),
                duration_s=clip.duration_s if question.duration_s is None else question.duration_s,
                window_s=question.window,
                mode=job.mode,
                text=answer.text,
                think_text=answer.thought,
                ending=None if answer.ending == "stop" else answer.ending,
                answer_logprob=answer_logprob(answer),
                samples=tuple(one.text for one in samples),
                **_surprise(samples),
                prompt_tokens=None if usage is None else usage.prompt_tokens,
                completion_tokens=None if usage is None else usage.completion_tokens,
                fingerprint=self._settings.fingerprint,
            ),
        )

    def _record_failure(self, job: Job, *, kind: FailureKind, error: str) -> None:
        question = job.asked.question
        self._add(
            job,
            PredictionRecord(
                id=question.id,
                video=question.video,
                query=question.query,
                gt=question.spans,
                gt_ratings=self._ratings(question),
                duration_s=question.duration_s,
                window_s=question.window,
                mode=job.mode,
                failure=kind,
                error=error,
                fingerprint=self._settings.fingerprint,
            ),
        )

    def _ratings(self, question: Question) -> dict[int, tuple[float, ...]] | None:
        """Whose presence says that highlights were asked for."""
        if self._settings.task == "moments":
            return None
        return dict(zip(question.clip_ids, question.saliency, strict=True))

    def _add(self, job: Job, record: PredictionRecord) -> None:
        self._journals[job.mode].append(record)
        self._on_record(record)

    def _check_confidence(self, reply: Reply) -> None:
        if self._settings.mode == "mixed_selected" and reply.answers[0].logprobs is None:
            raise EngineError(
                "--mode mixed_selected: found a replica of a ring that samples from less than the "
                "whole distribution (its shared.sampling.top_k): a greedy answer of it has no "
                "probability to be selected by; wanted one that serves a checkpoint (--model)"
            )

    def _check_refusals(self, error: Refused) -> None:
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= MAX_REFUSED_IN_A_ROW:
            raise EngineError(
                f"found {self._refused_in_a_row} questions in a row refused, wanted answers; the "
                f"last: {error}"
            ) from error


def _surprise(samples: Sequence[Answer]) -> dict[str, Any]:
    """Fields of a record: tokens of all samples, sum of -log p; none where a sample has none."""
    known = [one.logprobs for one in samples if one.logprobs is not None]
    if not known or len(known) < len(samples):
        return {}
    logprobs = [value for values in known for value in values]
    return {"samples_tokens": len(logprobs), "samples_surprise_nats": -sum(logprobs)}
