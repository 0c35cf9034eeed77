"""Held-out figures while the policy trains: `Validator(validate).run(version, …)` → a line on disk.

    version published -> [replicas answer the held-out rows] -> <run_dir>/validation.jsonl

Who asks and scores is handed in (`Validate`; `tempsamp learner` hands in `jobs.evaluation`), so
that the learner depends on no job. Training waits meanwhile, so all answers are of one version;
prompts in flight are answered beside them. A validation that fails is said and counted, and
training goes on.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from common.errors import EngineError
from common.queue.lines import read_figures
from services.learner import metrics

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""A replica may end meanwhile; the answers so far are kept."""
POLL_S = 0.2


class Validate(Protocol):
    """Asks held-out rows; a port, see the module's docstring."""

    def __call__(
        self, version: int, *, urls: Sequence[str], folder: Path
    ) -> Coroutine[Any, Any, Mapping[str, float]]:
        """Figures of the weights that the replicas at `urls` serve; answers go to `folder`.

        Raises:
            EngineError: no figures this time.
        """


class Validator:
    """Rank 0's validations, one folder a version."""

    def __init__(
        self,
        validate: Validate,
        *,
        run_dir: Path,
        resumed_at: int | None,
        show: Callable[[Mapping[str, float]], None] = lambda _figures: None,
    ) -> None:
        """Drop what an earlier run, an interrupted validation, or repeated steps left behind.

        Args:
            validate: asks.
            run_dir: of the learner.
            resumed_at: step of the checkpoint; None for a fresh run.
            show: gets the figures of each validation.
        """
        self._validate = validate
        self._show = show
        self._folder = run_dir / "validation"
        self._path = run_dir / "validation.jsonl"
        self._failures = 0
        metrics.keep_until(self._path, step=-1 if resumed_at is None else resumed_at)
        done = self._done()
        for folder in self._folder.glob("version-*"):
            if int(folder.name.partition("-")[2]) not in done:
                shutil.rmtree(folder)

    def run(
        self,
        version: int,
        *,
        urls: Callable[[], Sequence[str]],
        on_idle: Callable[[], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Validate a version, unless that was done before.

        Args:
            version: what the replicas serve.
            urls: of the replicas that have it now.
            on_idle: called all the while, between attempts too.
            should_stop: whether to leave; the answers so far are kept.
        """
        if version in self._done():
            return
        started = time.monotonic()
        for attempt in range(1, ATTEMPTS + 1):
            on_idle()
            try:
                figures = self._attempt(version, urls(), on_idle, should_stop)
            except EngineError as error:
                logger.warning(
                    "validation failed",
                    extra={"policy_version": version, "attempt": attempt, "reason": str(error)},
                )
                continue
            if figures is None:
                return
            line = {"step": version, "policy_version": version, **figures}
            line["val/wall_s"] = time.monotonic() - started
            metrics.append(self._path, line)
            self._show({key: line[key] for key in line.keys() - {"step", "policy_version"}})
            logger.info("validation", extra=line)
            return
        self._failures += 1
        logger.error(
            "validation given up",
            extra={"policy_version": version, "attempts": ATTEMPTS, "given_up": self._failures},
        )

    def _attempt(
        self,
        version: int,
        urls: Sequence[str],
        on_idle: Callable[[], None],
        should_stop: Callable[[], bool],
    ) -> Mapping[str, float] | None:
        """Figures, or None when asked to stop."""
        folder = self._folder / f"version-{version:06d}"
        with _loop_of_its_own() as loop:
            answer = asyncio.run_coroutine_threadsafe(
                self._validate(version, urls=urls, folder=folder), loop
            )
            while not concurrent.futures.wait([answer], timeout=POLL_S).done:
                on_idle()
                if should_stop():
                    answer.cancel()
                    return None
            return answer.result()

    def _done(self) -> set[int]:
        return {line["policy_version"] for line in read_figures(self._path, by="policy_version")}


@contextlib.contextmanager
def _loop_of_its_own() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread; at the end its tasks are cancelled and waited for."""
    ready: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()

    async def until_stopped() -> None:
        ready.set_result(asyncio.get_running_loop())
        await stopped.wait()

    stopped = asyncio.Event()
    thread = threading.Thread(target=asyncio.run, args=(until_stopped(),), daemon=True)
    thread.start()
    loop = ready.result()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
