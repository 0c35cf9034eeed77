"""All checks in order: what needs nothing first, what takes longest last.

    Round -> findings

A check that cannot be made because another one failed says so, and is no failure of its own.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from common.config import Run
from common.errors import ConfigError
from common.model.architecture import architecture_of
from jobs.doctor import engines, fleet, inputs, machine, model, neighbours, prompt, room
from jobs.doctor.finding import Finding, findings_of, one_line
from jobs.doctor.machine import Gpu


@dataclass(frozen=True, kw_only=True)
class Round:
    """What is looked at."""

    run: Run | None
    """None: this machine alone."""
    run_file: Path | None
    overrides: Sequence[str]
    asks_fleet: bool
    compares: bool
    """Whether engine and learner are started."""
    console: Console
    """Shows what takes a while, on a terminal."""


def findings(taken: Round) -> Iterator[Finding]:
    """Everything, a line at a time."""
    run = taken.run
    yield from findings_of("machine", machine.python)
    yield from findings_of("machine", machine.packages)
    yield from findings_of("machine", machine.redis_server)
    if run is None or (run_file := taken.run_file) is None:
        return
    cards = machine.installed_gpus()
    yield from _of_run(run, cards, taken.console)
    yield from findings_of("redis", lambda: neighbours.redis(run))
    yield from findings_of("reward", lambda: neighbours.reward(run))
    if taken.asks_fleet:
        yield from findings_of("fleet", lambda: fleet.fleet(run))
    given = inputs.Inputs()
    yield from _of_inputs(run, given)
    folder, said = model.files(run)
    yield from said
    if folder is not None:
        yield from _of_model(run, folder, given, cards)
    if not taken.compares:
        return
    if folder is None or given.clip is None:
        cure = "mend the lines above first, or leave it out with --no-engines"
        found = "not compared: no model or no clip"
        yield Finding("engine", "against learner", "warn", found, cure)
        return
    with _busy(taken.console, "starting engine and learner to compare them"):
        yield from findings_of(
            "engine",
            lambda: engines.compare(
                run,
                given,
                architecture=architecture_of(str(folder)),
                config_file=run_file,
                overrides=taken.overrides,
                gpus=cards,
            ),
        )


def _of_run(run: Run, cards: Sequence[Gpu], console: Console) -> Iterator[Finding]:
    def ask() -> machine.Torch:
        with _busy(console, "asking torch for GPUs"):
            return machine.installed_torch()

    yield from findings_of("machine", lambda: machine.gpus(run, installed=cards, ask=ask))
    yield from findings_of("machine", lambda: machine.compiler(run))
    yield from findings_of("machine", lambda: machine.names(run))
    yield from findings_of("machine", lambda: room.writable(run))
    with contextlib.suppress(ConfigError):  # said with the model's files
        architecture = architecture_of(run.shared.model)
        yield from findings_of("machine", lambda: room.disk(run, architecture=architecture))
        yield from findings_of("machine", lambda: room.memory(run, architecture=architecture))


def _of_inputs(run: Run, given: inputs.Inputs) -> Iterator[Finding]:
    yield from findings_of("inputs", lambda: inputs.roots(run))
    yield from findings_of("inputs", lambda: inputs.rows(run, given))
    if given.rows:
        yield from findings_of("inputs", lambda: inputs.clips(run, given))


def _of_model(
    run: Run, folder: Path, given: inputs.Inputs, cards: Sequence[Gpu]
) -> Iterator[Finding]:
    architecture = architecture_of(str(folder))
    yield from findings_of("model", lambda: model.tensors(folder, architecture=architecture))
    yield from findings_of("model", lambda: model.fits(run, architecture=architecture, gpus=cards))
    if given.clip is None or given.frames is None:
        return
    try:
        made = prompt.rendered(folder, given.rows[0], clip=given.clip, frames=given.frames)
    except (ValueError, OSError, KeyError, TypeError) as error:
        cure = "tokenizer, processor and chat template have to be those of the checkpoint"
        found = one_line(f"cannot be rendered: {type(error).__name__}: {error}")
        yield Finding("prompt", "first prompt", "fail", found, cure)
        return
    yield from prompt.findings(made, clip=given.clip, shared=run.shared)


def _busy(console: Console, what: str) -> contextlib.AbstractContextManager[object]:
    """A spinner on a terminal; nothing in a log."""
    return console.status(what) if console.is_terminal else contextlib.nullcontext()
