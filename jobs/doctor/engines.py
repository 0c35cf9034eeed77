"""Engine against learner: a short ring of the run's own model, settings and rows.

    Run + Inputs -> redis-server, reward, replica, learner, all of our own -> findings

The learner compares its log-probabilities with the engine's at the start and after each of
`STEPS` steps, on the same prompt (`learner.probe_every`). It trains on true answers alone, at a
learning rate at which keys, features or adapters of old weights would show at once. Prompts' token
ids, visual tokens and grid have to be equal for that, or the learner refuses the group. Nothing of
the run itself is touched: Redis, names and folders are others, and no checkpoint is kept.
"""

import contextlib
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import Run
from common.model.architecture import Architecture
from common.model.memory import USABLE
from common.secrets import only as secrets_of_child
from jobs.demo.summary import METRICS_FILE, read_metrics
from jobs.doctor.finding import Finding, one_line
from jobs.doctor.inputs import Inputs
from jobs.doctor.machine import Gpu
from jobs.local.processes import Child, ChildError, Children, run_arguments
from jobs.local.redis import free_port, keep_redis
from jobs.recipes.plan import plan
from jobs.recipes.times import Fleet

AREA = "engine"
STEPS = 2
LEARNING_RATE = 1e-3
"""Moves each weight by about as much in a step: tiny or large, another policy."""
ROWS = 64
"""Of the run's first usable ones."""
TIMEOUT_S = 1800.0
"""A large model on a cold disk."""
POLL_S = 0.2
COMPARED = "engine and learner compared"
"""Event of the learner's log."""
GRAD_NORM = "learner/grad_norm"
SAID = "tempsamp: "
"""How a command's last line begins."""


@dataclass(frozen=True)
class Comparison:
    """A probe's figures, as the learner logs them."""

    version: int
    max_nats: float
    mean_nats: float
    num_tokens: int


@dataclass(frozen=True)
class Outcome:
    """What a ring of the doctor's came to."""

    comparisons: Sequence[Comparison]
    grad_norms: Sequence[float]
    """Of its steps: at 0 no weight has moved, and old ones could not be told from new ones."""


def room(run: Run, *, architecture: Architecture, gpus: Sequence[Gpu]) -> Finding | None:
    """What keeps both sides from running on this machine; None: nothing."""
    there = len(_visible(len(gpus)))
    wanted = _of_replica(run) + (run.learner.device == "cuda")
    found = f"not compared: {there} GPUs here, a rank and a replica want {wanted}"
    if there >= wanted:
        found = _too_small(run, architecture=architecture, gpus=gpus)
    if not found:
        return None
    cure = (
        "run the doctor where more of them are, or with --no-engines; the run's own first probe "
        "compares too"
    )
    return Finding(AREA, "against learner", "warn", found, cure)


def _too_small(run: Run, *, architecture: Architecture, gpus: Sequence[Gpu]) -> str:
    """What a rank of the doctor's learner takes by the arithmetic of `tempsamp plan`, if it is more
    than a card has; else nothing."""
    if run.learner.device != "cuda":
        return ""
    shared_by_all = run.learner.model_copy(update={"shard_within": "all"})
    # Times are not looked at, so speeds do not matter.
    fleet = Fleet(
        gpu_tflops=1.0,
        gpu_bandwidth_gbs=1.0,
        learner_gpus=(count := ranks(run, gpus=len(gpus))),
        rollout_gpus=run.rollout.tensor_parallel,
        gpu_memory_gb=min(gpu.memory_bytes for gpu in gpus) / 1e9,
    )
    made = plan(
        run.model_copy(update={"learner": shared_by_all}), architecture=architecture, fleet=fleet
    )
    if made.rank.peak <= (usable := USABLE * fleet.gpu_bytes):
        return ""
    return (
        f"not compared: a rank of {count} beside a replica takes about {made.rank.peak / 1e9:.1f} "
        f"GB, and a card has {usable / 1e9:.1f}"
    )


def ranks(run: Run, *, gpus: int) -> int:
    """Of the doctor's learner: one on each GPU that the replica leaves, as far as a step of the run
    has groups for them.

    Args:
        run: whose engines are compared.
        gpus: of this machine.
    """
    if run.learner.device != "cuda":
        return 1
    left = len(_visible(gpus)) - _of_replica(run)
    return max(1, min(left, run.learner.groups_per_step))


def compare(
    run: Run,
    inputs: Inputs,
    *,
    architecture: Architecture,
    config_file: Path,
    overrides: Sequence[str],
    gpus: Sequence[Gpu],
) -> Iterator[Finding]:
    """Start the ring, wait for the comparisons, and judge them."""
    if (missing := room(run, architecture=architecture, gpus=gpus)) is not None:
        yield missing
        return
    with tempfile.TemporaryDirectory(prefix="tempsamp-doctor-") as folder:
        place = Path(folder)
        rows = place / "rows.jsonl"
        rows.write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in inputs.lines[:ROWS]))
        try:
            outcome = _outcome(run, rows, config_file, overrides, place, gpus=len(gpus))
        except ChildError as error:
            yield failure(str(error))
            return
    yield from findings(outcome, run=run)


def findings(outcome: Outcome, *, run: Run) -> Iterator[Finding]:
    """What the comparisons prove; those beyond the bounds have ended the learner before."""
    compared = outcome.comparisons
    if len(compared) <= STEPS:
        found = f"{len(compared)} of {STEPS + 1} comparisons within {TIMEOUT_S:.0f} s"
        cure = "the replica did not answer at the learner's version: try with a shorter prompt"
        yield Finding(AREA, "against learner", "fail", found, cure)
        return
    first, *later = compared
    yield Finding(AREA, "token ids, visual tokens, grid", "ok", "equal on both sides")
    yield Finding(AREA, "log-probabilities", "ok", _nats(first))
    if not all(norm > 0 for norm in outcome.grad_norms[:STEPS]):
        found = f"gradients of norm {list(outcome.grad_norms)}: no weight has moved"
        cure = "see whether learner.loss and learner.advantage leave true answers a gradient"
        yield Finding(AREA, "caches after an update", "fail", found, cure)
        return
    tower = "keys" if run.learner.freeze_vision else "keys and clip features"
    cleared = f"{tower} of old weights are dropped: {_nats(later[-1])} after {STEPS} updates"
    yield Finding(AREA, "caches after an update", "ok", cleared)
    if run.learner.lora is not None:
        yield Finding(AREA, "adapters", "ok", f"the engine samples them: {_nats(later[-1])}")


def failure(said: str) -> Finding:
    """Of a child that ended: its own last line, or the end of its log."""
    lines = [line for line in said.splitlines() if line.strip()]
    own = [line.removeprefix(SAID) for line in lines if line.startswith(SAID)]
    found = own[-1] if own else " ".join(lines[:1] + lines[-2:])
    return Finding(AREA, "against learner", "fail", one_line(found, most_chars=900), _CURE)


_CURE = "see what it names; versions of vllm and transformers, shared.model and shared.dtype first"


def settings(run: Run, *, rows: Path, folder: Path, redis_url: str, reward_url: str) -> list[str]:
    """What differs from the run file, as section.key=value."""
    changed: dict[str, Any] = {
        "shared.run_id": f"doctor-{secrets.token_hex(4)}",
        "shared.redis_url": redis_url,
        "shared.reward_url": reward_url,
        # True answers alone have gradients whatever the policy samples.
        "shared.strategy": "sft",
        "reward.host": "127.0.0.1",
        "reward.port": int(reward_url.rpartition(":")[2]),
        "rollout.host": "127.0.0.1",
        "rollout.port": 0,
        "learner.host": "127.0.0.1",
        "learner.metrics_host": "127.0.0.1",
        "learner.metrics_port": 0,
        "learner.rows": str(rows),
        "learner.run_dir": str(folder / "run"),
        # More than are waited for: the last step would write a checkpoint.
        "learner.steps": 10 * STEPS,
        "learner.groups_per_step": 1,
        "learner.min_replicas": 1,
        # Ranks are as many as the machine has GPUs for, which a number may not divide.
        "learner.shard_within": "all",
        "learner.checkpoint_every": 0,
        "learner.probe_every": 1,
        "learner.optimizer.lr": LEARNING_RATE,
        "learner.optimizer.warmup_steps": 0,
    }
    return [f"{key}={json.dumps(value)}" for key, value in changed.items()]


def comparisons(log: str) -> list[Comparison]:
    """Those in a learner's log, a JSON object a line, in order."""
    found = []
    for line in log.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(line)
            if said["event"] == COMPARED:
                found.append(
                    Comparison(
                        version=said["policy_version"],
                        max_nats=said["learner/probe_logprob_gap_nats"],
                        mean_nats=said["learner/probe_logprob_gap_mean_nats"],
                        num_tokens=said["num_tokens"],
                    )
                )
    return found


def _outcome(
    run: Run, rows: Path, config_file: Path, overrides: Sequence[str], folder: Path, *, gpus: int
) -> Outcome:
    """Run the ring until the last comparison is there, or time is up.

    Raises:
        ChildError: one of its processes ended.
    """
    token, password = secrets.token_hex(16), secrets.token_hex(16)
    environ = {**secrets_of_child(token=token, redis_password=password), "OMP_NUM_THREADS": "1"}
    with Children(folder / "logs") as children:
        redis_url = keep_redis(children, folder / "redis", password)
        changed = settings(
            run,
            rows=rows,
            folder=folder,
            redis_url=redis_url,
            reward_url=f"http://127.0.0.1:{free_port()}",
        )
        arguments = run_arguments(config_file, [*overrides, *changed])
        command = [sys.executable, "-m", "tempsamp"]
        children.start("reward", [*command, "reward", "serve", *arguments], environ=environ)
        children.start("rollout", [*command, "rollout", "serve", *arguments], environ=environ)
        learner = children.start(
            "learner",
            [*command, "learner", *arguments, "--ranks", str(ranks(run, gpus=gpus))],
            environ=environ | cards(run, gpus=gpus),
        )
        try:
            found = _wait(learner, children)
            steps = read_metrics(folder / "run" / METRICS_FILE)
            return Outcome(found, [step[GRAD_NORM] for step in steps])
        finally:
            # It would save a checkpoint, which nobody wants.
            children.unwatch(learner)
            learner.process.kill()


def _wait(learner: Child, children: Children) -> list[Comparison]:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        children.check()
        found = comparisons(learner.log.read_text(encoding="utf-8", errors="replace"))
        if len(found) > STEPS:
            return found
        time.sleep(POLL_S)
    return comparisons(learner.log.read_text(encoding="utf-8", errors="replace"))


def cards(run: Run, *, gpus: int) -> dict[str, str]:
    """The learner's, behind those that the replica takes; `gpus`: of this machine."""
    if run.learner.device != "cuda":
        return {}
    first = _of_replica(run)
    own = _visible(gpus)[first : first + ranks(run, gpus=gpus)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(own)}


def _of_replica(run: Run) -> int:
    """How many GPUs it takes."""
    return run.rollout.tensor_parallel if run.rollout.device == "cuda" else 0


def _visible(gpus: int) -> list[str]:
    """Those of this machine's that processes may use, as CUDA names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(gpus)]
    return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]


def _nats(compared: Comparison) -> str:
    return (
        f"{compared.max_nats:.2g} nats apart at most, {compared.mean_nats:.2g} in the mean over "
        f"{compared.num_tokens} tokens"
    )
