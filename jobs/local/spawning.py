"""One child process: spawned in a session of its own, ended with everything that it started.

`spawn(command, environment) -> process`, `end` for a living one, `end_rest` for what a dead one
left. Whoever a child started carries its mark in the environment, so even orphans that lead their
own session are found; nothing without the mark is ever ended.
"""

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

MARK = "TEMPSAMP_CHILD"
"""Environment variable with a random value, of a child and of all that it starts; a child that has
children of its own adds theirs behind a slash."""
GONE_S = 5.0
"""For processes that were killed to let go of ports and locks."""
_PR_SET_PDEATHSIG = 1


def marked(environment: Mapping[str, str]) -> dict[str, str]:
    """The same environment, with a mark of its own."""
    outer = environment.get(MARK)
    own = secrets.token_hex(16)
    return {**environment, MARK: f"{outer}/{own}" if outer else own}


def spawn(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    log: Path,
    stdin: bytes | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a child whose output is appended to `log`; `stdin` is all that it reads."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(stdin or b"")
    return process


def die_with_parent() -> None:
    """Runs in the child before exec (Linux); elsewhere an orphan has to be ended by hand."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end(process: "subprocess.Popen[bytes]", *, mark: str, timeout_s: float) -> None:
    """SIGTERM, and SIGKILL after `timeout_s`; then what is left of it."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
    end_rest(process, mark=mark)


def end_rest(process: "subprocess.Popen[bytes]", *, mark: str) -> None:
    """Kill a child's session and whoever carries its mark: they outlive a crash."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = list(carriers(mark))
    for orphan in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.kill()
    deadline = time.monotonic() + GONE_S
    while any(map(is_running, left)) and time.monotonic() < deadline:
        time.sleep(0.01)


def carriers(mark: str) -> Iterator[psutil.Process]:
    """Processes that carry a mark, as far as their environment can be read."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            found = process.environ().get(MARK, "")
            if found == mark or found.startswith(f"{mark}/"):
                yield process


def is_running(process: psutil.Process) -> bool:
    """Who inherited an orphan may take its time to collect it."""
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
