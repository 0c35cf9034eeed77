"""What the playground's page asks for.

    GET  /api/playground            who can be asked, what may be uploaded
    GET  /api/playground/videos     names below a run's video roots
    POST /api/playground/upload     a video's bytes -> a clip
    POST /api/playground/choose     a name -> a clip
    GET  /api/playground/strip      frames along it
    POST /api/playground/ask        a question -> server-sent events (`.questions`)
    POST /api/playground/cut        a span -> a clip of its own
    GET  /clips/HANDLE              a clip's bytes, in parts as players ask for them

A player sends no token, so a handle is the right to see its clip: 128 random bits, told to who has
shown one. Neighbours: `jobs.dash.app` lets people in.
"""

import asyncio
import contextlib
import functools
import mimetypes
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.types import Receive, Scope, Send

from common.errors import ConfigError, EngineError, OutputError, TempSampError, VideoError
from common.rest.problems import Problem, install_problem_handlers, read_json
from jobs.dash.playground import MOST_UPLOAD_MB
from jobs.dash.playground.clips import MEGABYTE, Clip, Clips, listed
from jobs.dash.playground.models import ListedModel, Local, Model, check_models, found, of_run
from jobs.dash.playground.questions import MOST_SAMPLES, Event, Question, answered
from jobs.dash.site import OneRun, Site
from jobs.dash.watch import Ending, EventStream, event

MOST_BODY_BYTES = 65_536
"""Of what is no video."""
OPAQUE = "application/octet-stream"


class Shown(BaseModel):
    """One clip."""

    clip: str
    name: str
    address: str
    """Where a player finds it."""
    duration_s: float
    width_px: int
    height_px: int


class Offer(BaseModel):
    """What can be done here."""

    models: list[ListedModel]
    most_upload_mb: int
    most_samples: int
    roots: list[str]
    """Below which the run's videos lie."""
    silent: str | None
    """Why no replica of the run is among the models."""


class Videos(BaseModel):
    """Names below a run's roots."""

    names: list[str]
    is_all: bool


class Chosen(BaseModel):
    """A video of a run."""

    model_config = ConfigDict(extra="forbid")

    run: str = ""
    name: str


class Part(BaseModel):
    """A span of a clip."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    clip: str
    start_s: float
    end_s: float


class Made(BaseModel):
    """A part that was cut out."""

    name: str
    address: str
    says: str


class Playground:
    """Models of the command line, and clips; a context manager that ends the ones and deletes the
    others. From the main thread."""

    def __init__(self, *, most_upload_mb: int = MOST_UPLOAD_MB) -> None:
        """Nobody can be asked yet; see `add`, `add_local`."""
        self.clips = Clips(most_bytes=most_upload_mb * MEGABYTE)
        self.models: list[Model] = []
        self._local: list[Local] = []

    def add(self, *models: Model) -> None:
        """Models that run."""
        self.models += models

    def add_local(self, given: Sequence[str]) -> None:
        """Checkpoints, loaded when they are first asked.

        Raises:
            ConfigError: one is none, or they are too many.
        """
        check_models(given)
        for number, model in enumerate(given, 1):
            folder = functools.partial(self.clips.room, f"model-{number}")
            one = Local(model, key=f"local-{number}", folder=folder, beside=len(given))
            self._local.append(one)
            self.models.append(one)

    @property
    def num_local(self) -> int:
        """Replicas that may have to be ended."""
        return len(self._local)

    def __enter__(self) -> "Playground":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for model in self._local:
                model.close()
        finally:
            self.clips.close()


class Streamed(EventStream):
    """Events of a question; what they come from ends when the caller leaves."""

    def __init__(
        self,
        events: AsyncIterator[Event],
        clip: contextlib.AbstractContextManager[Clip],
        *,
        ending: Ending,
    ) -> None:
        self._events = events
        self._clip = clip
        super().__init__((event(name, content) async for name, content in events), ending=ending)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As any response."""
        with self._clip:
            async with aclosing(self._events):  # type: ignore[type-var]
                await super().__call__(scope, receive, send)


def add_playground(api: FastAPI, site: Site, playground: Playground, ending: Ending) -> None:
    """Put its routes below /api."""
    _add_clips(api, site, playground.clips)

    @api.get("/playground")
    def offer(run: str = "") -> Offer:
        one = _run_of(site, run)
        replicas = _replicas(one)
        models = [*playground.models, *replicas]
        return Offer(
            models=[model.listed() for model in models],
            most_upload_mb=playground.clips.most_bytes // MEGABYTE,
            most_samples=MOST_SAMPLES,
            roots=[str(root) for root in _roots(one)],
            silent=None if replicas or one is None else one.watch.seen.silent,
        )

    @api.post("/playground/ask")
    async def ask(request: Request) -> Response:
        question = read_json(Question, await _body(request))
        question.check()
        playground.clips.get(question.clip)
        one = await asyncio.to_thread(_run_of, site, question.run)
        replicas = await asyncio.to_thread(_replicas, one)
        with _refusals():
            models = [found([*playground.models, *replicas], key) for key in question.models]
        clip = playground.clips.get(question.clip)
        return Streamed(
            answered(question, clip=clip, models=models),
            playground.clips.using(question.clip),
            ending=ending,
        )


def add_clips(app: FastAPI, playground: Playground) -> None:
    """Put /clips beside /api: players show no token."""
    install_problem_handlers(app)

    # Else HEAD would be answered by the page's files, which have no clip.
    @app.api_route("/clips/{handle}", methods=["GET", "HEAD"], response_class=FileResponse)
    def clip(handle: str, download: bool = False) -> FileResponse:
        one = playground.clips.get(handle)
        kind, _ = mimetypes.guess_type(one.name)
        name = f"attachment; filename*=UTF-8''{quote(one.name, safe='')}"
        return FileResponse(
            one.path,
            # Whatever it is called: a page of this origin it must not become.
            media_type=kind if kind is not None and kind.startswith("video/") else OPAQUE,
            headers={
                "Cache-Control": "private, no-store",
                **({"Content-Disposition": name} if download else {}),
            },
        )


def _add_clips(api: FastAPI, site: Site, clips: Clips) -> None:
    @api.get("/playground/videos")
    def videos(run: str = "", text: str = "") -> Videos:
        found = listed(_roots(_run_of(site, run)), text=text)
        return Videos(names=list(found.names), is_all=found.is_all)

    @api.post("/playground/upload")
    async def upload(request: Request, name: Annotated[str, Query(max_length=1_000)]) -> Shown:
        declared = request.headers.get("content-length", "")
        with _refusals():
            clip = await clips.receive(
                request.stream(),
                name=name,
                declared_bytes=int(declared) if declared.isdigit() else None,
            )
        return _shown(clip)

    @api.post("/playground/choose")
    async def choose(request: Request) -> Shown:
        chosen = read_json(Chosen, await _body(request))
        roots = await asyncio.to_thread(lambda: _roots(_run_of(site, chosen.run)))
        with _refusals():
            return _shown(await clips.choose(chosen.name, roots=roots))

    @api.get("/playground/strip", response_class=Response)
    async def strip(clip: str) -> Response:
        jpeg = await clips.strip_of(clip)
        if jpeg is None:
            return Response(status_code=204)
        return Response(jpeg, media_type="image/jpeg")

    @api.post("/playground/cut")
    async def cut(request: Request) -> Made:
        part = read_json(Part, await _body(request))
        source = clips.get(part.clip)
        with _refusals(source):
            made, how = await clips.cut_out(part.clip, (part.start_s, part.end_s))
        return Made(name=made.name, address=f"clips/{made.handle}?download=true", says=how.in_words)


def _shown(clip: Clip) -> Shown:
    return Shown(
        clip=clip.handle,
        name=clip.name,
        address=f"clips/{clip.handle}",
        duration_s=clip.duration_s,
        width_px=clip.width_px,
        height_px=clip.height_px,
    )


def _run_of(site: Site, name: str) -> OneRun | None:
    """As `Site.run_if_any`.

    Raises:
        Problem: 404: there is none of that name.
    """
    try:
        return site.run_if_any(name)
    except KeyError as error:
        raise Problem(404, str(error.args[0])) from error


def _replicas(one: OneRun | None) -> list[Model]:
    if one is None:
        return []
    replica = of_run(one.folder.run(), one.watch.seen.fleet, roots=_roots(one) or None)
    return [] if replica is None else [replica]


def _roots(one: OneRun | None) -> Sequence[Path]:
    run = None if one is None or one.folder.given is not None else one.folder.run()
    return () if run is None else run.shared.video.roots


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY_BYTES:
            raise Problem(413, f"body: found more than {MOST_BODY_BYTES} bytes", field="body")
    return bytes(body)


@contextlib.contextmanager
def _refusals(clip: Clip | None = None) -> Iterator[None]:
    """Errors that commands end with, as problems."""
    try:
        yield
    except (VideoError, ConfigError, EngineError) as error:
        raise Problem(422, str(error) if clip is None else clip.named(str(error))) from error
    except OutputError as error:
        raise Problem(507, str(error)) from error
    except TempSampError as error:
        raise Problem(503, str(error)) from error
