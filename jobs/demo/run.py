"""The demo: `tempsamp demo` (`make demo`), and the same in containers (`docker compose up`).

Alone, it writes clips and starts redis-server, the reward service and one vLLM replica on this
machine; with `--config` it uses the services that a run file names. Either way `jobs.demo.course`
trains, evaluates before and after on held-out clips, and writes `report.html` and `summary.json`.
Nothing is faked: a cluster differs in sizes and backends. What dies is started again, the learner
from its last checkpoint, Redis on its data. Ctrl-C stops every process; `RESUME=1` goes on from the
last checkpoint.
"""

import functools
import json
import logging
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from common import config
from common.errors import ConfigError
from common.queue.disk import check_folder
from common.secrets import only as secrets_of_child
from jobs.demo.course import METHODS, POLL_S, Course, Split, console, steps_done, take
from jobs.demo.summary import ANSWERS_BEFORE
from jobs.local import terminal
from jobs.local.processes import Children, interruptible, run_arguments
from jobs.local.redis import free_port, keep_redis
from jobs.local.waiting import waiting
from jobs.toy import regimes
from jobs.toy.regimes import REGIMES, Regime

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "deploy/configs/demo.toml"
REGIME_FILES = ROOT / "deploy/configs/regimes"
DATA = ROOT / "runs/demo-data"
"""The demo's clips, shared by all runs; those of regimes with other ones lie beside it."""
CLIP_CACHE = ROOT / "runs/clip-cache"
STARTS = ROOT / "runs/starts"
"""Start checkpoints of regimes, made where they are first needed."""
SHIPPED_START = ROOT / "deploy/tiny-qwen3vl"
DEFAULT_METHOD = "tempsamp"
MAX_RESTARTS = 3
"""Of a service, in a row without a step in between: loading takes half a minute, and who cannot
load ends the demo after two."""


NO_REDIS = "redis://127.0.0.1:1/0"
"""Where none listens; for checking settings before there is one."""


@dataclass
class Demo:
    """One run of the demo on this machine: settings, places, secrets."""

    method: str
    steps: int | None
    seed: int
    name: str
    resume: bool
    split: Split
    eval_queries: int | None
    """Only the first held-out queries; None: all."""
    replicas: int = 1
    ranks: int = 1
    """Learner processes."""
    settings: Sequence[str] = ()
    """section.key=value, over everything else."""
    regime: Regime | None = None
    """Clips, rows, start and run file of a comparison; None: the demo's own."""
    evaluates_best: bool = False
    """Whether the version that validated best is evaluated too."""
    password: str = field(default_factory=lambda: secrets.token_hex(16))
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    reward_port: int = field(default_factory=free_port)

    @property
    def run_dir(self) -> Path:
        """Everything this run writes."""
        return ROOT / "runs" / self.name

    @property
    def made_on(self) -> Regime:
        """What clips and rows are like."""
        return self.regime or REGIMES["full"]

    @property
    def config_file(self) -> Path:
        """The run file beneath what this run sets."""
        return CONFIG if self.regime is None else REGIME_FILES / f"{self.regime.name}.toml"

    @property
    def model(self) -> Path:
        """The start checkpoint; one of a regime may have to be made first."""
        return SHIPPED_START if self.made_on.start is None else STARTS / self.made_on.name

    def rows(self, split: Literal["train"] | Split) -> Path:
        """Of one split; paths in it start at the regime's video root."""
        return self.made_on.rows(DATA, split)

    @property
    def environ(self) -> dict[str, str]:
        """What children get beside their arguments."""
        return {
            **secrets_of_child(token=self.token, redis_password=self.password),
            # One core each for the engine and the learner of a two-core machine.
            "OMP_NUM_THREADS": "1",
        }

    def overrides(self, redis_url: str) -> list[str]:
        """What differs from the run file in this run.

        Raises:
            ConfigError: a setting is one that the demo makes itself.
        """
        changed = {
            "shared.run_id": self.name,
            "shared.model": str(self.model),
            "shared.redis_url": redis_url,
            "shared.reward_url": f"http://127.0.0.1:{self.reward_port}",
            "shared.seed": self.seed,
            "shared.strategy": METHODS[self.method],
            "reward.port": self.reward_port,
            "learner.rows": str(self.rows("train")),
            "learner.validation.rows": str(self.rows("validation")),
            "shared.video.roots": [str(self.made_on.video_root(DATA))],
            "learner.run_dir": str(self.run_dir),
        }
        if self.steps is not None:
            changed["learner.steps"] = self.steps
        if self.eval_queries is not None:
            most = config.load(self.config_file).learner.validation.limit or self.eval_queries
            changed["learner.validation.limit"] = min(most, self.eval_queries)
        for setting in self.settings:
            if (key := setting.partition("=")[0]) in changed:
                raise ConfigError(
                    f"--set {setting}: the demo sets {key} itself; wanted an option of its own, or "
                    "a run file (--config)"
                )
        return [*(f"{key}={json.dumps(value)}" for key, value in changed.items()), *self.settings]


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
    # Before anything is started: a wrong setting is said at once.
    config.load(demo.config_file, overrides=demo.overrides(NO_REDIS), environ=demo.environ)
    for folder in (demo.run_dir, DATA):
        check_folder(folder, knob="runs")
    make_start(demo.made_on)
    demo.run_dir.mkdir(parents=True, exist_ok=True)
    with _children_of(demo.run_dir) as children:
        course = _started(demo, children)
        return take(course, children, write_report=write_report, started_s=started)


def _children_of(run_dir: Path) -> Children:
    """Whose rows of failures end with each further step."""
    return Children(run_dir / "logs", progress=functools.partial(steps_done, run_dir))


def _started(demo: Demo, children: Children) -> Course:
    """Start the services, Redis first: it ends last. Clips are written while they load."""
    redis_url = keep_redis(children, demo.run_dir / "redis", demo.password)
    overrides = demo.overrides(redis_url)
    settings = run_arguments(demo.config_file, overrides)
    tempsamp = [sys.executable, "-m", "tempsamp"]
    for name in ("reward", *replica_names(demo.replicas)):
        children.start(
            name,
            [*tempsamp, name.partition("-")[0], "serve", *settings],
            environ=demo.environ,
            restarts=MAX_RESTARTS,
        )
    with waiting(console, "writing clips"):
        for split in dict.fromkeys(("train", "validation", demo.split)):
            regimes.write_split(DATA, demo.made_on, split)
    return Course(
        run=config.load(demo.config_file, overrides=overrides, environ=demo.environ),
        settings=settings,
        environ=demo.environ,
        ranks=demo.ranks,
        resume=demo.resume,
        split=demo.split,
        eval_queries=demo.eval_queries,
        evaluates_best=demo.evaluates_best,
    )


def make_start(regime: Regime) -> None:
    """Make the start checkpoint of a regime that needs one, unless it is there; minutes on a core.

    Raises:
        ChildError: it could not be made; carries the end of the log.
    """
    out = STARTS / regime.name
    if regime.start is None or out.exists():
        return
    STARTS.mkdir(parents=True, exist_ok=True)
    command = ["jobs.toy.make_model", "--start", regime.name]
    command += ["--out", str(out), "--clips", str(STARTS / f"{regime.name}-clips")]
    _make(f"the start checkpoint of {regime.name}", command, log=STARTS / f"{regime.name}.log")


def decode_clips(regime: Regime, *, config_file: Path, split: Split) -> None:
    """Write the clips of a regime, and into `CLIP_CACHE` what is not there yet of them decoded, for
    runs that ask for each of them again and again.

    Args:
        regime: whose clips.
        config_file: how frames are sampled.
        split: what is evaluated on.

    Raises:
        ChildError: not all could be decoded; carries the end of the log.
    """
    rows = [regimes.write_split(DATA, regime, each) for each in ("train", "validation", split)]
    command = ["tempsamp", "data", "preprocess", "--config", str(config_file)]
    command += ["--cache", str(CLIP_CACHE), "--video-root", str(regime.video_root(DATA))]
    command += [word for path in rows for word in ("--input", str(path))]
    log = CLIP_CACHE.with_name(f"{CLIP_CACHE.name}-{regime.name}.log")
    _make(f"the clip cache of {regime.name}", command, log=log)


def _make(what: str, module: Sequence[str], *, log: Path) -> None:
    """Run a module of ours to its end."""
    with waiting(console, f"making {what}"), Children(log.parent) as made:
        child = made.start(log.stem, [sys.executable, "-m", *module], ends=True)
        while not child.is_done:
            made.check()
            time.sleep(POLL_S)


def replica_names(count: int) -> list[str]:
    """What the replicas of a demo are called as children, and in the names of their logs."""
    return ["rollout", *(f"rollout-{number}" for number in range(2, count + 1))]


def run_attached(course: Course, *, write_report: bool) -> dict[str, Any]:
    """Run the demo on services that somebody else keeps; returns the summary.

    Raises:
        ConfigError: the rows are not there.
        TempSampError: the services were not up in time, or the learner failed.
    """
    started = time.monotonic()
    check_folder(course.folder, knob="learner.run_dir")
    for split in ("train", course.split):
        if not course.rows(split).is_file():
            raise ConfigError(
                f"learner.rows: found no {course.rows(split)}, wanted the demo's rows there "
                "(`python -m jobs.toy.clips FOLDER` writes them)"
            )
    with _children_of(course.folder) as children:
        return take(course, children, write_report=write_report, started_s=started)


def command(
    method: Annotated[
        str | None, typer.Option(help=f"{', '.join(METHODS)}; default: {DEFAULT_METHOD}")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="default: the config's")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="default: 0")] = None,
    run: Annotated[str | None, typer.Option(help="name below runs/")] = None,
    resume: Annotated[
        bool, typer.Option(help="go on with --run, or with the latest run, from its checkpoint")
    ] = False,
    eval_split: Annotated[Split, typer.Option(help="what is evaluated on")] = "test",
    eval_queries: Annotated[
        int | None, typer.Option(min=1, help="only the first held-out queries; default: all")
    ] = None,
    report_html: Annotated[bool, typer.Option("--report/--no-report")] = True,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="Use the running services of this run file, which also says what to train; a run "
            "with a checkpoint goes on.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="section.key=value, over --config or the demo's own."),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="vLLM replicas, without --config; default: 1")
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="learner processes")] = 1,
    regime: Annotated[
        str | None, typer.Option(help=f"clips, rows and start: {', '.join(REGIMES)}")
    ] = None,
    evaluate_best: Annotated[
        bool, typer.Option(help="evaluate the version that validated best too")
    ] = False,
) -> None:
    """Run the ring on this machine: train, evaluate before and after, write a report."""
    handler = terminal.LogLines(console)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    if config_file is not None:
        in_the_file = {
            "--method": (method, "shared.strategy"),
            "--steps": (steps, "learner.steps"),
            "--seed": (seed, "shared.seed"),
            "--run": (run, "learner.run_dir"),
        }
        _refuse_beside_config(in_the_file)
        if regime is not None or evaluate_best:
            raise ConfigError(
                "--regime, --evaluate-best: found one beside --config, wanted none: they make a "
                "run of their own on this machine"
            )
        if replicas is not None:
            raise ConfigError(
                f"--replicas: found {replicas} beside --config, wanted none: the services of a "
                "run file have their own"
            )
        course = _attached(
            config_file, overrides or (), ranks=ranks, split=eval_split, eval_queries=eval_queries
        )
        _finish(
            lambda: run_attached(course, write_report=report_html),
            folder=course.folder,
            again="the same command goes on from the last checkpoint",
            report=report_html,
        )
        return
    method, seed = method or DEFAULT_METHOD, seed or 0
    if method not in METHODS:
        raise ConfigError(f"METHOD: found {method!r}, wanted one of {', '.join(METHODS)}")
    if regime is not None and regime not in REGIMES:
        raise ConfigError(f"REGIME: found {regime!r}, wanted one of {', '.join(REGIMES)}")
    demo = Demo(
        method=method,
        steps=steps,
        seed=seed,
        name=run or (_latest_name() if resume else _new_name(method, seed)),
        resume=resume,
        split=eval_split,
        eval_queries=eval_queries,
        replicas=replicas or 1,
        ranks=ranks,
        settings=overrides or (),
        regime=REGIMES[regime] if regime else None,
        evaluates_best=evaluate_best,
    )
    _finish(
        lambda: run_demo(demo, write_report=report_html),
        folder=demo.run_dir.relative_to(ROOT),
        again=f"RESUME=1 RUN={demo.name} goes on from the last checkpoint",
        report=report_html,
    )


def _refuse_beside_config(in_the_file: Mapping[str, tuple[object, str]]) -> None:
    for option, (value, knob) in in_the_file.items():
        if value is not None:
            raise ConfigError(
                f"{option}: found {value} beside --config, wanted it there or as --set {knob}="
            )


def _attached(
    config_file: Path,
    overrides: Sequence[str],
    *,
    ranks: int,
    split: Split,
    eval_queries: int | None,
) -> Course:
    run = config.load(config_file, overrides=overrides)
    return Course(
        run=run,
        settings=run_arguments(config_file, overrides),
        environ={},
        ranks=ranks,
        resume=(run.learner.run_dir / "checkpoints").exists(),
        split=split,
        eval_queries=eval_queries,
    )


def _finish(run: Callable[[], dict[str, Any]], *, folder: Path, again: str, report: bool) -> None:
    """Run, then show the summary; Ctrl-C and SIGTERM end it with a word on how to go on."""
    try:
        with interruptible():
            summary = run()
    except KeyboardInterrupt as error:
        console.print(f"stopped; {again}")
        raise typer.Exit(130) from error
    console.print_json(data=summary)
    if report:
        console.print(f"report: {folder}/report.html")


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
