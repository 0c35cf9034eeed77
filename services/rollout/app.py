"""The REST face of a rollout replica.

    POST /v1/generate          answers to one prompt (evaluation, probes)
    POST /v1/weights/join      become a receiver of a weight group
    POST /v1/weights/update    receive, verify and serve a version
    POST /v1/weights/leave     give up a transfer and the group
    GET  /v1/identity          proof of being ours, for who is about to show a token
    POST /v1/drain             claim nothing more, finish what is in work, end
    GET  /v1/weights /v1/status /healthz /readyz /metrics

/healthz answers at once, /readyz when the engine is loaded, /readyz?serving=true when a verified
version is served as well. The learner's publish calls join and update.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from common.errors import EngineError, GroupError, VideoError, WeightError
from common.messages import (
    GeneratedAnswer,
    GenerateRequest,
    GenerateResponse,
    ReplicaIdentity,
    ReplicaStatus,
)
from common.rest.auth import BearerAuth
from common.rest.fleet_api import ReplicaReport
from common.rest.identity import identity_of
from common.rest.openapi import complete, json_body, refusals, strictly
from common.rest.problems import BodyLimit, Problem, install_problem_handlers
from common.secrets import Role
from common.weights.messages import JoinWeightGroup, LeaveWeightGroup, UpdateWeights
from services.rollout.engine import Engine, EngineDownError
from services.rollout.metrics import ReplicaCollector
from services.rollout.replica import Replica

MAX_BODY_BYTES = 4 * 2**20
"""Larger than the parameter list of any model; frames never travel."""

ROLES: dict[str, Role] = {
    "/v1/generate": "generate",
    "/v1/weights": "control",
    "/v1/drain": "control",
}
"""By prefix of a path; a token of any role reads /metrics."""

WEIGHT_REFUSALS = refusals(400, 409, 413, 422, 503)

BODIES = (GenerateRequest, JoinWeightGroup, UpdateWeights, LeaveWeightGroup)

routes = APIRouter()


def create_app(replica: Replica) -> FastAPI:
    """The ASGI app; the replica starts and ends with its lifespan."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with replica.running():
            yield

    app = FastAPI(title="TempSamp rollout", version="1", lifespan=lifespan)
    install_problem_handlers(app)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    if (tokens := replica.shared.tokens).known():
        app.add_middleware(BearerAuth, tokens=tokens, roles=ROLES)
    app.state.replica = replica
    app.state.figures = CollectorRegistry()
    app.state.figures.register(
        ReplicaCollector(
            lambda: replica.status,
            counters=lambda: replica.counters,
            clips=replica.loader.counts,
        )
    )
    app.include_router(routes)
    complete(app, bodies=BODIES, secured=bool(replica.shared.tokens.known()))
    return app


async def replica_of(request: Request) -> Replica:
    """The replica behind the app."""
    replica: Replica = request.app.state.replica
    return replica


Asked = Annotated[Replica, Depends(replica_of)]
GenerateBody = Annotated[GenerateRequest, Depends(strictly(GenerateRequest))]
JoinBody = Annotated[JoinWeightGroup, Depends(strictly(JoinWeightGroup))]
UpdateBody = Annotated[UpdateWeights, Depends(strictly(UpdateWeights))]
LeaveBody = Annotated[LeaveWeightGroup, Depends(strictly(LeaveWeightGroup))]


@routes.post(
    "/v1/generate",
    responses=refusals(400, 413, 422, 429, 503),
    openapi_extra=json_body(GenerateRequest),
)
async def generate(body: GenerateBody, replica: Asked) -> GenerateResponse:
    """Answers to one prompt; 422 when the clip or the prompt cannot be used, 429 when so many
    requests wait already that this one had better come again."""
    with _problems():
        engine = replica.engine
        replica.loader.refuse(body.clip)
    async with replica.gate.entered():
        return await _answer(body, engine=engine, replica=replica)


async def _answer(body: GenerateRequest, *, engine: Engine, replica: Replica) -> GenerateResponse:
    with _problems():
        frames = await asyncio.to_thread(replica.loader.load, body.clip)
        made = await engine.generate(
            body.messages,
            clip=body.clip,
            frames=frames,
            num_samples=body.num_samples,
            sampling=body.sampling,
        )
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


@routes.post(
    "/v1/weights/join",
    responses=WEIGHT_REFUSALS,
    openapi_extra=json_body(JoinWeightGroup),
)
async def join(body: JoinBody, replica: Asked) -> ReplicaStatus:
    """Join a weight group; 409 when it did not come together in time, 422 when it never could."""
    with _problems():
        await replica.weights.join(body)
    return replica.status


@routes.post(
    "/v1/weights/update",
    responses=WEIGHT_REFUSALS,
    openapi_extra=json_body(UpdateWeights),
)
async def update(body: UpdateBody, replica: Asked) -> ReplicaStatus:
    """Receive and serve a version; 409 when the group broke, 422 when this replica could not."""
    with _problems():
        await replica.weights.update(body)
    return replica.status


@routes.post(
    "/v1/weights/leave",
    responses=WEIGHT_REFUSALS,
    openapi_extra=json_body(LeaveWeightGroup),
)
async def leave(body: LeaveBody, replica: Asked) -> ReplicaStatus:
    """Give up whatever transfer is under way; the version that is served stays."""
    with _problems():
        await replica.weights.leave(body)
    return replica.status


@routes.get("/v1/identity", responses=refusals(422))
async def identity(
    nonce: Annotated[str, Query(min_length=32, max_length=128)],
    replica: Asked,
    role: Role = "control",
) -> ReplicaIdentity:
    """Knows the token of a role, without being told it."""
    token = replica.shared.tokens.of(role)
    return identity_of(replica.name, url=replica.url, nonce=nonce, token=token)


@routes.get("/v1/weights")
async def weights_status(replica: Asked) -> ReplicaStatus:
    """Which generation and version this replica serves."""
    return replica.status


@routes.post("/v1/drain", status_code=202)
async def drain(replica: Asked) -> ReplicaStatus:
    """Take this replica out of the ring; its process ends within 20 s and exits with 0."""
    replica.drain()
    return replica.status


@routes.get("/v1/status")
async def report(replica: Asked) -> ReplicaReport:
    """How it is doing, for people."""
    return replica.report


@routes.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@routes.get("/readyz", responses=refusals(422, 503))
async def readyz(replica: Asked, serving: bool = False) -> ReplicaStatus:
    """The engine is loaded; 503 before. `serving`: it also serves a version and does not drain."""
    with _problems():
        _ = replica.engine
    status = replica.status
    if serving and status.phase != "serving":
        raise Problem(503, f"found phase {status.phase!r}, wanted 'serving'")
    return status


@routes.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    figures: CollectorRegistry = request.app.state.figures
    return Response(generate_latest(figures), media_type=CONTENT_TYPE_LATEST)


@contextlib.contextmanager
def _problems() -> Iterator[None]:
    """What a replica raises → what its callers read."""
    try:
        yield
    except EngineDownError as error:
        raise Problem(503, str(error)) from error
    except VideoError as error:
        raise Problem(422, str(error), field="clip") from error
    except EngineError as error:
        raise Problem(422, str(error)) from error
    except GroupError as error:
        raise Problem(409, str(error)) from error
    except WeightError as error:
        raise Problem(422, str(error)) from error
