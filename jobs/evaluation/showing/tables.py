"""What a run shows in figures: `Score`s → tables for the terminal, Markdown, LaTeX and CSV.

Ours stand above the published rows of the field, which carry their source and are marked as
published; a mode that looks at the truth is labelled in every title and row. Figures are
percentages. `tempsamp eval` and `tempsamp eval score` print and write them,
`jobs.evaluation.showing.grids` gives them their look.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.queue.disk import write_file
from jobs.evaluation.journal import ALL_KEPT
from jobs.evaluation.scoring.modes import ORACLE_LABEL, label_of
from jobs.evaluation.scoring.predictions import AnswerMode
from jobs.evaluation.scoring.protocols import PROTOCOLS, THRESHOLDS
from jobs.evaluation.scoring.published import Published
from jobs.evaluation.scoring.qvhighlights import HighlightScore
from jobs.evaluation.scoring.score import ProtocolScore, Score
from jobs.evaluation.showing.grids import Cell, Grid, csv_text, latex, markdown, rich_table

if TYPE_CHECKING:
    from rich.table import Table

ORACLE: AnswerMode = "mixed_oracle"
UNNAMED = "these predictions"
"""The model of a prediction file that does not say."""
OURS = "exact"
MOMENT_DETR = "moment_detr"
RECALLS = tuple(f"R1@{threshold}" for threshold in THRESHOLDS)
FIGURES = (*RECALLS, "mIoU")
HEADINGS = ("model", "protocol", "n", *FIGURES, "read, %", "failures")
PUBLISHED_NOTE = (
    "Rows marked published were not measured here: other models, frames and protocols, each as its "
    "source says. They give a scale; they prove no difference."
)
CSV_HEADINGS = (
    *("benchmark", "kind", "model", "mode", "protocol", "group", "figure"),
    *("value", "low", "high", "n", "source"),
)
MARKDOWN_FILE, LATEX_FILE, CSV_FILE = "tables.md", "tables.tex", "tables.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A benchmark of a run, scored, and what answered it."""

    score: Score
    model: str = UNNAMED
    """As the tables name it."""
    mode: AnswerMode | None = None
    """None when the file does not say."""

    @property
    def label(self) -> str:
        """Model and mode; says it when the truth was used."""
        if self.mode is None:
            return self.model
        return f"{self.model}, {label_of(self.mode)}"


def tables_of(
    score: Score, *, model: str = UNNAMED, mode: AnswerMode | None = None
) -> Iterator["Table"]:
    """One benchmark in the terminal: the tables that have something to say, the main one first."""
    return map(rich_table, grids_of(Scored(score=score, model=model, mode=mode)))


def overview_table(run: Sequence[Scored]) -> "Table":
    """Several benchmarks in the terminal."""
    return rich_table(overview(run))


def write_tables(folder: Path, *, run: Sequence[Scored]) -> tuple[Path, Path, Path]:
    """Write a run's tables as Markdown, LaTeX and CSV.

    Args:
        folder: is made; gets `tables.md`, `tables.tex` and `tables.csv`.
        run: its benchmarks, in the order to print.

    Raises:
        ValueError: there is no benchmark.
        OutputError: they cannot be written.
    """
    if not run:
        raise ValueError("found no scored benchmark, wanted at least one")
    grids = [overview(run), *(grid for scored in run for grid in grids_of(scored))]
    texts = {MARKDOWN_FILE: markdown(grids), LATEX_FILE: latex(grids), CSV_FILE: csv_of(run)}
    for name, text in texts.items():
        write_file(folder / name, text, knob="--out", kept=ALL_KEPT)
    return folder / MARKDOWN_FILE, folder / LATEX_FILE, folder / CSV_FILE


def overview(run: Sequence[Scored]) -> Grid:
    """Every benchmark by our protocol and by the one its published figures mostly follow."""
    rows: list[tuple[Cell, ...]] = []
    sections = set()
    for scored in run:
        rows += [(scored.score.bench, *row) for row in _side_by_side(scored)]
        sections.add(len(rows) - 1)
    return Grid(
        title=_titled("all benchmarks, % with 95 % intervals", *run),
        headings=("benchmark", *HEADINGS),
        rows=tuple(rows),
        sections=frozenset(sections),
    )


def grids_of(scored: Scored) -> Iterator[Grid]:
    """The tables of one benchmark that have something to say."""
    yield _main(scored)
    if scored.score.highlights is not None:
        yield _highlights(scored)
    yield _counts(scored)
    yield from _groups(scored)


def csv_of(run: Sequence[Scored]) -> str:
    """All figures, one a line, unrounded; intervals are `low` and `high`.

    `kind` is measured or published, `group` one of a breakdown such as `duration: 0 to 30 s`.
    """
    lines = (line for scored in run for line in (*_measured_lines(scored), *_other_lines(scored)))
    return csv_text([CSV_HEADINGS, *lines])


def _main(scored: Scored) -> Grid:
    score = scored.score
    first = _side_by_side(scored)
    others = [name for name in score.protocols if name not in (OURS, score.official)]
    rows = [*first, *(_row(scored, name) for name in others)]
    sections = {len(first) - 1, len(rows) - 1}
    published = [row for row in score.published if row.figures.keys() & set(FIGURES)]
    sources = list(dict.fromkeys(row.source for row in published))
    rows += [_published_row(row, number=sources.index(row.source) + 1) for row in published]
    rules = [f"{name}: {PROTOCOLS[name].what}." for name in score.protocols]
    numbered = [f"[{number}] {source}." for number, source in enumerate(sources, 1)]
    return Grid(
        title=_titled(f"{score.bench}, % with 95 % intervals", scored),
        headings=HEADINGS,
        rows=tuple(rows),
        sections=frozenset(sections),
        note=" ".join([*rules, PUBLISHED_NOTE, *numbered] if published else rules),
    )


def _published_row(row: Published, *, number: int) -> tuple[Cell, ...]:
    """The note says which source has the number: written out, it would fill three lines a row."""
    figures = (row.figures.get(name) for name in FIGURES)
    return (row.model, f"published [{number}]", None, *figures, None, None)


def _side_by_side(scored: Scored) -> list[tuple[Cell, ...]]:
    score = scored.score
    rows = [_row(scored, name) for name in (OURS, score.official) if name in score.protocols]
    if score.official == MOMENT_DETR and score.highlights is not None:
        rows.append(_moment_detr_row(scored))
    return rows


def _row(scored: Scored, name: str) -> tuple[Cell, ...]:
    found = scored.score.protocols[name]
    return (
        scored.label,
        f"{name} (official)" if name == scored.score.official else name,
        found.scored,
        *(found.recall.get(str(threshold)) for threshold in THRESHOLDS),
        found.miou,
        _share(found.parse_rate),
        _failures(found.failures),
    )


def _moment_detr_row(scored: Scored) -> tuple[Cell, ...]:
    """R1 as the QVHighlights evaluator computes it; it knows no mIoU."""
    assert scored.score.highlights is not None
    found = scored.score.highlights
    answered = scored.score.predictions - scored.score.unknown
    recalls = (found.official["brief"].get(f"MR-full-{name}") for name in RECALLS)
    said = (_share(found.parse_rate), _failures(found.failures))
    return (scored.label, f"{MOMENT_DETR} (official)", answered, *recalls, None, *said)


def _share(rate: float | None) -> float | None:
    """In percent."""
    return None if rate is None else 100 * rate


def _failures(failures: Mapping[str, int]) -> str:
    named = [f"{number} {kind}" for kind, number in failures.items() if number]
    return ", ".join(named) or "none"


def _highlights(scored: Scored) -> Grid:
    score = scored.score
    assert score.highlights is not None
    official = score.highlights.official["brief"]
    exact = {} if score.highlights.exact is None else score.highlights.exact["brief"]
    published = [row for row in score.published if row.figures.keys() & official.keys()]
    return Grid(
        title=_titled(f"{score.bench}, moment_detr's evaluator, %", scored),
        headings=("figure", OURS, "official", *(f"published: {row.model}" for row in published)),
        rows=tuple(
            (name, exact.get(name), value, *(row.figures.get(name) for row in published))
            for name, value in official.items()
        ),
        note=" ".join([PUBLISHED_NOTE, *_sources(published)]) if published else "",
    )


def _sources(published: Sequence[Published]) -> list[str]:
    return [f"{row.model}: {row.source}." for row in published]


def _counts(scored: Scored) -> Grid:
    score = scored.score
    rows: dict[str, Cell] = {
        f"predictions ({score.format})": score.predictions,
        "lines cut and dropped": score.truncated_lines,
        "predictions without an annotation": score.unknown,
        "annotations without a prediction": score.unanswered,
        "annotations that cannot be read": score.bad_annotations,
        "annotations without a duration": score.without_duration,
        "annotations that end before they start": score.impossible_truths,
    }
    exact = score.protocols.get(OURS)
    if counted := exact or score.highlights:
        rows |= {f"failures: {kind}": number for kind, number in counted.failures.items()}
    if exact:
        rows["answers with a reversed span"] = exact.reversed
    for protocol, found in score.protocols.items():
        if found.collapsed:
            rows[f"equal keys collapsed by {protocol}"] = found.collapsed
    if score.highlights is not None:
        rows["answers without window or highlight"] = score.highlights.unreadable
    for protocol, reason in score.not_computed.items():
        rows[f"{protocol} is not computed"] = reason
    return Grid(
        title=_titled(f"{score.bench}, what was counted", scored),
        headings=("kind", "number"),
        rows=tuple(rows.items()),
    )


def _groups(scored: Scored) -> Iterator[Grid]:
    for breakdown in scored.score.breakdowns:
        if not any(group.queries for group in breakdown.groups):
            continue
        rows: list[tuple[Cell, ...]] = [
            (group.name, group.queries, group.recall_50, group.miou) for group in breakdown.groups
        ]
        if breakdown.unknown:
            rows.append(("not annotated", breakdown.unknown, None, None))
        yield Grid(
            title=_titled(f"{scored.score.bench}, by {breakdown.by} ({OURS})", scored),
            headings=(breakdown.by, "n", "R1@0.5", "mIoU"),
            rows=tuple(rows),
        )


def _titled(title: str, *run: Scored) -> str:
    return f"{title}: {ORACLE_LABEL}" if any(s.mode == ORACLE for s in run) else title


CsvLine = tuple[str | int | float | None, ...]


def _measured_lines(scored: Scored) -> Iterator[CsvLine]:
    """Protocols: R1, mIoU, the parse rate in percent, failures as numbers."""
    score = scored.score
    for name, found in score.protocols.items():
        head = (score.bench, "measured", scored.label, scored.mode, name, None)
        figures = {f"R1@{at}": interval for at, interval in found.recall.items()}
        for figure, interval in (*figures.items(), ("mIoU", found.miou)):
            if interval is not None:
                ends = (interval.mean, interval.low, interval.high)
                yield (*head, figure, *ends, found.scored, None)
        yield from _answer_lines(head, found, n=found.scored)


def _answer_lines(
    head: tuple[str | None, ...], found: ProtocolScore | HighlightScore, *, n: int | None
) -> Iterator[CsvLine]:
    """How many answers could be read, and what became of the others."""
    yield (*head, "parse rate", _share(found.parse_rate), None, None, n, None)
    for kind, number in found.failures.items():
        yield (*head, f"failures: {kind}", number, None, None, n, None)


def _other_lines(scored: Scored) -> Iterator[CsvLine]:
    """Groups, the QVHighlights evaluator, and what others published."""
    score = scored.score
    head = (score.bench, "measured", scored.label, scored.mode)
    for breakdown in score.breakdowns:
        for group in breakdown.groups:
            for figure, value in (("R1@0.5", group.recall_50), ("mIoU", group.miou)):
                where = (*head, OURS, f"{breakdown.by}: {group.name}", figure)
                yield (*where, value, None, None, group.queries, None)
    if score.highlights is not None:
        yield from _answer_lines((*head, MOMENT_DETR, None), score.highlights, n=None)
        readings = {MOMENT_DETR: score.highlights.official, OURS: score.highlights.exact}
        for protocol, metrics in readings.items():
            for figure, value in (metrics or {"brief": {}})["brief"].items():
                yield (*head, protocol, None, figure, value, None, None, None, None)
    for row in score.published:
        for figure, value in row.figures.items():
            names = (score.bench, "published", row.model, None, None, None, figure)
            yield (*names, value, None, None, None, row.source)
