"""Child processes of a local run: start, watch, restart, and leave none behind.

    with Children(folder, progress=…) as children:
        children.start("reward", command, restarts=3)
        while …: children.check()

Every child leads its own session (`spawning`); what it and its earlier lives wrote is in
`<folder>/<name>.log`. Children get a SIGTERM from the kernel when this process dies without saying
goodbye. Only processes started here are ever ended.

A child that dies is started again, so often in a row. The row ends when the run has got further
than at its last death: living long proves little of a child that fails at the same step each time.
"""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from common.errors import TempSampError
from jobs.local.spawning import MARK, end, end_rest, marked, spawn

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 20.0
"""For all children together, as long as each gets its grace."""
GRACE_S = 2.0
TAIL_LINES = 20
LAST_WORDS_BYTES = 65_536
KEPT_LOG_BYTES = 16 * 2**20
"""A log that has grown so far becomes `<name>.1.log` when the next life begins."""
PAUSE_S = 1.0
"""More before each further start in a row; none before the first."""
POLL_S = 0.2
REFUSED = 2
"""Exit code of our commands for a setting that is wrong: the same command fails the same way."""

T = TypeVar("T")


def run_arguments(config_file: Path, overrides: Sequence[str]) -> list[str]:
    """A run file and what differs from it (section.key=value), as services take them."""
    return ["--config", str(config_file), *(w for item in overrides for w in ("--set", item))]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends what runs here as Ctrl-C does, so that its processes are ended too."""
    # SIGINT too: a shell starts background jobs with it ignored, and Python leaves that alone.
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until a child that is being started is known to who ends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for missed in came:
        signal.raise_signal(missed)


class ChildError(TempSampError):
    """A child ended when it should not have; the message carries the end of its log."""


@dataclass
class Child:
    """One child and how to start it again."""

    name: str
    again: Sequence[str | Path]
    environ: Mapping[str, str]
    log: Path
    stdin: bytes | None
    ends: bool
    grace_s: float
    restarts_allowed: int
    """In a row."""
    process: "subprocess.Popen[bytes]"
    life_begins: int
    """Byte of the log."""
    restarts: int = 0
    failures_in_a_row: int = 0
    reached: float = float("-inf")
    """How far the run was at its last death."""
    next_start_s: float | None = None
    """It is dead, and this is when it is started again."""
    watched: bool = True

    @property
    def is_done(self) -> bool:
        """It has ended as it should."""
        return self.ends and self.process.poll() == 0

    @property
    def has_failed(self) -> bool:
        """It has ended, and should not have."""
        return self.watched and self.process.poll() is not None and not self.is_done

    @property
    def how_it_ended(self) -> str:
        """How it ended."""
        code = self.process.poll()
        if code is None:
            return "has not ended"
        if code >= 0:
            return f"ended with code {code}"
        return f"was killed by {signal.Signals(-code).name}"

    @property
    def last_words(self) -> str:
        """The end of what it wrote in this life."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self.life_begins, size - LAST_WORDS_BYTES))
            return file.read().decode(errors="replace")

    @property
    def tail(self) -> str:
        """Its last lines."""
        return "\n".join(self.last_words.splitlines()[-TAIL_LINES:])

    @property
    def is_hopeless(self) -> bool:
        """A setting is wrong, and starting it again does not change that."""
        return self.process.poll() == REFUSED

    @property
    def mark(self) -> str:
        """What all that it started carries."""
        return self.environ[MARK]


def _nowhere() -> float:
    return 0.0


@dataclass
class Children:
    """A context manager that owns children; leaving it stops them all, last started first."""

    folder: Path
    progress: Callable[[], float] = _nowhere
    """How far the run is: grows with work that is done. Without it no row of failures ends."""
    _children: list[Child] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A second Ctrl-C must not leave half of them running.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.stop()
        finally:
            signal.signal(signal.SIGINT, previous)

    @property
    def restarts(self) -> int:
        """How often a child was started again."""
        return sum(child.restarts for child in self._children)

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        again: Sequence[str | Path] | None = None,
        environ: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        restarts: int = 0,
        ends: bool = False,
        grace_s: float = GRACE_S,
    ) -> Child:
        """Start a child.

        Args:
            name: of the child and its log file.
            command: program and arguments.
            again: the same for starting it again, where that differs.
            environ: added to this process's environment.
            stdin: what each of its lives reads; a secret there shows nowhere.
            restarts: how often in a row `check` starts it again when it dies.
            ends: whether it ends by itself, with exit code 0.
            grace_s: what it gets to end well, however long the others took.
        """
        log = self.folder / f"{name}.log"
        environment = marked({**os.environ, **(environ or {})})
        with _signals_later():
            begins = _begin_life(log, f"started by process {os.getpid()}")
            child = Child(
                name=name,
                again=command if again is None else again,
                environ=environment,
                log=log,
                stdin=stdin,
                ends=ends,
                grace_s=grace_s,
                restarts_allowed=restarts,
                process=spawn(command, environment, log, stdin),
                life_begins=begins,
            )
            self._children.append(child)
        return child

    def unwatch(self, child: Child) -> None:
        """Let a child end as it may; it is still ended with the others."""
        child.watched = False

    def check(self) -> None:
        """Start again who died and may be; to be called often.

        Raises:
            ChildError: a child died too often in a row, or cannot be started as it is.
        """
        for child in self._children:
            if not child.has_failed:
                continue
            if child.next_start_s is None:
                child.next_start_s = time.monotonic() + self._pause_after_death(child)
            if time.monotonic() >= child.next_start_s:
                self._start_again(child)

    async def watch(self) -> None:
        """`check`, for ever.

        Raises:
            ChildError: as `check`.
        """
        while True:
            self.check()
            await asyncio.sleep(POLL_S)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, during which children are watched.

        Raises:
            ChildError: as `check`; `work` is cancelled.
        """
        return asyncio.run(self._watched(work))

    def stop(self) -> None:
        """End one after the other, last started first: SIGTERM, and SIGKILL after a deadline.

        In turn, because who was started later may need the earlier ones to end well: a learner
        finishes its step and publishes it before it writes its last checkpoint.
        """
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for child in reversed(self._children):
            timeout_s = max(child.grace_s, deadline - time.monotonic())
            end(child.process, mark=child.mark, timeout_s=timeout_s)
        self._children.clear()

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        working = asyncio.create_task(work)
        watching = asyncio.create_task(self.watch())
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                await watching
            return await working
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    def _pause_after_death(self, child: Child) -> float:
        """Count it and say so; seconds until it may be started again."""
        end_rest(child.process, mark=child.mark)
        reached = self.progress()
        if reached > child.reached:
            child.failures_in_a_row = 0
        child.reached = max(child.reached, reached)
        if child.failures_in_a_row == child.restarts_allowed or child.is_hopeless:
            raise ChildError(_epitaph(child))
        child.failures_in_a_row += 1
        logger.warning(
            "%s %s: starting it again (%d of %d in a row)",
            *(child.name, child.how_it_ended),
            *(child.failures_in_a_row, child.restarts_allowed),
        )
        return PAUSE_S * (child.failures_in_a_row - 1)

    def _start_again(self, child: Child) -> None:
        with _signals_later():
            child.life_begins = _begin_life(child.log, f"{child.how_it_ended}, started again")
            child.process = spawn(child.again, child.environ, child.log, child.stdin)
        child.next_start_s = None
        child.restarts += 1


def _epitaph(child: Child) -> str:
    row = child.failures_in_a_row
    tries = f" (started again {row}x in a row)" if row else ""
    return f"{child.name} {child.how_it_ended}{tries}; {child.log} closes with:\n{child.tail}"


def _begin_life(log: Path, why: str) -> int:
    """Keep what there is, and write below it why there is more; returns where that begins."""
    if log.exists() and log.stat().st_size > KEPT_LOG_BYTES:
        log.replace(log.with_suffix(".1.log"))
    with log.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = b"" if file.read() == b"\n" else b"\n"
            line = f"----- {time.strftime('%Y-%m-%d %H:%M:%S')} {why} -----\n"
            file.write(torn + line.encode())
        return file.tell()
