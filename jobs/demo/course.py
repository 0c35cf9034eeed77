"""What a demo does with a ring that is up: evaluate, train, evaluate again, write what came of it.

    Course + running Redis, reward and replicas -> runs/<run>/{summary.json, report.html}

Who started the ring does not matter: `jobs.demo.run` does on one machine, `docker compose` in
containers. The learner is started here, as its end is the end of the training.
"""

import contextlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from common.config import Run, Strategy
from common.errors import EngineError, TempSampError
from common.logs import SAY_EVERY_S, NowAndThen
from common.queue.broker import Broker
from common.queue.disk import write_file
from common.rest import direct
from jobs.demo.baselines import blind_baselines
from jobs.demo.figures import Evaluation, evaluation_of
from jobs.demo.summary import (
    ANSWERS_AFTER,
    ANSWERS_BEFORE,
    ANSWERS_BEST,
    METRICS_FILE,
    SUMMARY_FILE,
    VALIDATION_FILE,
    BestEvaluation,
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
from jobs.local import terminal
from jobs.local.processes import Child, Children
from jobs.local.redis import free_port
from jobs.local.terminal import Entry, State, short, steps_in_words
from jobs.local.waiting import waiting

logger = logging.getLogger(__name__)

METHODS: dict[str, Strategy] = {
    "grpo": "none",
    "tempsamp": "shaping",
    "mixed": "mixed",
    "anchor": "anchor",
    "downscale": "downscale",
    "sft": "sft",
}
"""What people call the strategies; sft is a control that trains on the injected answers alone."""
METHOD_OF = {strategy: method for method, strategy in METHODS.items()}
NUM_SAMPLES = 8
"""Answers at temperature 1 to one query of each held-out clip."""
QUESTIONS_IN_WORK = 32
READY_TIMEOUT_S = 240.0
UNREACHABLE_S = 10.0
"""After which a replica that died while it was asked is looked for anew, at its new address."""
MAX_EVALUATIONS = 4
"""Of the same weights, each on the answers of those before."""
BEST_FILE = "best.json"
"""Where the learner names the version that validated best."""
MAX_LEARNER_RESTARTS = 3
"""In a row without getting further: loading takes a quarter of a minute."""
POLL_S = 0.2
STATE_CHARS = len("training")

console = terminal.console()

Split = Literal["validation", "test"]
"""Held out."""


@dataclass(frozen=True)
class Course:
    """One run: its configuration, and what is measured."""

    run: Run
    settings: Sequence[str]
    """The same configuration as arguments of `tempsamp learner`."""
    environ: Mapping[str, str]
    """Of the learner, beside this process's own."""
    ranks: int
    """Processes of the learner."""
    resume: bool
    split: Split
    eval_queries: int | None
    """Only the first held-out queries; None: all."""
    evaluates_best: bool = False
    """Whether the version that validated best is evaluated too, by a replica of its own."""

    @property
    def folder(self) -> Path:
        """Everything this run writes."""
        return self.run.learner.run_dir

    @property
    def method(self) -> str:
        """What people call the run's strategy."""
        return METHOD_OF[self.run.shared.strategy]

    def rows(self, split: Literal["train"] | Split) -> Path:
        """Of one split: they lie side by side."""
        return self.run.learner.rows.parent.parent / split / "rows.jsonl"

    @property
    def video_root(self) -> Path:
        """Where paths of the rows start."""
        return self.run.shared.video.roots[0]


def take(
    course: Course, children: Children, *, write_report: bool, started_s: float
) -> dict[str, Any]:
    """Go the whole way; returns the summary.

    Args:
        children: gets the learner; ones of the caller's in it are watched meanwhile.
        started_s: `time.monotonic()` at which the run began.

    Raises:
        TempSampError: the ring was not up in time, or a child failed.
    """
    folder = course.folder
    held_out = _held_out(course)
    with waiting(console, "waiting for the rollout replica to load the model"):
        reward_url = course.run.shared.reward_url
        _wait_until_ready(reward_url, children, what="the reward service")
        _wait_for_replicas(course.run, children)
    _drop_stale_answers(course)
    start = _evaluate(course, children, held_out, version=0, out=folder / ANSWERS_BEFORE)
    train_wall_s = _train(course, children, resume=course.resume)
    steps = read_metrics(folder / METRICS_FILE)
    version = int(steps[-1]["policy_version"])
    end = _evaluate(course, children, held_out, version=version, out=folder / ANSWERS_AFTER)
    best = _evaluate_best(course, children, held_out, last=end, version=version)
    train, _ = read_questions(course.rows("train"))
    summary = build_summary(
        RunFacts(
            run=folder.name,
            method=course.method,
            steps=int(steps[-1]["step"]),
            seed=course.run.shared.seed,
            eval_split=course.split,
            validation_mode=course.run.learner.validation.mode,
            wall_s=round(time.monotonic() - started_s, 1),
            train_wall_s=round(train_wall_s, 1),
            weight_versions=version,
            groups_trained=int(steps[-1]["intake/groups_taken"]),
            groups_unscored=int(steps[-1]["intake/groups_unscored"]),
            policy_version_start=0,
            policy_version_end=version,
            restarts=children.restarts,
        ),
        start=start,
        end=end,
        best=best,
        baselines=blind_baselines(train, evaluated=held_out.questions),
        metrics=steps,
    )
    write_file(folder / SUMMARY_FILE, json.dumps(summary, indent=2), knob="learner.run_dir")
    if write_report:
        from jobs.demo import report

        report.write_report(
            folder, summary=summary, start=start, end=end, video_root=course.video_root
        )
    return summary


def _held_out(course: Course) -> HeldOut:
    run = course.run
    return HeldOut(
        course.rows(course.split),
        video=run.shared.video,
        sampling=AnswerSampling(
            max_tokens={"answer": run.shared.sampling.max_tokens},
            num_samples=NUM_SAMPLES,
            sampled="clips",
            seed=0,
        ),
        limit=course.eval_queries,
        concurrency=QUESTIONS_IN_WORK,
        token=run.shared.tokens.of("generate"),
    )


def _drop_stale_answers(course: Course) -> None:
    """A resumed run keeps what its start answered; other answers are of weights that are gone."""
    for name in (ANSWERS_AFTER,) if course.resume else (ANSWERS_BEFORE, ANSWERS_AFTER):
        shutil.rmtree(course.folder / name, ignore_errors=True)


def _evaluate(
    course: Course, children: Children, held_out: HeldOut, *, version: int, out: Path
) -> Evaluation:
    """Ask the held-out queries; a replica that dies meanwhile is asked the rest when it is back."""
    when = f"{out.name} training"
    for left in reversed(range(MAX_EVALUATIONS)):
        endpoints = _wait_for_replicas(course.run, children)
        asking = held_out.ask(version, endpoints=endpoints, out=out, retry_s=UNREACHABLE_S)
        try:
            with waiting(console, f"evaluating {when}"):
                children.run(asking)
            break
        except EngineError as error:
            if not left:
                raise
            logger.warning("evaluation %s goes on: %s", when, error)
            if version:  # a replica that came back has the weights of the start
                _train(course, children, resume=True)
    # A run that is resumed with fewer queries has answers to more.
    ids = {question.id for question in held_out.questions}
    found = evaluation_of(record for record in read_records(out) if record.id in ids)
    console.print(f"{when}: held-out mIoU {short(found.greedy.miou, digits=3)}")
    return found


def _evaluate_best(
    course: Course, children: Children, held_out: HeldOut, *, last: Evaluation, version: int
) -> BestEvaluation | None:
    """Of the version that validated best, if it is wanted; the start is never that version."""
    named = course.folder / "checkpoints" / BEST_FILE
    if not course.evaluates_best or not named.exists():
        return None
    step = int(json.loads(named.read_text(encoding="utf-8"))["step"])
    if step == version:
        return BestEvaluation(step, last)
    port = free_port()
    served = {
        "shared.model": str(course.folder / f"checkpoints/step-{step:06d}/hf"),
        "rollout.weights": "checkpoint",
        "rollout.port": port,
    }
    overrides = [word for key in served for word in ("--set", f"{key}={json.dumps(served[key])}")]
    command = [sys.executable, "-m", "tempsamp", "rollout", "serve", *course.settings, *overrides]
    children.start("rollout-best", command, environ=course.environ)
    url, out = f"http://127.0.0.1:{port}", course.folder / ANSWERS_BEST
    shutil.rmtree(out, ignore_errors=True)
    with waiting(console, f"evaluating step {step:,}, which validated best"):
        _wait_until_ready(url, children, what="the replica of the best version")
        # A checkpoint is served as version 0.
        children.run(held_out.ask(0, endpoints=[url], out=out, retry_s=UNREACHABLE_S))
    found = evaluation_of(read_records(out))
    console.print(
        f"step {step:,}, best on validation: held-out mIoU {short(found.greedy.miou, digits=3)}"
    )
    return BestEvaluation(step, found)


def _train(course: Course, children: Children, *, resume: bool) -> float:
    """Run the learner to its end, and show what it writes; returns seconds.

    A finished run that is resumed brings its last weights to the replicas and ends.
    """
    started = time.monotonic()
    command = [sys.executable, "-m", "tempsamp", "learner", *course.settings]
    command += ["--ranks", str(course.ranks)]
    resumed = [*command, "--resume"]
    learner = children.start(
        "learner",
        resumed if resume else command,
        again=resumed,  # without a checkpoint that begins anew
        environ=course.environ,
        restarts=MAX_LEARNER_RESTARTS,
        ends=True,
    )
    show = _show_bar if console.is_terminal else _show_lines
    show(course, children, learner)
    return time.monotonic() - started


def steps_done(run_dir: Path) -> float:
    """Steps that the run has made; fewer again after the learner went back to a checkpoint."""
    return (last_metrics(run_dir / METRICS_FILE) or {}).get("step", 0.0)


def _show_bar(course: Course, children: Children, learner: Child) -> None:
    with terminal.bar(console) as progress:
        total = course.run.learner.steps
        task = progress.add_task(course.method, total=total, state="starting")
        ended = False
        while not ended:
            children.check()
            ended = learner.is_done  # first, or its last line is missed
            if step := last_metrics(course.folder / METRICS_FILE):
                validation = last_metrics(course.folder / VALIDATION_FILE)
                shown = figures_of(step, validation)
                progress.update(task, completed=step["step"], state="training", shown=shown)
            time.sleep(POLL_S)
        progress.update(task, state="finished")


def _show_lines(course: Course, children: Children, learner: Child) -> None:
    """For logs: a line now and then, and one for the last step."""
    said_step, ended = 0.0, False
    word, silence = NowAndThen(), NowAndThen(first_s=SAY_EVERY_S)
    while not ended:
        children.check()
        ended = learner.is_done
        step = last_metrics(course.folder / METRICS_FILE)
        total = course.run.learner.steps
        if step and step["step"] > said_step and (word.is_due() or ended):
            validation = last_metrics(course.folder / VALIDATION_FILE)
            done = f"step {steps_in_words(step['step'], total)}"
            said = "  ".join((done, *figures_of(step, validation)))
            console.print(Entry(State("training", width=STATE_CHARS), said))
            said_step, silence = step["step"], NowAndThen(first_s=SAY_EVERY_S)
        elif silence.is_due():
            state = State("training" if step else "starting", width=STATE_CHARS)
            awaited = f"step {steps_in_words(said_step + 1, total)}"
            console.print(Entry(state, f"waiting for {awaited}, log in {learner.log}"))
        time.sleep(POLL_S)


def _wait_until_ready(url: str, children: Children, *, what: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        children.check()
        with contextlib.suppress(httpx.HTTPError), direct.client(timeout=2.0) as client:
            if client.get(f"{url}/readyz").is_success:
                return
        time.sleep(POLL_S)
    raise TempSampError(f"{what} was not ready after {READY_TIMEOUT_S:.0f} s")


def _wait_for_replicas(run: Run, children: Children) -> list[str]:
    """Addresses of the live replicas, from the registry; Redis may be on its way back."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        children.check()
        if urls := children.run(_registered(run)):
            return urls
        time.sleep(POLL_S)
    raise TempSampError(f"no rollout replica was ready after {READY_TIMEOUT_S:.0f} s")


async def _registered(run: Run) -> list[str]:
    broker = Broker.of(run.shared)
    try:
        return [replica.url for replica in await broker.replicas()]
    finally:
        await broker.close()


def figures_of(step: StepMetrics, validation: StepMetrics | None) -> tuple[str, ...]:
    """What a step shows of itself, the most important first; what it has not is left out."""
    found = [
        ("val", None if validation is None else validation["val/miou"]),
        ("IoU", step.get("reward/iou")),
        ("reward", step.get("reward/reward")),
        ("stale", step.get("intake/staleness_steps_mean")),
    ]
    return tuple(f"{name} {short(value)}" for name, value in found if value is not None)
