"""The whole ring on one machine: `tempsamp demo` (`make demo`).

Writes clips, starts redis-server, the reward service, one vLLM replica and the learner under
torchrun, trains, evaluates before and after on held-out clips, and writes `runs/<run>/report.html`
and `summary.json`. Nothing is faked: a cluster differs in sizes and backends. Ctrl-C stops every
process; `RESUME=1` goes on from the last checkpoint.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from common import config
from common.config import Run, Strategy
from common.errors import ConfigError, TempSampError
from common.queue.broker import Broker
from jobs.demo.baselines import blind_baselines
from jobs.demo.figures import Evaluation, evaluation_of
from jobs.demo.summary import (
    ANSWERS_AFTER,
    ANSWERS_BEFORE,
    METRICS_FILE,
    SUMMARY_FILE,
    VALIDATION_FILE,
    RunFacts,
    StepMetrics,
    build_summary,
    last_metrics,
    read_metrics,
)
from jobs.evaluation.held_out import HeldOut
from jobs.evaluation.journal import read_records
from jobs.evaluation.scoring.score import read_questions
from jobs.evaluation.settings import AnswerSampling
from jobs.local.processes import Children, interruptible
from jobs.local.redis import LocalRedis, free_port, start_redis

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "deploy/configs/demo.toml"
METHODS: dict[str, Strategy] = {
    "grpo": "none",
    "tempsamp": "shaping",
    "mixed": "mixed",
    "anchor": "anchor",
    "downscale": "downscale",
    "sft": "sft",
}
"""What people call the strategies; sft is a control that trains on the injected answers alone."""
NUM_SAMPLES = 8
"""Answers at temperature 1 to one query of each held-out clip."""
QUESTIONS_IN_WORK = 32
READY_TIMEOUT_S = 240.0
POLL_S = 0.2
MAX_ROLLOUT_RESTARTS = 3

console = Console()

Split = Literal["validation", "test"]
"""Held out."""


@dataclass
class Demo:
    """One run of the demo: settings, places, secrets."""

    method: str
    steps: int | None
    seed: int
    name: str
    resume: bool
    split: Split
    eval_queries: int | None
    """Only the first held-out queries; None: all."""
    password: str = field(default_factory=lambda: secrets.token_hex(16))
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    reward_port: int = field(default_factory=free_port)

    @property
    def run_dir(self) -> Path:
        """Everything this run writes."""
        return ROOT / "runs" / self.name

    @property
    def data(self) -> Path:
        """Clips, shared by all runs."""
        return ROOT / "runs" / "demo-data"

    def rows(self, split: Literal["train"] | Split) -> Path:
        """Of one split; paths in it start at `data`."""
        return self.data / split / "rows.jsonl"

    @property
    def environ(self) -> dict[str, str]:
        """What children get beside their arguments."""
        return {
            "TEMPSAMP_REDIS_PASSWORD": self.password,
            "TEMPSAMP_TOKEN": self.token,
            # One core each for the engine and the learner of a two-core machine.
            "OMP_NUM_THREADS": "1",
        }

    def overrides(self, redis_url: str) -> list[str]:
        """What differs from deploy/configs/demo.toml in this run."""
        changed = {
            "shared.run_id": self.name,
            "shared.model": str(ROOT / "deploy/tiny-qwen3vl"),
            "shared.redis_url": redis_url,
            "shared.reward_url": f"http://127.0.0.1:{self.reward_port}",
            "shared.seed": self.seed,
            "shared.strategy": METHODS[self.method],
            "reward.port": self.reward_port,
            "learner.rows": str(self.rows("train")),
            "learner.validation.rows": str(self.rows("validation")),
            "shared.video.roots": [str(self.data)],
            "learner.run_dir": str(self.run_dir),
        }
        if self.steps is not None:
            changed["learner.steps"] = self.steps
        if self.eval_queries is not None:
            most = config.load(CONFIG).learner.validation.limit or self.eval_queries
            changed["learner.validation.limit"] = min(most, self.eval_queries)
        return [f"{key}={json.dumps(value)}" for key, value in changed.items()]


def run_demo(demo: Demo, *, write_report: bool) -> dict[str, Any]:
    """Run the demo to its end; returns the summary.

    Raises:
        ConfigError: the run exists already, or a setting is wrong.
        TempSampError: a service failed; the message carries the end of its log.
    """
    started = time.monotonic()
    if demo.resume and not demo.run_dir.exists():
        raise ConfigError(f"RESUME: found no {demo.run_dir.relative_to(ROOT)}, wanted that run")
    if not demo.resume and (demo.run_dir / "checkpoints").exists():
        raise ConfigError(
            f"RUN: found an earlier run in {demo.run_dir.relative_to(ROOT)}, wanted a new name: "
            "RESUME=1 goes on with it, RUN=<name> starts another, or delete the folder"
        )
    demo.run_dir.mkdir(parents=True, exist_ok=True)
    redis = start_redis(demo.run_dir / "redis", demo.password)
    try:
        with Children(demo.run_dir / "logs") as children:
            return _run_ring(demo, redis, children, write_report=write_report, started=started)
    finally:
        redis.stop()


def _run_ring(
    demo: Demo, redis: LocalRedis, children: Children, *, write_report: bool, started: float
) -> dict[str, Any]:
    from jobs.toy import clips

    folder, overrides = demo.run_dir, demo.overrides(redis.url)
    run = config.load(CONFIG, overrides=overrides, environ=demo.environ)
    settings = ["--config", str(CONFIG), *(arg for item in overrides for arg in ("--set", item))]
    _start_services(demo, children, settings)
    with console.status("writing clips"):
        for split in dict.fromkeys(("train", "validation", demo.split)):
            clips.write_split(demo.data, split)
    held_out = _held_out(demo, run)
    with console.status("waiting for the rollout replica to load the model"):
        _wait_for_reward(run, children)
        endpoints = _wait_for_replicas(run, children)
    _drop_stale_answers(demo)
    start = _evaluate(held_out, endpoints, version=0, out=folder / ANSWERS_BEFORE)
    train_wall_s = _train(demo, run, children, settings)
    steps = read_metrics(folder / METRICS_FILE)
    version = int(steps[-1]["policy_version"])
    endpoints = _wait_for_replicas(run, children)
    end = _evaluate(held_out, endpoints, version=version, out=folder / ANSWERS_AFTER)
    train, _ = read_questions(demo.rows("train"))
    summary = build_summary(
        RunFacts(
            run=demo.name,
            method=demo.method,
            steps=int(steps[-1]["step"]),
            seed=demo.seed,
            eval_split=demo.split,
            wall_s=round(time.monotonic() - started, 1),
            train_wall_s=round(train_wall_s, 1),
            weight_versions=version,
            groups_trained=int(steps[-1]["intake/groups_taken"]),
            groups_unscored=int(steps[-1]["intake/groups_unscored"]),
            policy_version_start=0,
            policy_version_end=version,
        ),
        start=start,
        end=end,
        baselines=blind_baselines(train, evaluated=held_out.questions),
        metrics=steps,
    )
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2), encoding="utf-8")
    if write_report:
        from jobs.demo import report

        report.write_report(folder, summary=summary, start=start, end=end, video_root=demo.data)
    return summary


def _start_services(demo: Demo, children: Children, settings: list[str]) -> None:
    tempsamp = [sys.executable, "-m", "tempsamp"]
    children.start("reward", [*tempsamp, "reward", "serve", *settings], environ=demo.environ)
    children.start(
        "rollout",
        [*tempsamp, "rollout", "serve", *settings],
        environ=demo.environ,
        restarts=MAX_ROLLOUT_RESTARTS,
    )


def _held_out(demo: Demo, run: Run) -> HeldOut:
    return HeldOut(
        demo.rows(demo.split),
        video=run.shared.video,
        sampling=AnswerSampling(
            max_tokens={"answer": run.shared.sampling.max_tokens},
            num_samples=NUM_SAMPLES,
            sampled="clips",
            seed=0,
        ),
        limit=demo.eval_queries,
        concurrency=QUESTIONS_IN_WORK,
        token=run.shared.token,
    )


def _drop_stale_answers(demo: Demo) -> None:
    """A resumed run keeps what its start answered; other answers are of weights that are gone."""
    for name in (ANSWERS_AFTER,) if demo.resume else (ANSWERS_BEFORE, ANSWERS_AFTER):
        shutil.rmtree(demo.run_dir / name, ignore_errors=True)


def _evaluate(held_out: HeldOut, endpoints: list[str], *, version: int, out: Path) -> Evaluation:
    when = f"{out.name} training"
    with console.status(f"evaluating {when}"):
        asyncio.run(held_out.ask(version, endpoints=endpoints, out=out))
    # A run that is resumed with fewer queries has answers to more.
    ids = {question.id for question in held_out.questions}
    found = evaluation_of(record for record in read_records(out) if record.id in ids)
    console.print(f"{when}: held-out mIoU {found.greedy.miou:.3f}")
    return found


def _train(demo: Demo, run: Run, children: Children, settings: list[str]) -> float:
    """Run the learner to its end, and show what it writes; returns seconds."""
    started = time.monotonic()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    arguments = ["--nproc-per-node", "1", "-m", "tempsamp", "learner", *settings]
    learner = children.start(
        "learner",
        [*torchrun, *arguments, *(["--resume"] if demo.resume else [])],
        environ=demo.environ,
        ends=True,
    )
    with _progress() as progress:
        task = progress.add_task(demo.method, total=run.learner.steps, shown="starting")
        ended = False
        while not ended:
            children.check()
            ended = learner.process.poll() is not None  # first, or its last line is missed
            if step := last_metrics(demo.run_dir / METRICS_FILE):
                validation = last_metrics(demo.run_dir / VALIDATION_FILE)
                progress.update(task, completed=step["step"], shown=_shown(step, validation))
            time.sleep(POLL_S)
    return time.monotonic() - started


def _wait_for_reward(run: Run, children: Children) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        children.check()
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{run.shared.reward_url}/readyz", timeout=2.0).is_success:
                return
        time.sleep(POLL_S)
    raise TempSampError(f"the reward service was not ready after {READY_TIMEOUT_S:.0f} s")


def _wait_for_replicas(run: Run, children: Children) -> list[str]:
    """Addresses of the live replicas, from the registry."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        children.check()
        if urls := asyncio.run(_registered(run)):
            return urls
        time.sleep(POLL_S)
    raise TempSampError(f"no rollout replica was ready after {READY_TIMEOUT_S:.0f} s")


async def _registered(run: Run) -> list[str]:
    broker = Broker.of(run.shared)
    try:
        return [replica.url for replica in await broker.replicas()]
    finally:
        await broker.close()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
        console=console,
    )


def _shown(step: StepMetrics, validation: StepMetrics | None) -> str:
    """With the rest of the line at most 80 columns, which is what a log has."""
    shown = (
        f"reward {step.get('reward/reward', float('nan')):.2f} "
        f"IoU {step.get('reward/iou', float('nan')):.2f} "
        f"stale {step['intake/staleness_steps_mean']:.1f}"
    )
    return shown if validation is None else f"{shown} val {validation['val/miou']:.2f}"


def command(
    method: Annotated[str, typer.Option(help=", ".join(METHODS))] = "tempsamp",
    steps: Annotated[int | None, typer.Option(min=1, help="default: the config's")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    run: Annotated[str | None, typer.Option(help="name below runs/")] = None,
    resume: Annotated[
        bool, typer.Option(help="go on with --run, or with the latest run, from its checkpoint")
    ] = False,
    eval_split: Annotated[Split, typer.Option(help="what is evaluated on")] = "test",
    eval_queries: Annotated[
        int | None, typer.Option(min=1, help="only the first held-out queries; default: all")
    ] = None,
    report_html: Annotated[bool, typer.Option("--report/--no-report")] = True,
) -> None:
    """Run the ring on this machine: train, evaluate before and after, write a report."""
    if method not in METHODS:
        raise ConfigError(f"METHOD: found {method!r}, wanted one of {', '.join(METHODS)}")
    demo = Demo(
        method=method,
        steps=steps,
        seed=seed,
        name=run or (_latest_name() if resume else _new_name(method, seed)),
        resume=resume,
        split=eval_split,
        eval_queries=eval_queries,
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with interruptible():
            summary = run_demo(demo, write_report=report_html)
    except KeyboardInterrupt as error:
        console.print(f"stopped; RESUME=1 RUN={demo.name} goes on from the last checkpoint")
        raise typer.Exit(130) from error
    console.print_json(data=summary)
    if report_html:
        console.print(f"report: {demo.run_dir.relative_to(ROOT)}/report.html")


def _latest_name() -> str:
    """The demo run that was worked on last.

    Raises:
        ConfigError: there is none.
    """
    started = (path.parents[1] for path in (ROOT / "runs").glob(f"*/{ANSWERS_BEFORE}"))
    latest = max(started, key=lambda run_dir: run_dir.stat().st_mtime, default=None)
    if latest is None:
        raise ConfigError("RESUME: found no run below runs/, wanted one to go on with")
    return latest.name


def _new_name(method: str, seed: int) -> str:
    return f"{method}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
