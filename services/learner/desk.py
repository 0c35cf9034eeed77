"""Rank 0's desk: everything of a run that only one rank may touch.

Redis is driven from the learner's synchronous loop through one asyncio runner; feed and intake sit
on it. The desk also holds the run: a lock on the run folder against a second learner on this
machine, and a lease in Redis against one elsewhere.
"""

import asyncio
import fcntl
import logging
import math
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from common.config import Run
from common.errors import ConfigError
from common.messages import ClipRef, PromptRequest, ReplicaStatus, ScoredGroup
from common.queue.broker import Broker
from services.learner import metrics
from services.learner.feed import Feed
from services.learner.intake import Intake
from services.learner.parallel import StopSignal
from services.learner.state.checkpoint import RunState
from services.learner.status import Status
from services.learner.validation import Validate, Validator

logger = logging.getLogger(__name__)

HOLD_TTL_S = 600.0
"""Longer than any step: the lease is renewed between steps."""
HOLD_EVERY_S = 10.0
SHOW_EVERY_S = 5.0
"""Between two looks at the queues while nothing else happens; Prometheus asks every 15 s."""


class Desk:
    """A context manager: entered with Redis reachable and the run ours, left with both given up."""

    def __init__(
        self,
        run: Run,
        *,
        state: RunState | None,
        stop: StopSignal,
        validate: Validate | None = None,
        status: Status | None = None,
    ) -> None:
        self._run = run
        self.status = status or Status()
        """What who watches the run sees of it."""
        self._shown_s = -math.inf
        self._state = state
        self._runner = asyncio.Runner()
        self._broker = Broker.of(run.shared)
        # The lock tells learners of one machine apart, so the lease need only tell machines apart
        # and a learner that restarts after a crash gets its own lease back at once.
        self._holder = f"{socket.gethostname()}:{run.learner.run_dir.resolve()}"
        self._held_s = -math.inf
        self._lock: IO[bytes] | None = None
        self._stop = stop
        self.epoch = 1
        """Of our hold on the run."""
        self._validate = validate

    def __enter__(self) -> Self:
        self._lock = _lock_folder(self._run.learner.run_dir)
        shared, learner, state = self._run.shared, self._run.learner, self._state
        # Rows are read before Redis is waited for: a wrong path is said at once.
        self.feed = Feed(
            self._broker,
            shared=shared,
            learner=learner,
            runner=self._runner,
            state=state.feed if state else None,
        )
        self.intake = Intake(
            self._broker,
            feed=self.feed,
            runner=self._runner,
            settings=learner,
            state=state.intake if state else None,
        )
        self._runner.run(self._broker.wait_ready())
        self._hold()
        if state is None:
            self._runner.run(self._broker.reset_run())
        metrics.keep_until(self.metrics_path, step=state.step if state else 0)
        if self._validate is not None:
            self._validator = Validator(
                self._validate,
                run_dir=learner.run_dir,
                resumed_at=state.step if state else None,
                show=self.status.show,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.run(self._broker.drop_run(self._holder))
        self._runner.run(self._broker.close())
        self._runner.close()
        if self._lock is not None:
            self._lock.close()

    @property
    def metrics_path(self) -> Path:
        """One JSON object a step."""
        return self._run.learner.run_dir / "metrics.jsonl"

    def take(
        self,
        version: int,
        *,
        on_idle: Callable[[], None],
        faults_of: Callable[[Sequence[ScoredGroup]], Mapping[str, str]],
    ) -> Sequence[ScoredGroup] | None:
        """The groups of the next step; None when asked to stop, or `intake.stalled` says why."""

        def idle() -> None:
            self._hold()
            self._show_queues()
            on_idle()

        self._hold()
        self._show_queues()
        with self.status.waiting():
            groups = self.intake.take(
                self._run.learner.groups_per_step,
                at=version,
                on_idle=idle,
                should_stop=lambda: self._stop.asked,
                faults_of=faults_of,
            )
        return groups or None

    def validate(
        self, version: int, *, urls: Callable[[], Sequence[str]], on_idle: Callable[[], None]
    ) -> None:
        """Have the held-out rows answered; a signal ends it early."""

        def idle() -> None:
            self._hold()
            on_idle()

        self._validator.run(version, urls=urls, on_idle=idle, should_stop=lambda: self._stop.asked)

    def top_up(self, version: int) -> list[ClipRef]:
        """Feed prompts until the bound on outstanding ones is reached; returns their clips."""
        return [request.clip for request in self.feed.top_up(version)]

    def acknowledge(self) -> None:
        """Delete from Redis what the last checkpoint contains."""
        self.intake.acknowledge()

    def state(self, step: int, *, rng: str) -> RunState:
        """What a checkpoint keeps of this desk."""
        return RunState(step=step, feed=self.feed.state(), intake=self.intake.state(), rng=rng)

    def probe_request(self) -> PromptRequest:
        """A prompt outside the ring."""
        return self.feed.probe_request()

    def replicas(self) -> list[ReplicaStatus]:
        """The registry."""
        found = self._runner.run(self._broker.replicas())
        self.status.saw(found)
        return found

    def figures(self) -> dict[str, float]:
        """Queue depths and what became of the groups so far."""
        depths = self._runner.run(self._broker.depths())
        counters = self.intake.counters.model_dump()
        return {
            "queue/prompts_waiting": depths.prompts_waiting,
            "queue/prompts_claimed": depths.prompts_claimed,
            "queue/groups_unread": depths.groups_unread,
            "queue/dead_letters": depths.dead_letters,
            **{f"intake/{name}": count for name, count in counters.items()},
        }

    def _show_queues(self) -> None:
        if time.monotonic() - self._shown_s >= SHOW_EVERY_S:
            self.status.show(self.figures())
            self._shown_s = time.monotonic()

    def _hold(self) -> None:
        """Take or renew the lease.

        Raises:
            ConfigError: another learner has this run.
        """
        if time.monotonic() - self._held_s < HOLD_EVERY_S:
            return
        holder = self._runner.run(self._broker.hold_run(self._holder, ttl_s=HOLD_TTL_S))
        if holder != self._holder:
            raise ConfigError(
                f"shared.run_id: found {self._run.shared.run_id!r} in use by a learner at "
                f"{holder}, wanted a run of our own: stop that one, or choose another run_id"
            )
        self._held_s = time.monotonic()


def _lock_folder(run_dir: Path) -> IO[bytes]:
    """Held until this process ends, however it ends.

    Raises:
        ConfigError: another learner of this machine works in the folder.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = (run_dir / "learner.lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(
            f"learner.run_dir: another learner is at work in {run_dir}: stop it, or choose another"
        ) from error
    return lock
