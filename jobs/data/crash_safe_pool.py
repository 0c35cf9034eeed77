"""Tasks in spawned processes, where a crash or a hang costs one task: `results(work, tasks)`.

Video decoders are C libraries fed with files from anywhere: they crash, hang and get killed for
their memory. `concurrent.futures` then gives the whole pool up; pebble loses the one task, and what
it cannot place (a worker that dies between two tasks) is started again here. Used by
`jobs.data.preprocess`.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TypeVar

from pebble import ProcessExpired, ProcessPool

from common.errors import TempSampError

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 4
"""Tasks handed out per worker, so that none waits for the next one."""
MAX_BROKEN_POOLS = 5


@dataclass(frozen=True)
class Lost:
    """A task that took its process with it."""

    reason: str
    """`crashed` or `timed out`."""
    detail: str


class WorkersKeepDyingError(TempSampError):
    """Workers die without a task: the machine is out of memory, or something kills them."""


def results(
    work: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int, timeout_s: float
) -> Generator[tuple[Task, Result | Lost], None, None]:
    """Do all tasks; each comes back once, in the order they finish.

    Closing the iterator, or an exception such as Ctrl-C where it is used, kills the workers.

    Args:
        work: a function of a module, called in a worker process; what it raises is raised here.
        tasks: its arguments.
        workers: processes.
        timeout_s: longest time of one task.

    Raises:
        WorkersKeepDyingError: see there.
    """
    waiting = deque(tasks)
    for _ in range(MAX_BROKEN_POOLS):
        try:
            yield from _until_broken(work, waiting, workers=workers, timeout_s=timeout_s)
        except BrokenProcessPool:
            continue
        return
    raise WorkersKeepDyingError(
        f"{MAX_BROKEN_POOLS} times workers died without a task, {len(waiting)} tasks are left: "
        "use fewer --workers if memory is short"
    )


def _until_broken(
    work: Callable[[Task], Result], waiting: deque[Task], *, workers: int, timeout_s: float
) -> Iterator[tuple[Task, Result | Lost]]:
    """Take tasks from `waiting`; those in flight are put back when the pool breaks."""
    running: dict[Future[Result], Task] = {}
    context = multiprocessing.get_context("spawn")  # decoders have threads: no fork
    pool = ProcessPool(max_workers=workers, initializer=_die_at_once, context=context)
    try:
        while waiting or running:
            while waiting and len(running) < AHEAD * workers:
                task = waiting.popleft()
                running[pool.schedule(work, args=(task,), timeout=timeout_s)] = task
            done = wait(running, return_when=FIRST_COMPLETED).done
            # Several at once come in the order they were begun: a set has none.
            for future in [future for future in running if future in done]:
                result = _result(future, timeout_s=timeout_s)
                yield running.pop(future), result
    finally:
        waiting.extendleft(running.values())
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _result(future: Future[Result], *, timeout_s: float) -> Result | Lost:
    try:
        return future.result()
    except ProcessExpired as error:
        return Lost("crashed", f"its process ended with {_exit(error.exitcode)}")
    except TimeoutError:
        return Lost("timed out", f"not finished after {timeout_s:g} s")


def _exit(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _die_at_once() -> None:
    """SIGTERM ends a worker inside C code too, where a Python handler would not get its turn."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
