"""What `tempsamp eval` shows: a bar that knows the accuracy so far, and the tables at the end.

    records -> Bar; Summary -> show()

Figures of the oracle never stand without saying that it used the truth.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from common.messages import Mode
from jobs.asking.answers import endings_in_words
from jobs.evaluation.runner import Tally
from jobs.evaluation.scoring.predictions import PredictionRecord
from jobs.evaluation.showing.grids import plain
from jobs.evaluation.showing.tables import tables_of
from jobs.evaluation.summary import Mixed, Summary

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

SHOWN_MISSING = 20
"""Videos, and annotations, in the terminal; summary.json has all."""


class Bar(Tally):
    """A tally that is seen."""

    def __init__(self, progress: "Progress", bench: str, modes: Sequence[Mode]) -> None:
        """`modes`: in which queries are asked; what mixes them is chosen when all are answered."""
        super().__init__()
        self._progress = progress
        self._task = progress.add_task(f"{bench}, {' and '.join(modes)}", total=None)

    def start(self, *, total: int) -> None:
        super().start(total=total)
        self._progress.update(self._task, total=total)

    def add(self, record: PredictionRecord) -> None:
        super().add(record)
        self._progress.update(self._task, completed=self.done, shown=figures_of(self))


def figures_of(tally: Tally) -> tuple[str, ...]:
    """Accuracy and failures so far."""
    accuracy = "mIoU -" if tally.miou is None else f"mIoU {tally.miou:.2f}"
    if tally.hit1 is not None:
        accuracy = f"HIT@1 {tally.hit1:.2f}"
    return (accuracy, _kinds(tally.failures), *endings_in_words(tally.endings))


def show(summary: Summary, *, bench: str, console: "Console") -> None:
    """The tables of one benchmark, and what is in none of its figures."""
    from rich.text import Text

    console.print(Text(plain(f"{bench}: {summary.label}"), style="bold"))
    if summary.score is not None:
        settings = summary.settings
        for table in tables_of(summary.score, model=settings.model_name, mode=settings.mode):
            console.print(table)
    if summary.mixed is not None:
        console.print(_choices(summary.mixed))
    console.print(
        f"{summary.answered} of {summary.queries} queries done; "
        f"{sum(summary.missing_videos.values())} queries of {len(summary.missing_videos)} missing "
        f"videos and {len(summary.unusable_annotations)} unusable annotations are in no figure"
    )
    if cost := _cost_in_words(summary):
        console.print(cost)
    _show_names("missing", list(summary.missing_videos), console=console)
    _show_names("unusable", summary.unusable_annotations, console=console)


def _cost_in_words(summary: Summary) -> str:
    """Answers that did not end by themselves, and tokens; empty where there is nothing to say."""
    said = endings_in_words(summary.endings)
    if summary.prompt_tokens is not None:
        said.append(
            f"{summary.prompt_tokens:,} prompt and {summary.completion_tokens or 0:,} answer tokens"
        )
    return "; ".join(said)


def _show_names(kind: str, names: Sequence[str], *, console: "Console") -> None:
    """Names come from strangers' files: nothing in them is markup."""
    for name in names[:SHOWN_MISSING]:
        console.print(plain(f"  {kind}: {name}"), markup=False, highlight=False)
    if len(names) > SHOWN_MISSING:
        console.print(f"  and {len(names) - SHOWN_MISSING} more {kind}")


def _choices(mixed: Mixed) -> "Table":
    from rich.table import Table

    table = Table(title=f"which of two answers, {mixed.queries} queries (exact)")
    for heading in ("choice", "mIoU %", "took the thought's"):
        table.add_column(heading)
    for name, miou in mixed.miou.items():
        table.add_row(name, f"{miou:.2f}", f"{100 * mixed.think_chosen[name]:.0f} %")
    return table


def _kinds(failures: Mapping[str, int]) -> str:
    return "failed: " + ", ".join(
        f"{failures[kind]} {kind}" for kind in ("video", "engine", "parse")
    )
