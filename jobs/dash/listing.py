"""`tempsamp runs`: which runs there are, how far each is, and how well it answers held-out rows.

    folder -> [folder.find_runs] -> Listed, newest first -> a table, or JSON lines

Run folders alone are read; no service is asked. The pages of `tempsamp dash` show one of them.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from common.errors import ConfigError
from jobs.dash.command import DEFAULT_ROOT
from jobs.dash.folder import RunFolder, find_runs
from jobs.dash.state import Phase, RunState, state_of
from jobs.demo.course import METHOD_OF
from jobs.local.terminal import (
    Column,
    Listing,
    Row,
    State,
    console,
    duration,
    short,
    steps_in_words,
)

COLUMNS = (
    *(Column(heading) for heading in ("run", "state", "method", "model")),
    *(Column(heading, is_number=True) for heading in ("steps", "best mIoU")),
)


class Listed(BaseModel):
    """One run."""

    run: str
    method: str | None
    """What people call shared.strategy; None where the folder has no settings."""
    model: str | None
    step: int
    steps: int | None
    best: float | None
    """Highest mean IoU on held-out rows; None without a validation."""
    best_step: int | None
    phase: Phase
    quiet_s: float | None
    """Seconds since its last step."""


def command(
    root: Annotated[
        Path | None, typer.Argument(help="A folder of runs, or one run; default: runs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
) -> None:
    """List runs: method, steps, best validation, state."""
    folder = DEFAULT_ROOT if root is None else root
    found = [listed(run) for run in find_runs(folder).values()]
    if not found:
        raise ConfigError(f"RUN: found no run in {folder}, wanted a folder with some")
    if as_json:
        for one in found:
            typer.echo(one.model_dump_json())
        return
    console().print(table(found))


def listed(run: RunFolder) -> Listed:
    """What one folder says."""
    quiet_s = run.quiet_s()
    state = state_of(run.metrics(), run.validation(), settings=run.settings(), quiet_s=quiet_s)
    strategy, model = run.setting("shared.strategy"), run.setting("shared.model")
    best, best_step = _best(state)
    return Listed(
        run=run.name,
        method=METHOD_OF.get(strategy, strategy),
        model=None if model is None else Path(str(model)).name,
        step=state.step,
        steps=state.steps,
        best=best,
        best_step=best_step,
        phase=state.phase,
        quiet_s=quiet_s,
    )


def table(runs: Iterable[Listed]) -> Listing:
    """A row a run."""
    return Listing(COLUMNS, [Row(tuple(_cells(run))) for run in runs])


def _cells(run: Listed) -> Iterator[str | State]:
    yield run.run
    since = "" if run.quiet_s is None else f", {duration(run.quiet_s)} ago"
    yield State(run.phase, since)
    yield run.method or "-"
    yield run.model or "-"
    yield steps_in_words(run.step, run.steps)
    best = None if run.best is None else short(run.best, digits=3)
    yield "-" if best is None else f"{best} at {run.best_step:,}"


def _best(state: RunState) -> tuple[float | None, int | None]:
    """Of held-out rows; the trail of a run without them is of its own answers."""
    if state.trail is None or not state.trail.what.startswith("validation"):
        return None, None
    return state.trail.best, state.trail.best_step
