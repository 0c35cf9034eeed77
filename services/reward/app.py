"""The reward service: response text + target → verdicts and GT answers, over REST.

    POST /v1/score      answers of many prompts → verdicts (and the injected answer)
    POST /v1/injection  target → the ground truth as an answer, or why there is none
    POST /v1/shape      rewards → shaped rewards
    GET  /v1/scorers    tasks and parsers
    GET  /healthz /readyz /metrics /docs /openapi.json

Called by the rollout replicas (`services.rollout.reward_client`) and by anybody's trainer.
Stateless: run as many as needed. Bodies are validated straight from bytes and answered as bytes, in
a worker thread: the event loop only moves them.
"""

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.answers.reading import PARSERS
from common.config import Reward
from common.rest.auth import BearerAuth
from common.rest.openapi import json_body, refusals
from common.rest.problems import BodyLimit, Problem, install_problem_handlers, read_json
from common.rest.reward_api import (
    MAX_SHAPED,
    InjectionRequest,
    InjectionResponse,
    ScoreRequest,
    ScoreResponse,
    ScorersResponse,
    ShapeRequest,
    ShapeResponse,
)
from common.secrets import Tokens
from services.reward.judge import Judge, refusal
from services.reward.metrics import Metrics
from services.reward.openapi import describe
from services.reward.registry import Task, discover
from services.reward.scorer_process import ScorerBusy
from services.reward.shaping import shape_all

JSON = "application/json"
NO_TOKENS = Tokens()
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


async def read_body(request: Request) -> bytes:
    """The whole body; its size is bounded by `BodyLimit`."""
    return await request.body()


Body = Annotated[bytes, Depends(read_body)]


def create_app(
    settings: Reward | None = None,
    *,
    tokens: Tokens = NO_TOKENS,
    tasks: Mapping[str, Task] | None = None,
    metrics_dir: str | None = None,
) -> FastAPI:
    """The ASGI app.

    Args:
        settings: limits; defaults of `[reward]`.
        tokens: that of the role `score` is wanted, any on what only reports, none on health; where
            there is none nobody is asked for one.
        tasks: what can be scored; default: built-in tasks and installed entry points.
        metrics_dir: where several workers keep their counters; None with a single worker.
    """
    settings = settings or Reward()
    if tasks is None:
        tasks = discover(timeout_s=settings.scorer_timeout_s, processes=settings.scorer_processes)
    metrics = Metrics(metrics_dir)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        for task in tasks.values():
            task.close()

    app = FastAPI(title="TempSamp-R1 reward service", version="1", lifespan=lifespan)
    install_problem_handlers(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    if tokens.known():
        app.add_middleware(BearerAuth, tokens=tokens, roles={"/v1/": "score"})
    app.add_middleware(_Observed, metrics=metrics)
    _add_scoring(app, Judge(tasks, settings, metrics))
    _add_reports(app, tasks, metrics)
    describe(app, tasks=tuple(tasks), secured=bool(tokens.known()))
    return app


def _add_scoring(app: FastAPI, judge: Judge) -> None:
    @app.post(
        "/v1/score",
        response_model=ScoreResponse,
        responses=refusals(400, 413, 422, 503),
        openapi_extra=json_body(ScoreRequest),
    )
    def score(body: Body) -> Response:
        """Score answers; an item's verdicts come in the order of its responses."""
        request = read_json(ScoreRequest, body)
        with _refusing_when_busy():
            return Response(to_json(judge.score(request)), media_type=JSON)

    @app.post(
        "/v1/injection",
        response_model=InjectionResponse,
        responses=refusals(400, 413, 422, 503),
        openapi_extra=json_body(InjectionRequest),
    )
    def injection(body: Body) -> Response:
        """Render a target as the answer that joins its group, or say why not."""
        request = read_json(InjectionRequest, body)
        with _refusing_when_busy():
            return Response(to_json(judge.injection(request)), media_type=JSON)

    @app.post(
        "/v1/shape",
        response_model=ShapeResponse,
        responses=refusals(400, 413, 422),
        openapi_extra=json_body(ShapeRequest),
    )
    def shape(body: Body) -> Response:
        """Shape rewards; `downscale` treats every one as an injected answer's."""
        request = read_json(ShapeRequest, body)
        if (count := len(request.rewards)) > MAX_SHAPED:
            raise refusal(413, "rewards", f"found {count}, wanted at most {MAX_SHAPED}")
        return Response(
            to_json({"shaped": shape_all(request.rewards, request.shaping)}), media_type=JSON
        )


@contextmanager
def _refusing_when_busy() -> Iterator[None]:
    try:
        yield
    except ScorerBusy as error:
        raise Problem(503, str(error), headers={"Retry-After": "1"}) from error


def _add_reports(app: FastAPI, tasks: Mapping[str, Task], metrics: Metrics) -> None:
    @app.get("/v1/scorers")
    async def scorers() -> ScorersResponse:
        """Tasks that can be scored, and parsers."""
        return ScorersResponse(
            scorers=tuple(task.info for task in tasks.values()), parsers=tuple(PARSERS)
        )

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Scoring waits for no neighbour: ready as soon as it answers."""
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def prometheus() -> Response:
        """Counters for Prometheus, over all workers."""
        return Response(metrics.exposition(), media_type=PROMETHEUS)


class _Observed:
    """ASGI middleware: time and status of every request, by route."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route: Any = scope.get("route")
            label = route.path if route is not None else "other"
            self._metrics.observe_request(label, status, time.perf_counter() - started)
