"""Held-out rows, asked of the replicas of a ring whenever its weights are worth a figure.

    rows (JSONL) -> HeldOut -> ask(version) -> [replicas] -> answers and summary.json in a folder

What it writes is a whole run of `tempsamp eval`, so `tempsamp compare` takes two of them. The demo
asks before and after training; `Validation` is what the learner is handed to ask meanwhile
(`services.learner.validation`). Neighbours: `jobs.evaluation.session` below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from common.config import Run, Video
from common.errors import ConfigError, EngineError
from common.messages import Mode
from jobs.asking.replicas import FLEET_TIMEOUT, RETRY_S, connected
from jobs.evaluation.benchmarks import Benchmark
from jobs.evaluation.runner import Tally
from jobs.evaluation.scoring.matching import Question
from jobs.evaluation.session import Plan, ask, finish, open_run, prepare
from jobs.evaluation.settings import AnswerSampling, Served
from jobs.evaluation.summary import Summary

VALIDATION_RETRY_S = 10.0
"""Only the learner can bring weights to a replica that came back, and it is waiting for us."""


class HeldOut:
    """Rows whose videos have been found."""

    def __init__(
        self,
        rows: Path,
        *,
        video: Video,
        sampling: AnswerSampling,
        mode: Mode = "answer",
        limit: int | None = None,
        concurrency: int = 16,
        token: SecretStr | None = None,
    ) -> None:
        """Read the rows; nothing is asked yet.

        Args:
            rows: trainer rows, JSONL.
            video: which frames stand for a clip; relative paths start at the first of its roots.
            sampling: how long answers are, and how many more are sampled.
            mode: with or without thought.
            limit: only the first queries.
            concurrency: questions in work in each replica.
            token: bearer token of the replicas.

        Raises:
            ConfigError: no such file, a row that cannot be asked or scored, or a missing video.
        """
        self._token = token
        self._plan = Plan(
            benchmarks=[Benchmark(name=rows.stem, scored_as="rows", files=(str(rows),))],
            bench_dir=None,
            video_root=video.roots[0],
            out=Path(),
            task="moments",
            mode=mode,
            selector="logprob",
            prompt="ours",
            sampling=sampling,
            video=video,
            limit=limit,
            concurrency=concurrency,
            knob="learner.run_dir",
        )
        (self._prepared,) = prepare(self._plan)

    @property
    def questions(self) -> list[Question]:
        """Every row that is asked, with its truth."""
        return [asked.question for asked in self._prepared.mine]

    async def ask(
        self, version: int, *, endpoints: Sequence[str], out: Path, retry_s: float = RETRY_S
    ) -> Summary:
        """Ask everything that `out` does not answer yet, and score it.

        Args:
            version: the weights that must answer.
            endpoints: base URLs of replicas.
            out: a folder of this version alone.
            retry_s: how long all replicas may be unreachable.

        Raises:
            EngineError: replicas are unreachable or serve other weights, or no query at all got
                an answer.
            ConfigError: `out` holds answers to other questions.
        """
        prepared = replace(self._prepared, folder=out)
        settings, left = open_run(self._plan, prepared, model=Served(version=version))
        if left:
            async with connected(endpoints, token=self._token, patience=FLEET_TIMEOUT) as clients:
                await ask(
                    self._plan,
                    prepared,
                    settings=settings,
                    clients=clients,
                    tally=Tally(),
                    retry_s=retry_s,
                )
        summary = finish(self._plan, prepared, settings=settings)
        if summary.score is None or summary.score.protocols["exact"].miou is None:
            raise EngineError(
                f"none of {summary.queries} queries was answered; {out} lists the reasons"
            )
        return summary


class Validation:
    """The learner's held-out rows: one policy version → `val/…` figures in [0, 1]."""

    def __init__(self, run: Run) -> None:
        """Read the rows of `[learner.validation]`.

        Raises:
            ConfigError: as `HeldOut`; names the knob.
        """
        settings = run.learner.validation
        if settings.rows is None:
            raise ConfigError("learner.validation.rows: found none, wanted a file of trainer rows")
        max_tokens = settings.max_tokens or run.shared.sampling.max_tokens
        try:
            self._held_out = HeldOut(
                settings.rows,
                video=run.shared.video,
                sampling=AnswerSampling(
                    max_tokens={settings.mode: max_tokens}, num_samples=0, seed=0
                ),
                mode=settings.mode,
                limit=settings.limit,
                concurrency=settings.concurrency,
                token=run.shared.tokens.of("generate"),
            )
        except ConfigError as error:
            raise ConfigError(f"learner.validation.rows: {settings.rows}: {error}") from error

    async def __call__(
        self, version: int, *, urls: Sequence[str], folder: Path
    ) -> Mapping[str, float]:
        """Ask the rows of replicas that serve `version`; what `folder` has is not asked again.

        Raises:
            EngineError: as `HeldOut.ask`.
        """
        summary = await self._held_out.ask(
            version, endpoints=urls, out=folder, retry_s=VALIDATION_RETRY_S
        )
        assert summary.score is not None
        exact = summary.score.protocols["exact"]
        assert exact.miou is not None
        assert exact.parse_rate is not None
        return {
            "val/miou": exact.miou.mean / 100,
            **{f"val/r1_at_{at}": share.mean / 100 for at, share in exact.recall.items()},
            "val/parse_rate": exact.parse_rate,
            "val/queries": exact.scored,
            "val/failures": exact.failures.get("video", 0) + exact.failures.get("engine", 0),
        }
