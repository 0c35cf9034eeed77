"""One collective of the learner and replicas: our part in a thread, theirs over HTTP.

    mine, answers = await together(in_thread(join), {"a": peers.join(...)}, abort=..., within_s=40)

The first failure ends it for all, and so does silence.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from common.errors import GroupError, WeightError
from common.messages import ReplicaStatus
from common.weights.group import WeightGroup

logger = logging.getLogger(__name__)

T = TypeVar("T")


class BrokenError(GroupError):
    """A collective broke; what each member that answered had to say."""

    def __init__(self, failures: dict[str, WeightError]) -> None:
        super().__init__("; ".join(map(str, failures.values())) or "no answer in time")
        self.failures = failures


async def together(
    ours: "asyncio.Future[T]",
    asking: dict[str, Coroutine[Any, Any, ReplicaStatus]],
    *,
    abort: Callable[[], None],
    within_s: float | None = None,
    rest_s: float | None = None,
) -> tuple[T, list[ReplicaStatus]]:
    """Our part beside what each member answers.

    Args:
        ours: has deadlines of its own, unless `within_s` is given.
        asking: what each member is asked, by name.
        abort: called at the first failure.
        within_s: for everything.
        rest_s: for the members once our part is done: to digest the last bucket, and to apply.

    Raises:
        BrokenError: says who failed so far.
    """
    answers = {name: asyncio.ensure_future(asked) for name, asked in asking.items()}
    waiting: set[asyncio.Future[Any]] = {ours, *answers.values()}
    end_s = None if within_s is None else time.monotonic() + within_s
    while waiting:
        left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
        done, waiting = await asyncio.wait(
            waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not done or any(item.exception() is not None for item in done):
            abort()
            raise BrokenError(_failures(answers, ours))
        if ours in done and rest_s is not None:
            end_s = time.monotonic() + rest_s
    return ours.result(), [answer.result() for answer in answers.values()]


def _failures(
    answers: Mapping[str, "asyncio.Future[ReplicaStatus]"], ours: "asyncio.Future[Any]"
) -> dict[str, WeightError]:
    """What failed by now; the rest is left to itself."""
    found: dict[str, WeightError] = {}
    for name, answer in answers.items():
        if not answer.done():
            answer.cancel()
        elif isinstance(error := answer.exception(), WeightError):
            found[name] = error
    if ours.done() and ours.exception() is not None:
        logger.warning("weight group broke", extra={"error": str(ours.exception())})
    ours.add_done_callback(_forget)
    return found


def _forget(late: "asyncio.Future[Any]") -> None:
    """What came of our part of a collective that was given up."""
    if late.exception() is None and isinstance(group := late.result(), WeightGroup):
        group.close()


def in_thread(function: Callable[[], T]) -> "asyncio.Future[T]":
    """As asyncio.to_thread, in a thread that may be left behind: the process can end without it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def resolve(setter: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            setter(value)

    def tell(setter: Callable[[Any], None], value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be gone by then
            loop.call_soon_threadsafe(resolve, setter, value)

    def run() -> None:
        try:
            value = function()
        except Exception as error:  # noqa: BLE001  # whoever awaits the future gets it
            tell(future.set_exception, error)
        else:
            tell(future.set_result, value)

    threading.Thread(target=run, daemon=True, name="weights").start()
    return future
