"""Child processes of a local run: start, watch, restart, and leave none behind.

Every child leads its own session, so that ending it ends its own children too (vLLM's engine,
torchrun's ranks); its output goes to `<folder>/<name>.log`. Children get a SIGTERM from the kernel
when this process dies without saying goodbye. Only processes started here are ever ended.
"""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from common.errors import TempSampError

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 20.0
"""For all children together, as long as each gets its grace."""
GRACE_S = 2.0
TAIL_LINES = 20
_PR_SET_PDEATHSIG = 1


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
    command: Sequence[str]
    environ: Mapping[str, str]
    log: Path
    restarts_left: int
    process: "subprocess.Popen[bytes]"
    restarts: int = 0
    expected_to_end: bool = False
    watched: bool = True

    @property
    def tail(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])


@dataclass
class Children:
    """A context manager that owns children; leaving it stops them all, last started first."""

    folder: Path
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

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        restarts: int = 0,
        ends: bool = False,
    ) -> Child:
        """Start a child.

        Args:
            name: of the child and its log file.
            command: program and arguments.
            environ: added to this process's environment.
            restarts: how often `check` starts it again when it ends.
            ends: whether it ends by itself, with exit code 0.
        """
        log = self.folder / f"{name}.log"
        log.write_bytes(b"")
        environment = {**os.environ, **(environ or {})}
        with _signals_later():
            process = _spawn(command, environment, log)
            child = Child(name, command, environment, log, restarts, process, expected_to_end=ends)
            self._children.append(child)
        return child

    def unwatch(self, child: Child) -> None:
        """Let a child end as it may; it is still ended with the others."""
        child.watched = False

    def check(self) -> None:
        """Restart who may be restarted.

        Raises:
            ChildError: a child ended that must not.
        """
        for child in self._children:
            code = child.process.poll()
            ended_well = child.expected_to_end and code == 0
            if code is None or ended_well or not child.watched:
                continue
            _end_session(child.process)
            if child.restarts_left == 0:
                raise ChildError(
                    f"{child.name} ended with code {code}; {child.log} closes with:\n{child.tail}"
                )
            child.restarts_left -= 1
            child.restarts += 1
            logger.warning("%s ended with code %s, starting it again", child.name, code)
            with _signals_later():
                child.process = _spawn(child.command, child.environ, child.log)

    def stop(self) -> None:
        """End one after the other, last started first: SIGTERM, and SIGKILL after a deadline.

        In turn, because who was started later may need the earlier ones to end well: a learner
        finishes its step and publishes it before it writes its last checkpoint.
        """
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for child in reversed(self._children):
            _end(child.process, timeout_s=max(GRACE_S, deadline - time.monotonic()))
        self._children.clear()


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> "subprocess.Popen[bytes]":
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def die_with_parent() -> None:
    """Runs in the child before exec (Linux); elsewhere an orphan has to be ended by hand."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: "subprocess.Popen[bytes]", *, timeout_s: float) -> None:
    """SIGTERM, then SIGKILL; descendants too, whatever session they lead (torchrun's ranks do)."""
    descendants = []
    if process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendants = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
    _end_session(process)
    for descendant in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()


def _end_session(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of a child's session: its own children outlive a crash."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
