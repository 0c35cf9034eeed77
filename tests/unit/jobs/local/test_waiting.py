"""A wait is seen: on a terminal as a spinner or bar, elsewhere as lines."""

import io
import time
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

from common import logs
from jobs.local.waiting import shown, waiting


def console(*, is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=40)


def written(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def until(is_reached: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not is_reached():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_without_a_terminal_a_wait_is_a_line_at_once_and_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "SAY_EVERY_S", 0.02)
    log = console(is_terminal=False)
    what = "waiting for a replica at http://[fd00::1]:8200 or http://[::1]:8201"
    with waiting(log, what):
        assert written(log) == f"{what}\n", "whole, and nothing in it is markup"
        until(lambda: written(log).count("\n") >= 3)
    assert written(log).splitlines()[1] == f"still {what}, for 0 s"


def test_on_a_terminal_it_is_a_spinner() -> None:
    screen = console(is_terminal=True)
    with waiting(screen, "at http://[fd00::1]:1"):
        until(lambda: "at http://[fd00::1]:1" in written(screen))
    assert "still" not in written(screen)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_there_from_the_begin(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "SAY_EVERY_S", 0.02)
    to = console(is_terminal=is_terminal)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn())
    with shown(Progress(*columns, console=to)) as progress:
        progress.add_task("videos", total=7, completed=3, shown=("1 failed",))
        progress.add_task("unseen", visible=False)
        wanted = "videos" if is_terminal else "videos 3 of 7  1 failed\n"
        until(lambda: wanted in written(to))
    assert "unseen" not in written(to)
