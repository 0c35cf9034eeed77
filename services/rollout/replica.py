"""Everything one rollout replica owns: engine, weights, worker loop, registry entry.

It starts without waiting for any neighbour, and prompts are claimed once the first verified weights
are served. With `rollout.weights = "checkpoint"` it answers /v1/generate alone, from the checkpoint
on disk. Neighbours: `services.rollout.app` is its REST face, `claiming.worker` its loop.
"""

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable

from common.config import Rollout, Run, Shared
from common.errors import ConfigError, TempSampError
from common.logs import LAST_PROBLEM, speaking
from common.messages import HeldWeights, ReplicaPhase, ReplicaStatus
from common.queue.broker import Broker
from common.rest.fleet_api import Machine, ReplicaReport, problem_of
from common.video.limits import ClipLimits
from common.video.loader import ClipLoader
from services.rollout.claiming.wellness import innermost
from services.rollout.claiming.worker import Worker
from services.rollout.engine import Engine, EngineDownError
from services.rollout.gate import Gate
from services.rollout.gpu import claim
from services.rollout.metrics import Counters, Rate
from services.rollout.receiving.version import Weights
from services.rollout.reward_client import GroupScorer

logger = logging.getLogger(__name__)

WITHDRAW_TIMEOUT_S = 2.0
HEALTH_EVERY_S = 2.0
DRAIN_S = 20.0
"""How long prompts in work may take after SIGTERM before they are handed back, and requests before
they are cancelled."""
LAST_WORDS_S = 1.0
"""For leaving the registry, when requests took all of that."""


def end_process() -> None:
    """As SIGTERM does."""
    signal.raise_signal(signal.SIGTERM)


class Replica:
    """Everything one replica owns, from engine to registry entry."""

    def __init__(self, run: Run, *, url: str, end: Callable[[], None] = end_process) -> None:
        """Nothing is loaded yet; `end` is what a drained replica does."""
        self.shared: Shared = run.shared
        self.rollout: Rollout = run.rollout
        self.url = url
        limits = ClipLimits.of(run.shared, run.rollout)
        self.loader = ClipLoader.of(run.shared.video, limits=limits)
        self.gate = Gate(
            concurrent=run.rollout.concurrent_generates, queued=run.rollout.queued_generates
        )
        self.name = f"{run.rollout.replica or socket.gethostname()}-{secrets.token_hex(3)}"
        self.phase: ReplicaPhase = "starting"
        self.failure: BaseException | None = None
        self._engine: Engine | None = None
        self._weights: Weights | None = None
        self._worker: Worker | None = None
        self._end = end
        self._rate = Rate()
        self._stopping = asyncio.Event()
        self._stopped_s: float | None = None
        self._is_over = False
        self._released = asyncio.Event()
        """No request needs the engine any more."""

    async def run(self) -> None:
        """Load the engine, then serve until stopped or cancelled."""
        if self.rollout.weights == "checkpoint":
            await self._serve_checkpoint()
        else:
            await self._serve_ring()

    async def _serve_checkpoint(self) -> None:
        """Answer /v1/generate with the weights of `shared.model`: no learner, no Redis."""
        async with contextlib.AsyncExitStack() as owned:
            weights = await self._load(owned)
            weights.serve_checkpoint()
            await self._watch_engine()

    async def _serve_ring(self) -> None:
        """Answer the prompts of the ring."""
        async with contextlib.AsyncExitStack() as owned:
            broker = Broker.of(self.shared, should_stop=self._is_out_of_time)
            owned.push_async_callback(broker.close)
            reward = GroupScorer(self.shared, rollout=self.rollout)
            owned.push_async_callback(reward.close)
            weights = await self._load(owned)
            self.phase = "syncing"
            await self._reach(broker)
            self._worker = Worker(
                broker=broker,
                engine=self.engine,
                reward=reward,
                weights=weights,
                shared=self.shared,
                rollout=self.rollout,
                loader=self.loader,
                replica=self.name,
            )
            owned.push_async_callback(self._withdraw, broker)
            async with asyncio.TaskGroup() as tasks:
                watching = [
                    tasks.create_task(self._announce(broker)),
                    tasks.create_task(self._watch_engine()),
                    tasks.create_task(weights.fail_when_broken()),
                ]
                try:
                    await tasks.create_task(self._worker.run())
                    await self._released.wait()
                finally:
                    self._is_over = True  # redis-py may swallow one cancellation
                    for task in watching:
                        task.cancel()

    async def _reach(self, broker: Broker) -> None:
        """Wait for Redis, however long; an engine that dies meanwhile ends the replica."""
        waiting = asyncio.create_task(broker.wait_ready())
        try:
            while not waiting.done():
                await self.engine.check_health()
                await asyncio.wait([waiting], timeout=HEALTH_EVERY_S)
        finally:
            waiting.cancel()  # does nothing when it is done
        await waiting

    async def _load(self, owned: contextlib.AsyncExitStack) -> Weights:
        if self.rollout.gpu == "claim":
            # Before vLLM and torch are imported: they read CUDA_VISIBLE_DEVICES once.
            await claim(self.rollout, replica=self.name)
        logger.info("loading the model", extra={"model": self.shared.model})
        with speaking(self._say_loading):
            self._engine = await Engine.start(self.shared, rollout=self.rollout)
        owned.callback(self._engine.shutdown)
        self._weights = Weights(self._engine)
        return self._weights

    def _say_loading(self, seconds: float) -> None:
        facts = {"model": self.shared.model, "for_s": round(seconds)}
        logger.info("still loading the model", extra=facts)

    @property
    def is_working(self) -> bool:
        """Whether prompts may be in work; before that there is nothing to drain."""
        return self._worker is not None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs inside; left when the last request has ended. What is in work gets `DRAIN_S`, from
        `stop` on; after that it is handed back.

        A replica that fails ends its process: `failure` says why.
        """
        task = asyncio.create_task(self.run())
        task.add_done_callback(self._end_process_on_failure)
        yield
        if self._engine is None and not task.done():
            Engine.abandon_loading()
        self.stop()
        self._released.set()
        done, _pending = await asyncio.wait([task], timeout=self._drain_left_s())
        if not done:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def stop(self) -> None:
        """Claim nothing more; may be called again."""
        self.phase = "draining"
        if self._stopped_s is None:
            self._stopped_s = time.monotonic()
        self._stopping.set()
        if self._worker is not None:
            self._worker.stop()

    def drain(self) -> None:
        """Finish what is in work, leave the registry, and end the process."""
        logger.info("asked to drain")
        self.stop()
        self._end()

    def _drain_left_s(self) -> float:
        if not self.is_working or self._stopped_s is None:
            return 0.0
        return max(LAST_WORDS_S, self._stopped_s + DRAIN_S - time.monotonic())

    def _is_out_of_time(self) -> bool:
        """What was in work has had its time, and Redis is no longer waited for."""
        return self._stopped_s is not None and time.monotonic() > self._stopped_s + DRAIN_S

    @property
    def engine(self) -> Engine:
        """The loaded engine.

        Raises:
            EngineDownError: still loading.
        """
        if self._engine is None:
            raise EngineDownError("the engine is still loading")
        self._refuse_broken()
        return self._engine

    @property
    def weights(self) -> Weights:
        """The weight receiver; raises like `engine`."""
        if self._weights is None:
            raise EngineDownError("the engine is still loading")
        self._refuse_broken()
        return self._weights

    def _refuse_broken(self) -> None:
        if self._phase() == "broken":
            raise EngineDownError("new weights were half applied, this replica is about to end")

    @property
    def counters(self) -> Counters | None:
        """What it has done; None before it takes prompts."""
        return self._worker.counters if self._worker else None

    @property
    def status(self) -> ReplicaStatus:
        """This replica's registry entry."""
        counters, weights = self.counters, self._weights
        return ReplicaStatus(
            replica=self.name,
            url=self.url,
            phase=self._phase(),
            version=weights.version if weights else None,
            run_tag=weights.run_tag if weights else None,
            generation=weights.generation if weights else None,
            held=weights.held if weights else HeldWeights(),
            pause_ms=weights.pause_ms if weights else None,
            num_workers=self.rollout.tensor_parallel,
            completed_groups=counters.completed_groups if counters else 0,
            failed_prompts=counters.failed_prompts if counters else 0,
            generated_tokens=counters.generated_tokens if counters else 0,
        )

    def _phase(self) -> ReplicaPhase:
        weights = self._weights
        if weights is not None and weights.is_broken:
            return "broken"
        if weights is not None and weights.version is not None and self.phase != "draining":
            return "serving"
        return self.phase

    @property
    def report(self) -> ReplicaReport:
        """What `tempsamp status` shows."""
        return ReplicaReport(
            status=self.status,
            tokens_per_s=self._rate.per_s,
            generates_in_work=self.gate.in_work,
            generates_waiting=self.gate.waiting,
            trouble=self._worker.trouble if self._worker else None,
            last_problem=problem_of(LAST_PROBLEM),
            machine=Machine(),
        )

    async def _withdraw(self, broker: Broker) -> None:
        """Leave the registry now rather than when the lease ends; Redis may be gone by then."""
        with contextlib.suppress(TimeoutError, TempSampError):
            await asyncio.wait_for(broker.withdraw(self.name), WITHDRAW_TIMEOUT_S)

    async def _watch_engine(self) -> None:
        """An engine that died ends the replica, wherever Redis is."""
        while True:
            await self.engine.check_health()
            await asyncio.sleep(HEALTH_EVERY_S)

    async def _announce(self, broker: Broker) -> None:
        """Renew the registry entry."""
        while not self._is_over:
            self._rate.saw(self.status.generated_tokens)
            await broker.announce(self.status, ttl_s=self.rollout.registry_ttl_s)
            await self._pause(self.rollout.registry_ttl_s / 4)

    async def _pause(self, seconds: float) -> None:
        """Ends early when the replica is told to stop: that is worth an announcement."""
        if self._stopping.is_set():
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _end_process_on_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failure = innermost(error)
            is_foreseen = isinstance(self.failure, TempSampError | ConfigError)
            logger.error(
                "replica stops",
                extra={"error": str(self.failure)},
                exc_info=None if is_foreseen else error,
            )
            self._end()
