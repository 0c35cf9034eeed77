"""Evaluations below a folder, as pages show them: `find`, `shown`, `compared`.

    <folder>/**/summary.json -> list -> tables, cases, failures of one; differences of two

The arithmetic is that of `tempsamp eval` and `tempsamp compare`: tables, cases and differences come
from `jobs.evaluation`, ready to be set. Imports decoders: the app imports this when it is asked.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from jobs.evaluation.comparing.command import compare_runs
from jobs.evaluation.comparing.command import grids_of as comparison_grids
from jobs.evaluation.scoring.protocols import judge
from jobs.evaluation.showing.cases import case_groups, failed_queries
from jobs.evaluation.showing.grids import Grid, text_of
from jobs.evaluation.showing.outputs import reported
from jobs.evaluation.showing.report import cards
from jobs.evaluation.showing.tables import OURS, grids_of
from jobs.evaluation.summary import FILE, Summary

__all__ = ["Comparison", "Evaluation", "EvaluationPage", "Table", "compared", "find", "shown"]

DEEPEST = 5
MOST = 500
BINS = 20
"""Of the histogram of IoU."""


class Evaluation(BaseModel):
    """One benchmark of one evaluation, in a list."""

    name: str
    """Its folder, from where the dash looks."""
    bench: str
    model: str
    label: str
    queries: int
    answered: int
    miou: float | None
    """Percent; likewise its 95 % interval."""
    low: float | None = None
    high: float | None = None
    fingerprint: str


class Table(BaseModel):
    """A table, its cells as text."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    note: str


class EvaluationPage(BaseModel):
    """One evaluation in full."""

    evaluation: Evaluation
    cards: list[tuple[str, str, str]]
    notes: list[str]
    histogram: list[int]
    """Queries by IoU, in equal bins from 0 to 1."""
    tables: list[Table]
    cases: list[dict[str, Any]]
    """Groups of `jobs.evaluation.showing.cases.Case`."""
    failed: list[dict[str, Any]]
    num_failed: int


class Comparison(BaseModel):
    """Two of them, query by query."""

    tables: list[Table]


def find(root: Path) -> list[Evaluation]:
    """All below a folder that have figures, by name."""
    found = (_listed(path, root) for path in _summaries(root))
    return sorted((one for one in found if one is not None), key=lambda one: one.name)[:MOST]


def shown(root: Path, name: str, *, roots: Iterable[Path] = ()) -> EvaluationPage:
    """One evaluation.

    Args:
        root: where the dash looks.
        name: of an evaluation there.
        roots: folders with videos, for the frames of the cases.

    Raises:
        KeyError: there is none of that name, or it has no figures.
        ValueError: its files cannot be read; says which.
    """
    folder = folder_of(root, name)
    summary = Summary.model_validate_json((folder / FILE).read_bytes())
    listed = _listed(folder / FILE, root)
    if listed is None or summary.score is None:
        raise KeyError(f"{name} has no figures yet")
    folders = tuple(roots)
    one = reported(folder, summary, find=lambda _bench, video: _video(video, folders))
    judgement = judge(one.pairs, protocol=OURS) if one.pairs else None
    scored = judgement is not None and bool(judgement.scored.any())
    failed = (
        []
        if judgement is None
        else failed_queries(one.pairs, judgement=judgement, errors=dict(one.errors))
    )
    return EvaluationPage(
        evaluation=listed,
        cards=cards(one.scored),
        notes=list(one.notes),
        histogram=_histogram(judgement.scored_ious) if judgement is not None and scored else [],
        tables=[table_of(grid) for grid in (*grids_of(one.scored), *one.grids)],
        cases=[
            asdict(group)
            for group in (
                case_groups(one.pairs, judgement=judgement, video=one.video)
                if judgement is not None
                else ()
            )
        ],
        failed=[asdict(query) for query in failed],
        num_failed=0 if judgement is None else sum(k != "answered" for k in judgement.kinds),
    )


def compared(root: Path, name_a: str, name_b: str) -> Comparison:
    """Two of them, on the queries that both have.

    Raises:
        KeyError: there is none of that name.
        ValueError: they cannot be compared; says why.
    """
    found = compare_runs(folder_of(root, name_a), folder_of(root, name_b), common=True)
    return Comparison(tables=[table_of(grid) for grid in comparison_grids(found)][1:])


def folder_of(root: Path, name: str) -> Path:
    """The folder of an evaluation, which lies below the root whatever its name says.

    Raises:
        KeyError: it does not, or has no summary.
    """
    folder = (root / name).resolve()
    if not folder.is_relative_to(root.resolve()) or not (folder / FILE).is_file():
        raise KeyError(f"no evaluation {name!r}")
    return folder


def table_of(grid: Grid) -> Table:
    """A grid with its cells written out."""
    return Table(
        title=grid.title,
        headings=list(grid.headings),
        rows=[[text_of(cell) for cell in row] for row in grid.rows],
        numeric=[grid.is_numeric(column) for column in range(len(grid.headings))],
        note=grid.note,
    )


def _summaries(folder: Path, *, depth: int = DEEPEST) -> Iterator[Path]:
    if depth == 0:
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name == FILE:
            yield entry
        elif entry.is_dir() and entry.name[0] != "." and not entry.is_symlink():
            yield from _summaries(entry, depth=depth - 1)


def _listed(path: Path, root: Path) -> Evaluation | None:
    """None for what is no summary of an evaluation, or has no figures."""
    try:
        summary = Summary.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):  # a demo's summary.json has another form
        return None
    if summary.score is None:
        return None
    exact = summary.score.protocols.get(OURS)
    miou = None if exact is None else exact.miou
    return Evaluation(
        name=str(path.parent.resolve().relative_to(root.resolve())),
        bench=summary.settings.bench,
        model=summary.settings.model_name,
        label=summary.label,
        queries=summary.queries,
        answered=summary.answered,
        miou=None if miou is None else miou.mean,
        low=None if miou is None else miou.low,
        high=None if miou is None else miou.high,
        fingerprint=summary.fingerprint,
    )


def _video(name: str, roots: Iterable[Path]) -> Path | None:
    """Below one of the roots, whatever an annotation calls it."""
    for root in roots:
        path = (root / name).resolve()
        if path.is_relative_to(root.resolve()) and path.is_file():
            return path
    return None


def _histogram(ious: Any) -> list[int]:
    counts = [0] * BINS
    for iou in ious.tolist():
        counts[min(BINS - 1, int(iou * BINS))] += 1
    return counts
