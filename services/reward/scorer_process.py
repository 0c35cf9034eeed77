"""Third-party scorers in child processes: a deadline that really stops one and leaks no thread.

A thread cannot be stopped, a process can: each entry point runs in `services.reward.sandbox`, one
call at a time, and is killed and started again when a call exceeds its time or the process dies.
`ScorerPool` lends the processes of one task to the service's worker threads.
"""

import contextlib
import json
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.reward import sandbox

MAX_CALLERS = 16
"""Threads that may use or wait for one scorer; the service has 40, the others stay free."""
START_TIMEOUT_S = 30.0
"""Importing a scorer may take long once."""
READ_BYTES = 65_536
MAX_REPLY_BYTES = 16 * 2**20


class ScorerFailed(Exception):
    """A call gave no result; its message starts with `timeout:`, `error:` or `unavailable:`."""


class ScorerBusy(Exception):
    """So many requests wait for this scorer that another one is better sent again later."""


class ScorerProcess:
    """One child. Not for use by two threads at once."""

    def __init__(self, name: str, *, timeout_s: float) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self.injects: bool | None = None

    def call(self, request: dict[str, Any]) -> Any:
        """One call within the time limit, starting the child if need be.

        Raises:
            ScorerFailed: it raised, took too long, or died.
        """
        if self._child is None:
            self._start()
        reply = self._exchange(json.dumps(request).encode() + b"\n", self._timeout_s)
        if "error" in reply:
            raise ScorerFailed(f"error: {reply['error']}")
        return reply["ok"]

    def close(self) -> None:
        """Kill the child, if there is one."""
        child, self._child, self._unread = self._child, None, b""
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    def _start(self) -> None:
        self._child = subprocess.Popen(
            [
                sys.executable,
                "-I",
                str(Path(sandbox.__file__)),
                json.dumps(sys.path),
                self._name,
                str(2 * self._timeout_s + 1),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self.injects = self._exchange(b"", START_TIMEOUT_S)["ok"]["injects"]

    def _exchange(self, message: bytes, timeout_s: float) -> dict[str, Any]:
        """Send a line and wait for a line; a child that breaks the protocol is killed."""
        try:
            return dict(json.loads(self._round_trip(message, time.monotonic() + timeout_s)))
        except TimeoutError:
            self.close()
            raise ScorerFailed(f"timeout: the scorer took over {timeout_s} s") from None
        except (OSError, EOFError, ValueError) as error:
            self.close()
            raise ScorerFailed(
                f"error: the scorer's process died or spoke nonsense: {error}"
            ) from error

    def _round_trip(self, message: bytes, deadline: float) -> bytes:
        child = self._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        unsent, read = message, [self._unread]
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            if unsent:
                selector.register(child.stdin, selectors.EVENT_WRITE)
            while b"\n" not in read[-1]:
                for key, _ in _ready(selector, deadline):
                    if key.fileobj is child.stdin:
                        unsent = unsent[os.write(key.fd, unsent) :]
                        if not unsent:
                            selector.unregister(child.stdin)
                    else:
                        read.append(_read_some(key.fd, sum(map(len, read))))
        line, _, self._unread = b"".join(read).partition(b"\n")
        return line


def _ready(
    selector: selectors.BaseSelector, deadline: float
) -> list[tuple[selectors.SelectorKey, int]]:
    left_s = deadline - time.monotonic()
    events = selector.select(left_s) if left_s > 0 else []
    if not events:
        raise TimeoutError
    return events


def _read_some(descriptor: int, already: int) -> bytes:
    piece = os.read(descriptor, READ_BYTES)
    if not piece:
        raise EOFError("it ended")
    if already > MAX_REPLY_BYTES:
        raise ValueError(f"a reply over {MAX_REPLY_BYTES} bytes")
    return piece


class ScorerPool:
    """The processes of one entry point."""

    def __init__(self, name: str, *, processes: int, timeout_s: float) -> None:
        self._callers = threading.BoundedSemaphore(MAX_CALLERS)
        self._idle: queue.SimpleQueue[ScorerProcess] = queue.SimpleQueue()
        self._all = [ScorerProcess(name, timeout_s=timeout_s) for _ in range(processes)]
        for process in self._all:
            self._idle.put(process)

    @contextlib.contextmanager
    def lend(self, *, wait_s: float) -> Iterator[ScorerProcess]:
        """A process nobody else uses, until the block ends.

        Raises:
            ScorerFailed: all stayed busy for `wait_s`.
            ScorerBusy: `MAX_CALLERS` others already use or wait for one.
        """
        if not self._callers.acquire(blocking=False):
            raise ScorerBusy(f"{MAX_CALLERS} requests already wait for this scorer")
        try:
            with self._one(wait_s) as process:
                yield process
        finally:
            self._callers.release()

    @contextlib.contextmanager
    def _one(self, wait_s: float) -> Iterator[ScorerProcess]:
        try:
            process = self._idle.get(timeout=max(0.0, wait_s))
        except queue.Empty:
            raise ScorerFailed(
                f"unavailable: every scorer process stayed busy for {wait_s:.1f} s"
            ) from None
        try:
            yield process
        finally:
            self._idle.put(process)

    @property
    def injects(self) -> bool | None:
        """Whether the scorer renders answers; None before its first call."""
        return next((p.injects for p in self._all if p.injects is not None), None)

    def close(self) -> None:
        """Kill all children."""
        for process in self._all:
            process.close()
