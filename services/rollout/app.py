"""One rollout replica as a FastAPI process: REST for weights and evaluation, and the worker loop.

    /v1/generate          answers to one prompt (evaluation, probes)
    /v1/weights/join      become a receiver of a weight group   } called by the learner's publish
    /v1/weights/update    receive, verify and serve a version   }
    /healthz /readyz /metrics

It starts without waiting for any neighbour: /healthz answers at once, /readyz when the engine is
loaded, and prompts are claimed once the first verified weights are served. With
`rollout.weights = "checkpoint"` it serves /v1/generate alone, from the checkpoint on disk.
"""

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from common.config import Rollout, Run, Shared
from common.errors import EngineError, TempSampError, VideoError, WeightError
from common.logs import configure
from common.messages import (
    GeneratedAnswer,
    GenerateRequest,
    GenerateResponse,
    JoinWeightGroup,
    ReplicaPhase,
    ReplicaStatus,
    UpdateWeights,
)
from common.queue.broker import Broker
from common.rest.auth import BearerAuth, refuse_open_port
from common.rest.problems import BodyLimit, Problem, install_problem_handlers
from common.video.loader import ClipLoader
from services.rollout.engine import Engine, EngineDownError
from services.rollout.metrics import ReplicaCollector
from services.rollout.reward_client import GroupScorer
from services.rollout.weights import Weights
from services.rollout.worker import Worker

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 4 * 2**20
"""Larger than the parameter list of any model; frames never travel."""
WITHDRAW_TIMEOUT_S = 2.0
HEALTH_EVERY_S = 2.0
DRAIN_S = 20.0
"""How long prompts in work may take after SIGTERM before they are handed back."""


class Replica:
    """Everything one replica owns, from engine to registry entry."""

    def __init__(self, run: Run, *, url: str) -> None:
        self.shared: Shared = run.shared
        self.rollout: Rollout = run.rollout
        self.url = url
        self.loader = ClipLoader.of(run.shared.video)
        self.name = f"{run.rollout.replica or socket.gethostname()}-{secrets.token_hex(3)}"
        self.phase: ReplicaPhase = "starting"
        self.failure: BaseException | None = None
        self._engine: Engine | None = None
        self._weights: Weights | None = None
        self._worker: Worker | None = None

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
            while True:
                await self.engine.check_health()
                await asyncio.sleep(HEALTH_EVERY_S)

    async def _serve_ring(self) -> None:
        """Answer the prompts of the ring."""
        async with contextlib.AsyncExitStack() as owned:
            broker = Broker.of(self.shared)
            owned.push_async_callback(broker.close)
            reward = GroupScorer(self.shared, rollout=self.rollout)
            owned.push_async_callback(reward.close)
            weights = await self._load(owned)
            self.phase = "waiting_for_weights"
            await broker.wait_ready()
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
                announcing = tasks.create_task(self._announce(broker))
                await tasks.create_task(self._worker.run())
                announcing.cancel()

    async def _load(self, owned: contextlib.AsyncExitStack) -> Weights:
        self._engine = await Engine.start(self.shared, rollout=self.rollout)
        owned.callback(self._engine.shutdown)
        self._weights = Weights(self._engine)
        return self._weights

    @property
    def is_working(self) -> bool:
        """Whether prompts may be in work; before that there is nothing to drain."""
        return self._worker is not None

    def stop(self) -> None:
        """Claim nothing more."""
        self.phase = "draining"
        if self._worker is not None:
            self._worker.stop()

    @property
    def engine(self) -> Engine:
        """The loaded engine.

        Raises:
            EngineDownError: still loading.
        """
        if self._engine is None:
            raise EngineDownError("the engine is still loading")
        return self._engine

    @property
    def weights(self) -> Weights:
        """The weight receiver; raises like `engine`."""
        if self._weights is None:
            raise EngineDownError("the engine is still loading")
        return self._weights

    @property
    def status(self) -> ReplicaStatus:
        """This replica's registry entry."""
        counters = self._worker.counters if self._worker else None
        version = self._weights.version if self._weights else None
        return ReplicaStatus(
            replica=self.name,
            url=self.url,
            phase="serving" if version is not None and self.phase != "draining" else self.phase,
            version=version,
            run_tag=self._weights.run_tag if self._weights else None,
            generation=self._weights.generation if self._weights else None,
            num_workers=self.rollout.tensor_parallel,
            completed_groups=counters.completed_groups if counters else 0,
            failed_prompts=counters.failed_prompts if counters else 0,
            generated_tokens=counters.generated_tokens if counters else 0,
        )

    async def _withdraw(self, broker: Broker) -> None:
        """Leave the registry now rather than when the lease ends; Redis may be gone by then."""
        with contextlib.suppress(TimeoutError, TempSampError):
            await asyncio.wait_for(broker.withdraw(self.name), WITHDRAW_TIMEOUT_S)

    async def _announce(self, broker: Broker) -> None:
        """Renew the registry entry; an engine that died ends the replica."""
        while True:
            await self.engine.check_health()
            await broker.announce(self.status, ttl_s=self.rollout.registry_ttl_s)
            await asyncio.sleep(self.rollout.registry_ttl_s / 4)


def create_app(replica: Replica) -> FastAPI:
    """The REST face of a replica; the loop starts and ends with the app's lifespan."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(replica.run())
        task.add_done_callback(lambda done: _end_process_on_failure(replica, done))
        yield
        if replica.phase == "starting":
            Engine.abandon_loading()
        replica.stop()
        drain_s = DRAIN_S if replica.is_working else 0.0
        done, _pending = await asyncio.wait([task], timeout=drain_s)
        if not done:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    app = FastAPI(title="TempSamp rollout", version="1", lifespan=lifespan)
    install_problem_handlers(app)
    registry = CollectorRegistry()
    registry.register(ReplicaCollector(lambda: replica.status, clips=replica.loader.counts))
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    if replica.shared.token is not None:
        app.add_middleware(BearerAuth, token=replica.shared.token)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> ReplicaStatus:
        """The engine is loaded; 503 before."""
        _engine_or_503(replica)
        return replica.status

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/v1/generate")
    async def generate(body: GenerateRequest) -> GenerateResponse:
        """Answers to one prompt; 422 when the clip or the prompt cannot be used."""
        engine = _engine_or_503(replica)
        try:
            frames = await asyncio.to_thread(replica.loader.load, body.clip)
            made = await engine.generate(
                body.messages,
                clip=body.clip,
                frames=frames,
                num_samples=body.num_samples,
                sampling=body.sampling,
            )
        except EngineDownError as error:
            raise Problem(503, str(error)) from error
        except VideoError as error:
            raise Problem(422, str(error), field="clip") from error
        except EngineError as error:
            raise Problem(422, str(error)) from error
        return GenerateResponse(
            prompt_token_ids=made.prompt_token_ids,
            num_visual_tokens=made.num_visual_tokens,
            grid_thw=made.grid_thw,
            answers=tuple(
                GeneratedAnswer(
                    sample=sample, text=text, token_ends=engine.token_ends(sample.token_ids)
                )
                for sample, text in zip(made.samples, made.texts, strict=True)
            ),
        )

    @app.post("/v1/weights/join")
    async def join(body: JoinWeightGroup) -> ReplicaStatus:
        """Join a weight group; 409 when it did not come together in time."""
        _engine_or_503(replica)
        try:
            await replica.weights.join(body)
        except WeightError as error:
            raise Problem(409, str(error)) from error
        return replica.status

    @app.post("/v1/weights/update")
    async def update(body: UpdateWeights) -> ReplicaStatus:
        """Receive and serve a version; 409 when the old one keeps serving."""
        _engine_or_503(replica)
        try:
            await replica.weights.update(body)
        except WeightError as error:
            raise Problem(409, str(error)) from error
        return replica.status

    @app.get("/v1/weights")
    async def weights_status() -> ReplicaStatus:
        """Which generation and version this replica serves."""
        return replica.status

    return app


def serve(run: Run) -> None:
    """Run a replica until SIGTERM; exits non-zero when the engine or too many prompts fail."""
    token = run.shared.token
    refuse_open_port(
        run.rollout.host, token=token, allow_remote=run.rollout.allow_remote, section="rollout"
    )
    listening = socket.create_server((run.rollout.host, run.rollout.port), reuse_port=False)
    port = listening.getsockname()[1]
    url = f"http://{run.rollout.advertise_host or run.rollout.host}:{port}"
    replica = Replica(run, url=url)
    configure("rollout", run_id=run.shared.run_id, replica=replica.name)
    logger.info("listening", extra={"url": url})
    config = uvicorn.Config(create_app(replica), log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listening])
    if replica.failure is not None:
        logger.critical("replica failed", extra={"error": str(replica.failure)})
        sys.exit(1)


def _engine_or_503(replica: Replica) -> Engine:
    try:
        return replica.engine
    except EngineDownError as error:
        raise Problem(503, str(error)) from error


def _end_process_on_failure(replica: Replica, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        replica.failure = error
        logger.error("replica stops", exc_info=error)
        signal.raise_signal(signal.SIGTERM)
