"""The whole ring on one machine: `tempsamp demo` (`make demo`).

Writes clips, starts redis-server, the reward service, one vLLM replica and the learner under
torchrun, trains, evaluates before and after on held-out clips, and writes `runs/<run>/report.html`
and `summary.json`. Nothing is faked: a cluster differs in sizes and backends. Ctrl-C stops every
process; `RESUME=1` goes on from the last checkpoint.
"""

import asyncio
import json
import logging
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from common import config
from common.broker import Broker
from common.config import Run, Strategy
from common.errors import ConfigError, TempSampError
from jobs import clips, report
from jobs.baselines import blind_baselines
from jobs.evaluate import Plan, evaluate_rows
from jobs.grounding import Evaluation, read_rows
from jobs.local_redis import LocalRedis, free_port, start_redis
from jobs.processes import Children
from jobs.summary import RunFacts, build_summary, read_metrics

ROOT = Path(__file__).resolve().parent.parent
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
READY_TIMEOUT_S = 240.0
POLL_S = 0.2
MAX_ROLLOUT_RESTARTS = 3

console = Console()


@dataclass
class Demo:
    """One run of the demo: settings, places, secrets."""

    method: str
    steps: int | None
    seed: int
    name: str
    resume: bool
    split: Literal["validation", "test"]
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
            "learner.rows": str(self.data / "train" / "rows.jsonl"),
            "shared.video.roots": [str(self.data)],
            "learner.run_dir": str(self.run_dir),
        }
        if self.steps is not None:
            changed["learner.steps"] = self.steps
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
    overrides = demo.overrides(redis.url)
    run = config.load(CONFIG, overrides=overrides, environ=demo.environ)
    settings = ["--config", str(CONFIG), *(arg for item in overrides for arg in ("--set", item))]
    tempsamp = [sys.executable, "-m", "tempsamp"]
    children.start("reward", [*tempsamp, "reward", "serve", *settings], environ=demo.environ)
    children.start(
        "rollout",
        [*tempsamp, "rollout", "serve", *settings],
        environ=demo.environ,
        restarts=MAX_ROLLOUT_RESTARTS,
    )
    with console.status("writing clips"):
        for split in ("train", demo.split):
            clips.write_split(demo.data, split)
    with console.status("waiting for the rollout replica to load the model"):
        _wait_for_reward(run, children)
        endpoints = _wait_for_replicas(run, children)
    start = _evaluate_start(demo, run, endpoints)
    train_started = time.monotonic()
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
        for line in _steps(run.learner.run_dir / "metrics.jsonl"):
            if line is not None:
                progress.update(task, completed=line["step"], shown=_shown(line))
                continue
            children.check()
            if learner.process.poll() is not None:
                break
    train_wall_s = time.monotonic() - train_started
    steps = read_metrics(run.learner.run_dir / "metrics.jsonl")
    version = int(steps[-1]["policy_version"])
    end = _evaluate(
        demo, run, _wait_for_replicas(run, children), label="after training", version=version
    )
    (demo.run_dir / report.END_FILE).write_text(end.model_dump_json(), encoding="utf-8")
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
        ),
        start=start,
        end=end,
        baselines=blind_baselines(
            read_rows(demo.data / "train" / "rows.jsonl"),
            eval_rows=read_rows(demo.data / demo.split / "rows.jsonl"),
        ),
        metrics=steps,
    )
    (demo.run_dir / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    if write_report:
        report.write_report(
            demo.run_dir, summary=summary, start=start, end=end, video_root=demo.data
        )
    return summary


def _evaluate_start(demo: Demo, run: Run, endpoints: list[str]) -> Evaluation:
    """Before training; a resumed run keeps the figures of its first start."""
    kept = demo.run_dir / report.START_FILE
    if demo.resume and kept.exists():
        return Evaluation.model_validate_json(kept.read_bytes())
    start = _evaluate(demo, run, endpoints, label="before training", version=0)
    kept.write_text(start.model_dump_json(), encoding="utf-8")
    return start


def _evaluate(
    demo: Demo, run: Run, endpoints: list[str], *, label: str, version: int
) -> Evaluation:
    with console.status(f"evaluating {label}"):
        result = evaluate_rows(
            demo.data / demo.split / "rows.jsonl",
            endpoints=endpoints,
            sampling_video=clips.SAMPLING,
            plan=Plan(max_tokens=run.shared.sampling.max_tokens, policy_version=version),
            video_root=demo.data,
            token=run.shared.token,
        )
    console.print(f"{label}: held-out mIoU {result.greedy.miou:.3f}")
    return result


def _wait_for_reward(run: Run, children: Children) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        children.check()
        try:
            if httpx.get(f"{run.shared.reward_url}/readyz", timeout=2.0).is_success:
                return
        except httpx.HTTPError:
            pass
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


def _steps(metrics: Path) -> Iterator[dict[str, Any] | None]:
    """Lines of metrics.jsonl as they come; None at least every POLL_S, for ever."""
    position = 0
    while True:
        if metrics.exists():
            with metrics.open("rb") as file:
                file.seek(position)
                for line in file:
                    if line.endswith(b"\n"):
                        position += len(line)
                        yield json.loads(line)
        yield None
        time.sleep(POLL_S)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
    )


def _shown(line: dict[str, Any]) -> str:
    return (
        f"reward {line.get('reward/reward', float('nan')):.3f}  "
        f"IoU {line.get('reward/iou', float('nan')):.3f}  "
        f"staleness {line['intake/staleness_steps_mean']:.1f}"
    )


class EvalSplit(StrEnum):
    """Held-out splits."""

    validation = "validation"
    test = "test"


def command_line(arguments: list[str]) -> None:
    """Read `tempsamp demo`'s arguments and run it; SIGTERM stops it as Ctrl-C does.

    Raises:
        ConfigError, TempSampError: as `run_demo`.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # SIGINT too: a shell starts background jobs with it ignored, and Python leaves that alone.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(_demo)
    app(arguments, prog_name="tempsamp demo")


def _demo(
    method: Annotated[str, typer.Option(help=", ".join(METHODS))] = "tempsamp",
    steps: Annotated[int | None, typer.Option(min=1, help="default: the config's")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    run: Annotated[str | None, typer.Option(help="name below runs/")] = None,
    resume: Annotated[
        bool, typer.Option(help="go on with --run, or with the latest run, from its checkpoint")
    ] = False,
    eval_split: Annotated[EvalSplit, typer.Option(help="what is evaluated on")] = EvalSplit.test,
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
        split=eval_split.value,
    )
    try:
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
    started = (ROOT / "runs").glob(f"*/{report.START_FILE}")
    latest = max(started, key=lambda path: path.parent.stat().st_mtime, default=None)
    if latest is None:
        raise ConfigError("RESUME: found no run below runs/, wanted one to go on with")
    return latest.parent.name


def _new_name(method: str, seed: int) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return f"{method}-{seed}-{stamp}"
