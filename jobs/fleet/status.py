"""`tempsamp status`: who runs, in which phase, how fast, and what went wrong last.

    run file -> [jobs.fleet.services] -> a table, or one JSON object

Exit code 1 when nothing of the run is there, 2 when Redis cannot be asked.
"""

import asyncio
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text

from common import config
from common.config import Run
from common.config.fields import LONGEST_S
from common.errors import ConfigError
from common.rest.address import checked_url
from jobs.fleet.services import Fleet, look, url_of_learner
from jobs.fleet.table import page
from jobs.local.terminal import console


def command(
    run_file: Annotated[Path, typer.Option("--config", "-c", help="The run's TOML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="section.key=value, over the file; may be repeated."),
    ] = None,
    learner: Annotated[
        str | None,
        typer.Option(help="URL of rank 0; default: learner.metrics_host and metrics_port."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, and no table.")] = False,
    watch: Annotated[
        float | None,
        typer.Option(
            min=0.5, max=LONGEST_S, help="Look again every so many seconds, until Ctrl-C."
        ),
    ] = None,
) -> None:
    """Show the replicas, the learner and the queues of a run."""
    if as_json and watch is not None:
        raise ConfigError("--watch: found it with --json, wanted one of them")
    run = config.load(run_file, overrides=overrides or ())
    url = url_of_learner(run.learner) if learner is None else checked_url(learner, knob="--learner")
    if watch is not None:
        _watch(run, learner_url=url, every_s=watch)
        return
    fleet = asyncio.run(look(run, learner_url=url))
    if as_json:
        typer.echo(fleet.model_dump_json(indent=2))
    elif fleet.is_there:
        console().print(page(fleet))
    if not fleet.is_there:
        typer.echo(f"tempsamp: {_nothing(fleet)}", err=True)
        raise typer.Exit(1)


def _watch(run: Run, *, learner_url: str | None, every_s: float) -> None:
    """In place on a terminal; one page below the other in a pipe, where rich shows none till the
    end."""
    to = console()
    with Live(console=to, auto_refresh=False) if to.is_terminal else nullcontext() as live:
        while True:
            fleet = asyncio.run(look(run, learner_url=learner_url))
            shown = page(fleet) if fleet.is_there else Text(_nothing(fleet))
            if live is None:
                to.print(shown)
            else:
                live.update(shown, refresh=True)
            time.sleep(every_s)


def _nothing(fleet: Fleet) -> str:
    where = f" (asked {fleet.learner_url})" if fleet.learner_url else ""
    return (
        f"found no replica and no learner{where} of run {fleet.run_id!r}, wanted one: is it "
        "shared.run_id, shared.redis_url and --learner of a run that is up?"
    )
