"""`tempsamp audit RUN_DIR`: was every row trained on exactly once, or is it listed?

    <run_dir>/ledger.jsonl + the row file -> [jobs.audit.findings] -> a table, lists, exit code

Needs neither Redis nor a model, and may be asked while the run trains.
"""

import hashlib
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from common.errors import ConfigError
from common.queue.ledger import FILE, RunLine, read_ledger
from jobs.audit.findings import Audit, Epoch, audit
from jobs.local import terminal

LISTED = 20
"""Rows a list shows."""


def command(
    run_dir: Annotated[Path, typer.Argument(help="The run's folder, learner.run_dir.")],
    rows: Annotated[
        Path | None, typer.Option(help="The row file, where it has moved; default: the ledger's.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help=f"List all rows, not {LISTED} of each kind.")
    ] = False,
) -> None:
    """Prove from a run's ledger that every row was trained on exactly once, or list it.

    Exit code 1 if that is not so: the rows and steps concerned are named. Exit code 2 for a folder
    without a ledger or with one that cannot be read.
    """
    found = audited(run_dir, rows=rows)
    _show(found, limit=None if everything else LISTED)
    if found.violations:
        for line in found.violations:
            typer.echo(f"tempsamp: {line}", err=True)
        raise typer.Exit(1)


def audited(run_dir: Path, *, rows: Path | None = None) -> Audit:
    """What a run's ledger proves.

    Args:
        run_dir: the run's folder.
        rows: its row file; None: where the ledger says that it lies.

    Raises:
        ConfigError: one of the two is not there or cannot be read, or nothing is final yet.
    """
    lines = list(read_ledger(run_dir / FILE))
    if rows is None:
        if not lines or not isinstance(lines[0], RunLine):
            raise ConfigError(f"{run_dir / FILE}: found no first line of a run, wanted --rows FILE")
        rows = Path(lines[0].rows)
    ids, digest = _rows(rows)
    try:
        return audit(lines, rows=ids, rows_sha256=digest)
    except ValueError as error:
        raise ConfigError(f"{run_dir / FILE}: {error}") from error


def _rows(path: Path) -> tuple[list[str], str]:
    """Ids of the rows of a file, which are their line numbers, and its digest."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"--rows: {path}: {error.strerror or error}: wanted the run's row file"
        ) from error
    ids = [str(number) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    return ids, hashlib.sha256(content).hexdigest()


def _show(found: Audit, *, limit: int | None) -> None:
    console = terminal.console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    has_pool = bool(found.left_out or any(epoch.left_out for epoch in found.epochs))
    names = ["epoch", "", "rows", "trained", "given up", "rejected", "in flight", "to come"]
    for name in [*names, *(["left out"] if has_pool else [])]:
        table.add_column(name, justify="left" if not name else "right")
    for epoch in found.epochs:
        table.add_row(*_cells(epoch, found, has_pool=has_pool))
    console.print(table)
    for epoch in found.epochs:
        given_up = [f"{row}: {'; '.join(why)}" for row, why in epoch.given_up.items()]
        _list(console, f"epoch {epoch.number}, given up", given_up, limit)
        _list(
            console,
            f"epoch {epoch.number}, in a step that changed no weights",
            epoch.unapplied,
            limit,
        )
        left_out = [f"{row}: {why}" for row, why in epoch.left_out.items()]
        _list(console, f"epoch {epoch.number}, left out", left_out, limit)
    left_out = [f"{row}: {why}" for row, why in found.left_out.items()]
    _list(console, "left out of all epochs", left_out, limit)
    _list(console, "rejected", [f"{row}: {why}" for row, why in found.rejected.items()], limit)
    again = ", ".join(f"{count} {fate}" for fate, count in sorted(found.asked_again.items()))
    console.print(f"asked again: {again or 'none'}")
    verdict = "not proven" if found.violations else "proven"
    later = f"; {found.num_unproven} later line(s) are not final" if found.num_unproven else ""
    console.print(f"{verdict} up to the checkpoint of step {found.step}{later}")


def _cells(epoch: Epoch, found: Audit, *, has_pool: bool) -> list[str]:
    done = epoch.steps.keys() | epoch.given_up.keys() | epoch.in_flight
    left_out = (found.left_out.keys() | epoch.left_out.keys()) - done
    rejected = found.rejected.keys() - done - left_out
    counts = [
        found.num_rows,
        len(epoch.steps),
        len(epoch.given_up),
        len(rejected),
        len(epoch.in_flight),
        max(0, found.num_rows - len(done) - len(rejected) - len(left_out)),
        *([len(left_out)] if has_pool else []),
    ]
    state = "finished" if epoch.is_finished else "at work"
    return [str(epoch.number), state, *(f"{count:,}" for count in counts)]


def _list(console: Console, title: str, items: list[str], limit: int | None) -> None:
    if not items:
        return
    console.print(f"{title}:")
    for item in items[:limit]:
        console.print(f"  row {item}", markup=False, soft_wrap=True)
    if limit is not None and len(items) > limit:
        console.print(f"  and {len(items) - limit} more (--all)")
