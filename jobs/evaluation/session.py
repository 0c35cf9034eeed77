"""One `tempsamp eval`: a plan → answers on disk and a `Summary` a benchmark.

    Plan -> prepare() -> Prepared a benchmark -> ask() -> [replicas] -> finish() -> Summary

Everything that can be wrong with files and settings is said by `prepare`, before a model is loaded
or a question asked. Neighbours: `jobs.evaluation.command` above, `.runner` and `.summary` below.
"""

import asyncio
import contextlib
import functools
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from common.config import Video
from common.errors import ConfigError, TempSampError
from common.messages import Mode
from common.queue.disk import write_file
from common.video.sampling import FIELDS, VideoSampling
from jobs.asking.replicas import RETRY_S, Asker, Fleet
from jobs.asking.replicas import ask as ask_replica
from jobs.evaluation.benchmarks import (
    BENCHMARKS,
    Benchmark,
    annotation_file,
    find_video,
    names_there,
)
from jobs.evaluation.journal import (
    ALL_KEPT,
    Journal,
    predictions_name,
    read_records,
)
from jobs.evaluation.questions import PROMPTS, Asked, Questions, find_questions
from jobs.evaluation.runner import Runner, Tally
from jobs.evaluation.scoring.modes import Selector
from jobs.evaluation.scoring.predictions import AnswerMode, PredictionRecord, Task
from jobs.evaluation.settings import (
    AnswerSampling,
    Model,
    RunSettings,
    agree_or_refuse,
    asked_modes,
)
from jobs.evaluation.summary import Summary, mix, paired, summarize

LOCAL_RETRY_S = 900.0
"""How long our own replica may take to load a checkpoint again after a crash."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is asked to do."""

    benchmarks: Sequence[Benchmark]
    bench_dir: Path | None
    video_root: Path
    out: Path
    task: Task
    mode: AnswerMode
    selector: Selector
    prompt: str
    sampling: AnswerSampling
    video: Video
    """Which frames stand for a clip, and where they may be cached."""
    allow_missing: bool = False
    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    concurrency: int = 16
    """Questions in work in each replica."""
    knob: str = "--out"
    """What names `out`."""

    @property
    def chooses_by_logprob(self) -> bool:
        """Whether answers without log-probabilities would leave nothing to choose by."""
        return self.mode == "mixed_selected" and self.selector == "logprob"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A benchmark whose files have been found."""

    benchmark: Benchmark
    questions: Questions
    mine: Sequence[Asked]
    """Of this shard."""
    annotations_sha256: str
    folder: Path


def prepare(plan: Plan) -> list[Prepared]:
    """Find and read everything that will be asked.

    Raises:
        ConfigError: an annotation file, a video (unless `allow_missing`) or a prompt is not there,
            or a benchmark or mode cannot do the task.
    """
    if plan.task == "highlights":
        _refuse_without_highlights(plan)
    for mode in asked_modes(plan.mode):
        if mode not in PROMPTS[plan.task][plan.prompt]:
            raise ConfigError(
                f"--mode: found {plan.mode}, wanted answer: the prompt {plan.prompt} has no {mode} "
                "form; --protocol-prompt"
            )
    return [_prepare(plan, benchmark) for benchmark in plan.benchmarks]


def open_run(plan: Plan, prepared: Prepared, *, model: Model) -> tuple[RunSettings, int]:
    """Save or compare the settings of one benchmark; count what is left to ask.

    Raises:
        ConfigError: the folder holds a run with other settings.
    """
    settings = RunSettings(
        bench=prepared.benchmark.name,
        annotations_sha256=prepared.annotations_sha256,
        model=model,
        task=plan.task,
        mode=plan.mode,
        prompt=plan.prompt,
        templates={mode: PROMPTS[plan.task][plan.prompt][mode] for mode in asked_modes(plan.mode)},
        sampling=plan.sampling,
        clip=VideoSampling(**plan.video.model_dump(include=FIELDS)),
    )
    agree_or_refuse(prepared.folder, settings=settings, knob=plan.knob)
    return settings, sum(len(_unanswered(plan, prepared, mode)) for mode in settings.modes)


async def ask(
    plan: Plan,
    prepared: Prepared,
    *,
    settings: RunSettings,
    clients: Sequence[httpx.AsyncClient],
    tally: Tally,
    watch: Callable[[], Awaitable[None]] | None = None,
    retry_s: float = RETRY_S,
    asker: Asker = ask_replica,
) -> None:
    """Ask what is left of a benchmark.

    Args:
        plan: of the run.
        prepared: the benchmark.
        settings: from `open_run`.
        clients: of the servers.
        tally: told about every record, those of an earlier run first.
        watch: runs beside the questions until they are done; ends them by raising.
        retry_s: how long all servers may be unreachable.
        asker: how a request is put to one of them.

    Raises:
        EngineError: as `Runner.run`; or what `watch` raised.
    """
    from common.video.loader import ClipLoader

    with contextlib.ExitStack() as opened:
        journals: dict[Mode, Journal] = {
            mode: opened.enter_context(
                Journal(
                    _folder(prepared, plan.mode, mode),
                    shard=plan.shard,
                    fingerprint=settings.fingerprint,
                    knob=plan.knob,
                )
            )
            for mode in settings.modes
        }
        runner = Runner(
            settings,
            journals=journals,
            sample_clip=ClipLoader.of(plan.video).sample,
            version=settings.weight_version,
            on_record=tally.add,
        )
        _count_earlier(prepared, journals, tally)
        fleet = Fleet(clients, concurrency=plan.concurrency, retry_s=retry_s, ask=asker)
        await beside(runner.run(runner.jobs(prepared.mine), fleet=fleet), watch)


def finish(plan: Plan, prepared: Prepared, *, settings: RunSettings) -> Summary:
    """Choose between modes if the run mixes them, score, and write `summary.json`."""
    folder = prepared.folder
    pairs: Sequence[tuple[PredictionRecord, PredictionRecord]] = []
    if len(settings.modes) > 1:
        ids = {asked.question.id for asked in prepared.mine}
        answers, thoughts = (
            read_records(_folder(prepared, plan.mode, mode)) for mode in settings.modes
        )
        asked_by_all = {asked.question.id for asked in prepared.questions.asked}
        pairs = paired([one for one in answers if one.id in asked_by_all], thoughts=thoughts)
        mine = [record for record in answers if record.id in ids]
        by = None if plan.mode == "mixed_oracle" else plan.selector
        chosen = mix(mine, thoughts=thoughts, by=by)
        write_file(
            folder / predictions_name(plan.shard),
            "".join(record.model_dump_json(exclude_none=True) + "\n" for record in chosen),
            knob=plan.knob,
            kept=ALL_KEPT,
        )
    return summarize(
        folder,
        settings=settings,
        questions=prepared.questions,
        scored_as=prepared.benchmark.scored_as,
        records=[
            record
            for mode in settings.modes
            for record in read_records(_folder(prepared, plan.mode, mode))
        ],
        mixed=pairs,
        knob=plan.knob,
    )


def _refuse_without_highlights(plan: Plan) -> None:
    """Stop if a benchmark, mode or prompt of the plan knows moments only."""
    if without := [benchmark.name for benchmark in plan.benchmarks if not benchmark.rates_clips]:
        able = ", ".join(name for name, known in BENCHMARKS.items() if known.rates_clips)
        raise ConfigError(
            f"--task: found highlights with {', '.join(without)}, wanted moments: only {able} "
            "rates clips"
        )
    if len(asked_modes(plan.mode)) > 1:
        raise ConfigError(
            f"--mode: found {plan.mode}, wanted answer or think with --task highlights: of two "
            "answers one is chosen by their spans"
        )
    if plan.prompt not in PROMPTS[plan.task]:
        raise ConfigError(
            f"--protocol-prompt: found {plan.prompt}, wanted {', '.join(PROMPTS[plan.task])} with "
            "--task highlights"
        )


async def beside(work: Awaitable[None], watch: Callable[[], Awaitable[None]] | None) -> None:
    """Do the work; if the watch raises, the work is dropped."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(watch()) if watch is not None else None
    try:
        await asyncio.wait(
            [task for task in (working, watching) if task is not None],
            return_when=asyncio.FIRST_COMPLETED,
        )
        if watching is not None and watching.done():
            watching.result()
        await working
    finally:
        for task in (working, watching):
            if task is not None and not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, TempSampError):
                    await task


def _prepare(plan: Plan, benchmark: Benchmark) -> Prepared:
    path = annotation_file(benchmark, folder=plan.bench_dir)
    questions = find_questions(
        path,
        find=_finder(plan, benchmark),
        task=plan.task,
        limit=plan.limit,
        there=functools.partial(names_there, plan.video_root, subset=benchmark.subset),
    )
    if not plan.allow_missing:
        questions.refuse_gaps()
    return Prepared(
        benchmark=benchmark,
        questions=questions,
        mine=questions.shard(*plan.shard),
        annotations_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        folder=plan.out / benchmark.name,
    )


def _finder(plan: Plan, benchmark: Benchmark) -> Callable[[str], Path | None]:
    """Where a video is; one that is gone may be in the clip cache."""
    from common.video.loader import ClipLoader

    loader = ClipLoader.of(plan.video)

    def find(name: str) -> Path | None:
        file = find_video(name, root=plan.video_root, subset=benchmark.subset)
        return file or loader.cached(plan.video_root / name)

    return find


def _folder(prepared: Prepared, mode: AnswerMode, asked: Mode) -> Path:
    """Where the answers of one mode go; mixing leaves the benchmark's own folder to its choice."""
    return prepared.folder / asked if mode.startswith("mixed") else prepared.folder


def _unanswered(plan: Plan, prepared: Prepared, mode: Mode) -> list[Asked]:
    answered = {
        record.id
        for record in read_records(_folder(prepared, plan.mode, mode))
        if record.failure is None
    }
    return [asked for asked in prepared.mine if asked.question.id not in answered]


def _count_earlier(prepared: Prepared, journals: dict[Mode, Journal], tally: Tally) -> None:
    """Answers of an interrupted run are part of the figures from the start."""
    tally.start(total=len(prepared.mine) * len(journals))
    ids = {asked.question.id for asked in prepared.mine}
    for journal in journals.values():
        for record in journal.records():
            if record.id in ids:
                tally.add(record)
