"""How commands look in a terminal: one console; states, figures and times in the same words.

    word -> State -> "● serving"; rows -> Listing; what and how far -> bar()

A terminal shows marks, wraps lines, and lays a table that is too wide out as a paragraph a row. A
file or a pipe gets words without marks, a line a row however long, and nothing that moves. Colours
are for terminals, or where FORCE_COLOR asks for them; never with NO_COLOR, and a dumb terminal is
written to like a pipe.
"""

import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TextIO

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress import Progress, ProgressColumn, Task
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

Kind = Literal["ok", "warn", "fail", "moving", "waiting", "lost"]
MARKS: Mapping[Kind, str] = {
    "ok": "✓",
    "warn": "!",
    "fail": "✗",
    "moving": "●",
    "waiting": "○",
    "lost": "◌",
}
COLOURS: Mapping[Kind, str] = {
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
    "moving": "green",
    "waiting": "yellow",
    "lost": "red",
}
NO_ANSWER = "no answer"
"""Of what should be there and says nothing."""
KINDS: Mapping[str, Kind] = {
    "ok": "ok",
    "finished": "ok",
    "warn": "warn",
    "quiet": "warn",
    "fail": "fail",
    "broken": "fail",
    "serving": "moving",
    "training": "moving",
    "starting": "waiting",
    "loading": "waiting",
    "syncing": "waiting",
    "draining": "waiting",
    "stopping": "waiting",
    "empty": "waiting",
    NO_ANSWER: "lost",
}
"""States of replicas, learners, runs and checks. A word that is not here has no mark."""
UNBOUNDED = 10_000
"""Columns of a pipe: whoever reads it wants a row in a line."""
LEAST_NOTE = 30
"""Columns that a note needs beside a table."""
BAR_CHARS = 24
LEAST_BAR = 6
LONGEST_CHARS = 100


def console(*, stderr: bool = False, file: TextIO | None = None) -> Console:
    """The one way to write to whoever started a command; markup in square brackets is read."""
    stream = file or (sys.stderr if stderr else sys.stdout)
    is_tty = _is_tty(stream)
    seen = is_tty and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    columns = os.environ.get("COLUMNS", "")
    return Console(
        file=file,
        stderr=stderr,
        highlight=False,
        # rich would draw spinners into a pipe where FORCE_COLOR is set.
        force_terminal=seen,
        color_system="auto" if seen else ("standard" if _is_forced() else None),
        width=None if is_tty or columns.isdigit() else UNBOUNDED,
    )


def _is_forced() -> bool:
    wanted, unwanted = (os.environ.get(name, "") for name in ("FORCE_COLOR", "NO_COLOR"))
    return wanted != "" and unwanted == ""


def _is_tty(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # none, or closed
        return False


# --- figures and texts --------------------------------------------------------------------------


def short(value: float, *, digits: int = 2) -> str:
    """`.41`, as figures between -1 and 1 are written here; others with three digits."""
    if not math.isfinite(value):
        return "none"
    if abs(value) < 1:
        text = f"{value:.{digits}f}"
        return text.replace("0.", ".", 1) if float(text) else "0"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def steps_in_words(done: float, total: float | None) -> str:
    """`1,200 of 10,000`; without a total how many there are."""
    return f"{done:,.0f}" if total is None else f"{done:,.0f} of {total:,.0f}"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h`: how long ago, how long yet."""
    for unit, size_s in (("days", 172_800.0), ("h", 7200.0), ("min", 120.0)):
        if seconds >= size_s:
            count = seconds / {"days": 86_400.0, "h": 3600.0, "min": 60.0}[unit]
            return f"{count:.0f} {unit}"
    return f"{seconds:.0f} s"


def took(seconds: float) -> str:
    """`23 ms`, `1.7 s`, then as `duration`: what was measured."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.1f} s" if seconds < 120 else duration(seconds)


def one_line(said: str, *, most_chars: int = LONGEST_CHARS) -> str:
    """Whitespace of all kinds made one blank each, nothing that a terminal would obey; cut where it
    is too long."""
    said = " ".join("".join(char if char.isprintable() else " " for char in said).split())
    return said if len(said) <= most_chars else said[: most_chars - 1] + "…"


# --- states -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class State:
    """What something does: a word, its mark and colour, and more in plain words."""

    word: str
    more: str = ""
    width: int = 0
    """Characters that the word takes at least."""

    def text(self, *, marked: bool) -> Text:
        """In the colour of its kind, with its mark where it is seen on a terminal."""
        kind = KINDS.get(self.word)
        mark = f"{MARKS[kind] if kind else ' '} " if marked else ""
        text = Text(mark + self.word.ljust(self.width), style=COLOURS[kind] if kind else "")
        return Text.assemble(text, self.more)

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text(marked=options.is_terminal)


Cell = str | State


@dataclass(frozen=True, slots=True)
class Entry:
    """A lead and what is said of it, indented where it wraps; `more` below it, fainter."""

    lead: Cell
    said: Cell
    more: tuple[str, ...] = ()
    lead_chars: int = 0
    """Without the mark."""

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        marked = options.is_terminal
        indent = self.lead_chars + (2 if marked and isinstance(self.lead, State) else 0)
        yield _hanging(_text(self.lead, marked=marked), _text(self.said, marked=marked), indent)
        for line in self.more:
            yield _hanging(Text(), Text(line, style="dim"), indent)


class LogLines(logging.Handler):
    """What a log says, above whatever moves."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        level = State("fail" if record.levelno >= logging.ERROR else "warn")
        self._console.print(Entry(level, self.format(record)))


def _hanging(lead: Text, said: Text, indent: int) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, min_width=indent)
    grid.add_column(overflow="fold")
    grid.add_row(lead, said)
    return grid


def _text(cell: Cell, *, marked: bool) -> Text:
    return cell.text(marked=marked) if isinstance(cell, State) else Text(cell)


# --- tables -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """One of a table."""

    heading: str
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """As many cells as there are columns, "-" where nothing is known, and what else is said."""

    cells: tuple[Cell, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """Rows as a table; where that is too wide a paragraph each, which the first cell heads."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""
    """Heading of the notes; empty: there are none."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        marked = options.is_terminal
        wanted = console.measure(
            self._table(marked=marked, notes=False), options=options.update_width(UNBOUNDED)
        ).maximum
        if self.note:
            longest = max((len(row.note) for row in self.rows), default=0)
            wanted += 2 + max(len(self.note), min(longest, LEAST_NOTE))
        if wanted <= options.max_width:
            lines = console.render_lines(self._table(marked=marked, notes=bool(self.note)), options)
            yield Segments(list(_without_tails(lines)))
            return
        for row in self.rows:
            yield from self._paragraph(row, marked=marked, room=options.max_width)

    def _table(self, *, marked: bool, notes: bool) -> Table:
        made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for column in self.columns:
            made.add_column(
                column.heading, justify="right" if column.is_number else "left", no_wrap=True
            )
        if notes:
            made.add_column(self.note, overflow="fold")
        for row in self.rows:
            cells = [_text(cell, marked=marked) for cell in row.cells]
            made.add_row(*cells, *([Text(row.note)] if notes else []))
        return made

    def _paragraph(self, row: Row, *, marked: bool, room: int) -> Iterator[Text | Padding]:
        head, facts = [Text(str(row.cells[0]), style="bold")], []
        for column, cell in zip(self.columns[1:], row.cells[1:], strict=True):
            if isinstance(cell, State):
                head.append(cell.text(marked=marked))
            elif cell != "-":
                facts.append(f"{column.heading} {cell}")
        yield Text("  ").join(head)
        for said in (*_filled(facts, room=room - 2), *([row.note] if row.note else [])):
            yield Padding(Text(said, overflow="fold"), (0, 0, 0, 2), expand=False)


def _filled(facts: Sequence[str], *, room: int) -> Iterator[str]:
    """Lines of whole facts."""
    line = ""
    for fact in facts:
        longer = f"{line}, {fact}" if line else fact
        if line and len(longer) + 1 > room:
            yield f"{line},"
            longer = fact
        line = longer
    if line:
        yield line


def _without_tails(lines: Sequence[Sequence[Segment]]) -> Iterator[Segment]:
    """A table's lines without the blanks at their ends."""
    for line in lines:
        kept = list(line)
        while kept and not kept[-1].text.strip():
            kept.pop()
        if kept:
            last = kept.pop()
            kept.append(Segment(last.text.rstrip(), last.style))
        yield from (*kept, Segment.line())


# --- what moves ---------------------------------------------------------------------------------


def bar(console: Console) -> Progress:
    """Bars: state, what, how far, figures, how long yet; what a narrow terminal cannot hold is left
    out, the last figures first.

    Fields of a task: `state`, a word of `KINDS`; `shown`, its figures, the most important first.
    """
    return Progress(_BarLine(), console=console)


class _BarLine(ProgressColumn):
    """A task in one line."""

    def render(self, task: Task) -> "_Fitted":
        return _Fitted(task)


@dataclass(frozen=True, slots=True)
class _Fitted:
    task: Task

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._line(options)

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        chars = self._line(options).cell_len
        return Measurement(chars, chars)

    def _line(self, options: ConsoleOptions) -> Text:
        task = self.task
        word, left_s = str(task.fields.get("state", "")), task.time_remaining
        what = Text(task.description)
        if word:
            what = Text(" ").join([State(word).text(marked=options.is_terminal), what])
        count = "" if task.total is None else steps_in_words(task.completed, task.total)
        left = "" if left_s is None or task.finished else f"{duration(left_s)} left"
        room = (
            options.max_width - what.cell_len - sum(len(text) + 2 for text in (count, left) if text)
        )
        figures = list(fitting(task.fields.get("shown", ()), room - LEAST_BAR - 2))
        room -= sum(len(figure) + 2 for figure in figures)
        drawn = _drawn(task, min(BAR_CHARS, room - 2)) if room - 2 >= LEAST_BAR else Text()
        parts = [what, drawn, Text(count), *map(Text, figures), Text(left, style="dim")]
        line = Text("  ").join(part for part in parts if part)
        line.truncate(options.max_width, overflow="ellipsis")
        return line


def fitting(figures: Sequence[str], room: int) -> Iterator[str]:
    """The first of them that have room together, two blanks between each."""
    for figure in figures:
        room -= len(figure) + 2
        if room < 0:
            return
        yield figure


def _drawn(task: Task, chars: int) -> Text:
    """Told apart without colour, too."""
    full = round(chars * min(1.0, task.completed / task.total)) if task.total else 0
    return Text.assemble(("━" * full, "green"), ("─" * (chars - full), "dim"))
