"""Tables before they have a look: `Grid` → rich, Markdown, LaTeX (booktabs), CSV.

Cells are numbers, intervals or text; text comes from strangers' files, so each output escapes what
it would read as markup. `jobs.evaluation.showing.tables` and `jobs.evaluation.comparing.command`
make grids, `jobs.evaluation.showing.report` sets them in HTML.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jobs.evaluation.scoring.intervals import Interval

if TYPE_CHECKING:
    from rich.table import Table

Cell = str | int | float | Interval | None
"""None: there is no such figure."""

MISSING = "-"
MARKDOWN_SPECIAL = frozenset("\\`*_[]<>|~$&#!")
LATEX_HEAD = r"% \input this file; it needs \usepackage{booktabs} and \usepackage{adjustbox}."
LATEX_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        # A row that starts with a bracket would be read as an option of the line break before it.
        "[": "{[}",
        "]": "{]}",
        **{character: f"\\{character}" for character in "&%$#_"},
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """One table."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    """Each as long as the headings."""
    sections: frozenset[int] = frozenset()
    """Rows below which a line is drawn."""
    note: str = ""

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds figures, which stand at its right."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and not any(isinstance(cell, str) for cell in cells)


def text_of(cell: Cell, *, between: str = " ") -> str:
    """A cell in two decimals; `between` stands before an interval's ends."""
    if cell is None:
        return MISSING
    if isinstance(cell, Interval):
        return f"{cell.mean:.2f}{between}[{cell.low:.1f}, {cell.high:.1f}]"
    return f"{cell:.2f}" if isinstance(cell, float) else plain(str(cell))


def plain(text: str) -> str:
    """In one line, without what a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in text)


def rich_table(grid: Grid) -> "Table":
    """For the terminal; nothing in a cell is read as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(plain(grid.title), style="table.title"))
    note = "\n".join(map(plain, grid.note.splitlines()))
    table.caption = Text(note, style="table.caption") if note else None
    for index, heading in enumerate(grid.headings):
        side: Literal["left", "right"] = "right" if grid.is_numeric(index) else "left"
        table.add_column(Text(heading), justify=side, overflow="fold")
    for index, row in enumerate(grid.rows):
        cells = (Text(text_of(cell, between="\n")) for cell in row)
        table.add_row(*cells, end_section=index in grid.sections)
    return table


def markdown(grids: Iterable[Grid]) -> str:
    """Tables with headings, for GitHub and its kin."""
    return "\n".join(_markdown(grid) for grid in grids)


def latex(grids: Iterable[Grid]) -> str:
    """`table` environments, no wider than a line; the first line names the packages."""
    return "\n".join([LATEX_HEAD, *(_latex(grid) for grid in grids)])


def csv_text(rows: Iterable[Sequence[str | int | float | None]]) -> str:
    """Lines of a CSV file; None is an empty field."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def markdown_escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{char}" if char in MARKDOWN_SPECIAL else char for char in plain(text))


def latex_escaped(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return plain(text).translate(LATEX_SPECIAL)


def _markdown(grid: Grid) -> str:
    columns = range(len(grid.headings))
    rules = ("--:" if grid.is_numeric(column) else ":--" for column in columns)
    lines = [
        f"### {markdown_escaped(grid.title)}",
        "",
        _markdown_row(grid.headings),
        f"| {' | '.join(rules)} |",
        *(_markdown_row(row) for row in grid.rows),
        "",
    ]
    return "\n".join([*lines, markdown_escaped(grid.note), ""] if grid.note else lines)


def _markdown_row(cells: Sequence[Cell]) -> str:
    return f"| {' | '.join(markdown_escaped(text_of(cell)) for cell in cells)} |"


def _latex(grid: Grid) -> str:
    columns = "".join("r" if grid.is_numeric(index) else "l" for index in range(len(grid.headings)))
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_escaped(grid.title)}}}",
        r"\begin{adjustbox}{max width=\linewidth}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_row(grid.headings),
        r"\midrule",
    ]
    for index, row in enumerate(grid.rows):
        lines.append(_latex_row(row))
        if index in grid.sections and index + 1 < len(grid.rows):
            lines.append(r"\midrule")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{adjustbox}"]
    if grid.note:
        note = latex_escaped(grid.note)
        lines.append(rf"\par\medskip\parbox{{\linewidth}}{{\footnotesize {note}}}")
    return "\n".join([*lines, r"\end{table}", ""])


def _latex_row(cells: Sequence[Cell]) -> str:
    return " & ".join(map(_latex_cell, cells)) + r" \\"


def _latex_cell(cell: Cell) -> str:
    if isinstance(cell, Interval):
        return rf"{cell.mean:.2f} {{\scriptsize [{cell.low:.1f}, {cell.high:.1f}]}}"
    return latex_escaped(text_of(cell))
