"""How long a run of 10,000 steps takes to open in a browser: `make bench-dash`.

    runs of 100 and 10,000 steps -> `tempsamp dash` -> headless Chromium -> docs/bench/dash.json

A first opening meets a dash that was just started and has read nothing of the run; a later one is
that of the next visitor. Times are the browser's, from navigation to the frame after everything is
drawn; frames are those of scrolling through the whole page, 40 pixels a frame.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from playwright.sync_api import Browser
from rich.console import Console
from rich.table import Table

from tests.bench.reward import machine
from tests.bench.spread import Spread, rounded
from tests.fixtures.pages.browser import Opening, chromium, running, timed
from tests.fixtures.pages.long_run import write_long_run

STEPS = (100, 10_000)
PAGES = ("overview", "groups")
LATER = 3
"""Openings of a dash after its first."""


@dataclass(frozen=True)
class Figures:
    """Of one page of one run."""

    page: str
    steps: int
    first_ms: Spread
    first_whole_ms: Spread
    """Until the list of groups is counted, too."""
    later_ms: Spread
    frame_ms: Spread
    """Frames of all scrolling."""
    longest_frame_ms: Spread
    """Of each scrolling."""
    long_tasks_ms: Spread
    """Their sum in each scrolling."""
    nodes: int


@dataclass(frozen=True)
class Report:
    """What is written."""

    machine: str
    chromium: str
    load_average: float
    """Of the minute before: other work on the machine shows in wall times."""
    repeats: int
    later_openings: int
    figures: list[Figures]


def measure(repeats: int) -> Report:
    """Write the runs, then start a dash a page, run and repeat."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        for steps in STEPS:
            write_long_run(Path(folder) / "runs" / str(steps), steps=steps)
        figures = [
            _figures(page, steps, list(_openings(browser, Path(folder), page, steps, repeats)))
            for page in PAGES
            for steps in STEPS
        ]
        return Report(machine(), browser.version, load, repeats, repeats * LATER, figures)


def _openings(
    browser: Browser, folder: Path, page: str, steps: int, repeats: int
) -> Iterator[list[Opening]]:
    """Of each dash."""
    for _ in range(repeats):
        with running(["tempsamp", "dash", f"runs/{steps}"], cwd=folder) as url:
            address = f"{url}/#/{page}"
            yield [timed(browser, address, page_name=page) for _ in range(1 + LATER)]


def _figures(page: str, steps: int, dashes: list[list[Opening]]) -> Figures:
    every = [one for openings in dashes for one in openings]
    return Figures(
        page=page,
        steps=steps,
        first_ms=Spread.of([openings[0].drawn_ms for openings in dashes]),
        first_whole_ms=Spread.of([openings[0].whole_ms for openings in dashes]),
        later_ms=Spread.of([one.drawn_ms for openings in dashes for one in openings[1:]]),
        frame_ms=Spread.of([gap for one in every for gap in one.gaps_ms]),
        longest_frame_ms=Spread.of([max(one.gaps_ms) for one in every]),
        long_tasks_ms=Spread.of([sum(one.long_ms) for one in every]),
        nodes=every[0].nodes,
    )


def table_of(report: Report) -> Table:
    """For people."""
    made = Table(
        title=f"{report.machine}, Chromium {report.chromium}, load {report.load_average:.1f}; "
        f"median (lowest-highest) of {report.repeats} first, {report.later_openings} later openings"
    )
    headings = (
        "page",
        "steps",
        "first ms",
        "whole ms",
        "later ms",
        "frame ms",
        "longest ms",
        "nodes",
    )
    for heading in headings:
        made.add_column(heading, justify="left" if heading == "page" else "right")
    for one in report.figures:
        spreads = (
            *(one.first_ms, one.first_whole_ms, one.later_ms),
            *(one.frame_ms, one.longest_frame_ms),
        )
        texts = (spread.text("{:,.0f}") for spread in spreads)
        made.add_row(one.page, f"{one.steps:,}", *texts, f"{one.nodes:,}")
    return made


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Dashes a page and run.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write this file.")] = None,
) -> None:
    """Measure and print."""
    report = measure(repeats)
    Console(width=130).print(table_of(report))
    if json_file is not None:
        json_file.write_text(json.dumps(rounded(asdict(report)), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
