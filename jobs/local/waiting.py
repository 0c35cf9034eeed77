"""What a command waits for, where its user looks: `with waiting(console, "loading the model"): …`.

On a terminal a spinner or a bar; where the output goes to a file or a pipe, a line at once and one
now and then, as rich draws nothing there until the end.
"""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from common import logs
from jobs.local.terminal import duration, steps_in_words


@contextlib.contextmanager
def waiting(console: Console, what: str) -> Iterator[None]:
    """Say what is waited for until what is inside has ended; nothing in it is markup."""
    if console.is_terminal:
        with console.status(escape(what)):
            yield
        return

    def say_again(seconds: float) -> None:
        _print(console, f"still {what}, for {duration(seconds)}")

    _print(console, what)
    with logs.speaking(say_again, every_s=logs.SAY_EVERY_S):
        yield


@contextlib.contextmanager
def shown(progress: Progress) -> Iterator[Progress]:
    """A bar from now on; without a terminal a line a task now and then, beside its last state.

    A task's field `shown` holds the figures that its bar shows beside the numbers.
    """
    if progress.console.is_terminal:
        with progress:
            yield progress
        return

    def say(_seconds: float) -> None:
        for task in progress.tasks:
            if task.visible and not task.finished:
                done = steps_in_words(task.completed, task.total)
                _print(
                    progress.console,
                    "  ".join((f"{task.description} {done}", *task.fields.get("shown", ()))),
                )

    with progress, logs.speaking(say, every_s=logs.SAY_EVERY_S):
        yield progress


def _print(console: Console, words: str) -> None:
    console.print(words, markup=False, highlight=False, soft_wrap=True)
