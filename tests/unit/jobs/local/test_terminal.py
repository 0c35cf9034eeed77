"""Four commands look alike: at three widths, in colour and without, and through a pipe."""

import io
import re
import sys
from typing import get_args

import pytest
from rich.console import Console

from common.messages.ring import ReplicaPhase
from jobs.dash.state import Phase as RunPhase
from jobs.doctor.finding import Level
from jobs.local import terminal
from jobs.local.terminal import Column, Listing, Row, State, duration, one_line, short, took
from jobs.local.waiting import waiting
from services.learner.status import Phase as LearnerPhase
from tests.fixtures.pages import shown

GREEN, RED, CODES = "\x1b[32m", "\x1b[31m", re.compile(r"\x1b\[([0-9;]*)m")
COLOURS = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9\d)(?:;\d+)*m")
every_command = pytest.mark.parametrize("name", shown.COMMANDS)


FOUND = shown.golden()


@pytest.mark.parametrize("name", FOUND)
def test_what_is_shown_is_what_was_read_and_found_good(name: str) -> None:
    assert FOUND[name] == (shown.GOLDEN / name).read_text(encoding="utf-8")


def test_every_file_of_these_is_compared() -> None:
    assert {path.name for path in shown.GOLDEN.iterdir()} == set(FOUND)


@every_command
@pytest.mark.parametrize("width", [40, *shown.WIDTHS])
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    text = shown.written(shown.COMMANDS[name], is_tty=True, COLUMNS=str(width))
    assert max(map(len, shown.without_codes(text).splitlines())) <= width


@pytest.mark.parametrize("name", ["status", "runs", "doctor"])
def test_at_60_columns_nothing_is_missing_but_headings(name: str) -> None:
    wide, narrow = (FOUND[f"{name}-{width}.txt"] for width in (120, 60))
    words = {word.strip(",") for word in wide.split()} - {"-"}
    lost = {word for word in words if word.strip("─") and word not in narrow}
    assert lost <= {"run", "replica", "state", "last", "problem"}


@every_command
def test_a_terminal_has_colours_and_marks(name: str) -> None:
    text = shown.written(shown.COMMANDS[name], is_tty=True)
    assert COLOURS.search(text)
    assert any(mark in text for mark in terminal.MARKS.values())


@every_command
@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}, {"FORCE_COLOR": ""}, {"TERM": "dumb"}])
def test_a_pipe_is_plain(name: str, environ: dict[str, str]) -> None:
    text = shown.written(shown.COMMANDS[name], is_tty=False, **environ)
    assert "\x1b" not in text
    assert not any(mark in text for mark in "✓✗●○◌")
    assert all(line == line.rstrip() for line in text.splitlines())


@every_command
def test_force_color_colours_a_pipe_and_changes_nothing_else(name: str) -> None:
    plain = shown.written(shown.COMMANDS[name], is_tty=False)
    forced = shown.written(shown.COMMANDS[name], is_tty=False, FORCE_COLOR="1", TERM="dumb")
    assert COLOURS.search(forced)
    assert CODES.sub("", forced) == plain
    both = shown.written(shown.COMMANDS[name], is_tty=False, FORCE_COLOR="1", NO_COLOR="1")
    assert both == plain


@every_command
def test_no_color_leaves_marks_and_no_colour(name: str) -> None:
    text = shown.written(shown.COMMANDS[name], is_tty=True, NO_COLOR="1")
    assert not COLOURS.search(text)
    assert any(mark in text for mark in terminal.MARKS.values())
    empty = shown.written(shown.COMMANDS[name], is_tty=True, NO_COLOR="")
    assert COLOURS.search(empty), "an empty NO_COLOR is none (no-color.org)"


@every_command
@pytest.mark.parametrize("name_of_it", ["dumb", "unknown", "Dumb"])
def test_a_dumb_terminal_gets_no_codes(name: str, name_of_it: str) -> None:
    text = shown.written(shown.COMMANDS[name], is_tty=True, TERM=name_of_it, COLUMNS="80")
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_nothing_moves_in_a_pipe_whatever_forces_colours() -> None:
    def draw(console: Console) -> None:
        with terminal.bar(console) as progress:
            progress.add_task("tempsamp", total=2, state="starting")

    forced = shown.written(draw, is_tty=False, FORCE_COLOR="1")
    assert set(re.findall(r"\x1b\[[0-9;?]*([A-Za-z])", forced)) == {"m"}
    assert "l" in re.findall(r"\x1b\[[0-9;?]*([A-Za-z])", shown.written(draw, is_tty=True))


def test_who_waits_spins_on_a_terminal_alone() -> None:
    def wait(console: Console) -> None:
        with waiting(console, "loading"):
            pass

    assert shown.written(wait, is_tty=False, FORCE_COLOR="1") == "loading\n"
    assert "\x1b[?25l" in shown.written(wait, is_tty=True), "the cursor is hidden"


def test_every_state_of_every_service_has_a_kind() -> None:
    words = {
        *(word for of in (ReplicaPhase, LearnerPhase, RunPhase, Level) for word in get_args(of)),
        terminal.NO_ANSWER,
    }
    assert words == set(terminal.KINDS)
    assert set(terminal.KINDS.values()) == set(terminal.MARKS) == set(terminal.COLOURS)
    assert len(set(terminal.MARKS.values())) == len(terminal.MARKS), "told apart without colour"


def test_a_word_of_tomorrow_is_shown_without_a_mark() -> None:
    assert State("resting").text(marked=True).plain == "  resting"


def test_a_table_that_fits_is_one_and_notes_fold_beside_it() -> None:
    columns = (Column("name"), Column("count", is_number=True))
    rows = [Row(("a", "1"), "x" * 45), Row(("b", "-"))]
    made = Listing(columns, rows, "note")

    def at(width: int) -> list[str]:
        text = shown.written(lambda to: to.print(made), is_tty=True, COLUMNS=str(width))
        return shown.without_codes(text).splitlines()

    assert at(60)[0].split() == ["name", "count", "note"]
    assert len(at(60)) == 4
    assert len(at(50)) == 5, "the note takes two lines"
    assert at(30)[:2] == ["a", "  count 1"]
    assert at(30)[-1] == "b"


def test_brackets_are_no_markup_and_codes_of_others_are_not_obeyed() -> None:
    evil = "[red]a[/] \x1b[31mb\x07\x1b]0;title\x07"
    made = Listing((Column("name"),), [Row((evil,), one_line(evil))], "note")
    text = shown.written(lambda to: to.print(made), is_tty=False)
    assert "[red]a[/]" in text
    assert one_line(evil) == "[red]a[/] [31mb ]0;title"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.414, ".41"),
        (-0.5, "-.50"),
        (0.0, "0"),
        (-0.001, "0"),
        (0.999, "1.00"),
        (1.0, "1"),
        (12.34, "12.3"),
        (12_345.6, "12,346"),
        (float("nan"), "none"),
    ],
)
def test_figures_are_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (119, "119 s"), (150, "2 min"), (9000, "2 h"), (2e5, "2 days")],
)
def test_durations_are_round(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00042, "0.42 ms"),
        (0.0234, "23.4 ms"),
        (1.74, "1.7 s"),
        (119.0, "119.0 s"),
        (600, "10 min"),
    ],
)
def test_what_was_measured_keeps_a_digit(seconds: float, text: str) -> None:
    assert took(seconds) == text


def test_a_closed_stream_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    assert not terminal.console().is_terminal
    monkeypatch.setattr(sys, "stdout", None)
    assert not terminal.console().is_terminal
