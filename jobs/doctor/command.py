"""`tempsamp doctor`: what stands between a run file and a run, each with its cure.

    run file -> [jobs.doctor.rounds] -> a line each, or JSON

Exit code by the worst line: 0 ok, 1 warn, 2 fail.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common import config
from common.errors import ConfigError
from jobs.doctor.finding import EXIT_CODES, Finding, exit_code
from jobs.local import terminal
from jobs.local.terminal import Entry, State

LEVEL_CHARS = max(map(len, EXIT_CODES))


def command(
    run_file: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="The run's TOML file; without one: this machine."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="section.key=value, over the file; may be repeated."),
    ] = None,
    asks_fleet: Annotated[
        bool, typer.Option("--fleet", help="Ask the learner and every replica of the run too.")
    ] = False,
    compares: Annotated[
        bool,
        typer.Option(
            "--engines/--no-engines",
            help="Start engine and learner and compare them; takes a minute or several.",
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, and no lines.")] = False,
) -> None:
    """Look for what would keep a run from working, and say what mends it."""
    if run_file is None and (asks_fleet or overrides):
        raise ConfigError("--config: found none beside --fleet or --set, wanted a run file")
    run = None if run_file is None else config.load(run_file, overrides=overrides or ())
    from jobs.doctor.rounds import Round, findings

    console = terminal.console(stderr=as_json)
    taken = Round(
        run=run,
        run_file=run_file,
        overrides=overrides or (),
        asks_fleet=asks_fleet,
        compares=compares,
        console=console,
    )
    found = []
    with _unlogged("common.queue"):
        for finding in findings(taken):
            found.append(finding)
            if not as_json:
                show(finding, console)
    if as_json:
        typer.echo(json.dumps({"findings": [one.as_json() for one in found]}, indent=2))
    else:
        console.print(summary(found))
    raise typer.Exit(exit_code(found))


def show(finding: Finding, console: Console) -> None:
    """A line, and the cure below it."""
    said = f"{finding.area}: {finding.name}: {finding.found}"
    cure = (f"→ {finding.cure}",) if finding.cure and finding.level != "ok" else ()
    console.print(Entry(State(finding.level), said, cure, LEVEL_CHARS))


def summary(found: list[Finding]) -> str:
    """How many of each."""
    counts = {level: sum(one.level == level for one in found) for level in EXIT_CODES}
    return ", ".join(f"{count} {level}" for level, count in counts.items())


@contextlib.contextmanager
def _unlogged(name: str) -> Iterator[None]:
    """What waits says so in a log; here that is a line of its own."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
