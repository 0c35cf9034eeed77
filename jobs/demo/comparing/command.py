"""`make compare REGIME=few`: make the runs that are missing, then docs/compare.md of all records.

Runs → records (`runs`), records → page and plot. Without REGIME nothing is run: the page is made
anew of what is there.
"""

import re
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from common.queue.disk import check_folder, write_file
from jobs.demo.comparing import records, rules
from jobs.demo.comparing.page import page
from jobs.demo.comparing.plot import plot
from jobs.demo.comparing.runs import all_settings, run_missing
from jobs.demo.run import ROOT
from jobs.local import terminal

RECORDS = ROOT / "docs/bench/compare"
PAGE = "docs/compare.md"
PLOT = "docs/images/compare.svg"

console = terminal.console()


def main(
    regime: Annotated[
        str | None, typer.Option(help=f"{', '.join(rules.METHODS)}; default: only the page")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="comma between names; default: those of the regime")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="comma between numbers; default: those of the rule")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="other than the run file's, for a trial")
    ] = None,
    eval_queries: Annotated[
        int | None, typer.Option(min=1, help="only the first held-out queries, for a trial")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--records", help="where a trial's records and page go")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="runs at once; each wants two cores")] = 1,
) -> None:
    """Compare methods over seeds in one regime, and write the page of all."""
    is_trial = steps is not None or eval_queries is not None
    if is_trial and folder is None:
        raise ConfigError(
            "--records: found none with --steps or --eval-queries, wanted a folder: what a trial "
            "measures does not belong beside the comparison's records"
        )
    target, out = folder or RECORDS, folder or ROOT
    check_folder(target, knob="--records")
    if regime is None and (methods or seeds):
        raise ConfigError(
            f"REGIME: found none with METHODS or SEEDS, wanted one of {', '.join(rules.METHODS)}"
        )
    if regime is not None:
        if regime not in rules.METHODS:
            raise ConfigError(f"REGIME: found {regime!r}, wanted one of {', '.join(rules.METHODS)}")
        wanted = all_settings(
            regime,
            _names(methods) if methods else list(rules.METHODS[regime]),
            seeds=_numbers(seeds) if seeds else rules.DEFAULT_SEEDS,
            steps=steps,
            eval_queries=eval_queries,
        )
        run_missing(
            wanted,
            folder=target,
            num_jobs=jobs,
            on_change=console.print,
            # After each: whoever stops this leaves a page of all that is there.
            on_record=lambda _record: write_page(target, out=out),
        )
    write_page(target, out=out)


def write_page(folder: Path, *, out: Path) -> None:
    """The page and its plot, of all records in a folder.

    Raises:
        ValueError: a record that cannot be read, or records that cannot be compared.
    """
    found = list(records.read_all(folder))
    by_regime = {
        regime: [record for record in found if record.regime == regime] for regime in rules.METHODS
    }
    for name, text in ((PAGE, page(found)), (PLOT, plot(by_regime, rules.METHODS))):
        write_file(out / name, text, knob="--records")
    console.print(f"{len(found)} records: {out / PAGE}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text, re.ASCII):
        raise ConfigError(f"SEEDS: found {text!r}, wanted numbers like 0,1,2")
    return [int(number) for number in text.split(",")]
