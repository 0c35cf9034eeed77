"""The app of `tempsamp dash`: a page of plain files, and what it asks for as JSON.

    GET /                       the page (jobs/dash/page), nothing from elsewhere
    GET /api/runs               the runs below the folder
    GET /api/home               whether it was started with somebody to ask
    GET /api/overview           one in a sentence, what to look at, its services
    GET /api/curves             its panels, decimated; ?low=&high= steps
    GET /api/groups             a list of groups, filtered; /api/groups/one, /same, /strip
    GET /api/evaluations        what `tempsamp eval` left; /one, /compared
    GET /api/events             server-sent events while it grows
    /api/playground, /clips     questions about a video (jobs/dash/playground/routes.py)

Of runs it only reads. With tokens in the environment `/api/` wants one of any role, the playground
that of `generate`; without, it answers requests that were sent to this machine by its own name
alone, so that no page of another origin reaches it through a name that leads here. What is more
than a look is refused where a page of another origin sends it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Query
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import ConfigError, QueueError
from common.queue.kept_groups import GroupSummary
from common.rest.address import is_loopback
from common.rest.auth import BearerAuth
from common.rest.problems import Problem, install_problem_handlers, problem_response
from common.secrets import Tokens
from jobs.dash.advice import Advice, advice
from jobs.dash.drawing.curves import BUCKETS, DrawnPanel, latest, panels
from jobs.dash.groups import GroupView, Kind, Order, Place, Wanted, chosen, elsewhere, shown
from jobs.dash.playground.routes import Playground, add_clips, add_playground
from jobs.dash.site import ListedRun, OneRun, Site
from jobs.dash.state import RunState, state_of
from jobs.dash.watch import Ending, EventStream, Live, events

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NO_TOKENS = Tokens()
LOOKS = ("GET", "HEAD")
PART_REFUSED = (400, 416)
PAGE = 60
"""Groups in a part of the list."""

RunName = Annotated[str, Query(alias="run", description="Its name; the newest without.")]


class Overview(BaseModel):
    """The top of a run's page."""

    run: ListedRun
    state: RunState
    advice: list[Advice]
    live: Live
    validations: int
    latest: dict[str, dict[str, float]]
    """The newest value of each curve, by panel and label."""
    unreadable_lines: int


class Home(BaseModel):
    """What a dash over no run yet begins with."""

    asks: bool
    """Whether the playground has a model or an endpoint: not the replicas of a run."""


class GroupList(BaseModel):
    """A part of the list of groups."""

    groups: list[GroupSummary]
    total: int
    """That fit."""
    kept: int
    """In all."""
    is_newest: bool
    """Whether this is of the newest steps alone, as the others are not read yet."""
    steps: tuple[int, int] | None
    rewards: tuple[float, float] | None
    """Least and largest reward of an answer in all."""


class Elsewhere(BaseModel):
    """Where the same query stands too."""

    places: list[Place]


def create_app(
    site: Site,
    *,
    tokens: Tokens = NO_TOKENS,
    live: bool = True,
    playground: Playground | None = None,
    ending: Ending | None = None,
) -> FastAPI:
    """The ASGI app.

    Args:
        site: what it looks at.
        tokens: that callers must show, any of them; none: nobody is asked for one.
        live: whether a run's services are asked how they are.
        playground: who can be asked about videos, ended by its owner; None: a run's replicas alone.
        ending: its owner says when, and open streams end.
    """
    ending = ending or Ending()
    playground = Playground() if playground is None else playground
    api = FastAPI(title="tempsamp dash", version="1", docs_url=None, redoc_url=None)
    install_problem_handlers(api)
    if tokens.known():
        api.add_middleware(BearerAuth, tokens=tokens, roles={"/api/playground": "generate"})
    _add_runs(api, site, live=live, ending=ending)
    _add_groups(api, site)
    _add_evaluations(api, site)
    add_playground(api, site, playground, ending)

    @api.get("/home")
    def home() -> Home:
        return Home(asks=bool(playground.models))

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_clips(app, playground)
    app.mount("/api", api)
    app.mount("/", StaticFiles(directory=page_folder(), html=True))
    app.add_middleware(_Careful, names_matter=not tokens.known())
    return app


def page_folder() -> Path:
    """The page's files."""
    return Path(str(resources.files("jobs.dash").joinpath("page")))


def _add_runs(api: FastAPI, site: Site, *, live: bool, ending: Ending) -> None:
    @api.get("/runs")
    def runs() -> list[ListedRun]:
        with _missing_is_404():
            return [run.listed() for run in site.look()]

    @api.get("/overview")
    def overview(name: RunName = "") -> Overview:
        run = _run(site, name)
        # As they said last: services that are away would keep a finished run from opening.
        return _overview(run, run.watch.seen if live else Live(silent="services are not asked"))

    @api.get("/curves")
    def curves(
        name: RunName = "",
        low: float | None = None,
        high: float | None = None,
        buckets: Annotated[int, Query(ge=10, le=2 * BUCKETS)] = BUCKETS,
    ) -> list[DrawnPanel]:
        folder = _run(site, name).folder
        return panels(
            folder.metrics(), folder.validation(), low=low, high=high, num_buckets=buckets
        )

    @api.get("/events")
    async def stream(name: RunName = "") -> EventStream:
        run = _run(site, name)
        return EventStream(events(run.folder, run.watch, live=live), ending=ending)


def _overview(run: OneRun, said: Live) -> Overview:
    folder = run.folder
    metrics, validation, settings = folder.metrics(), folder.validation(), folder.settings()
    return Overview(
        run=run.listed(),
        state=state_of(metrics, validation, settings=settings, quiet_s=folder.quiet_s()),
        advice=advice(metrics, validation, settings=settings, fleet=said.fleet),
        live=said,
        validations=len(validation.steps),
        latest=latest(metrics, validation),
        unreadable_lines=metrics.unreadable + validation.unreadable,
    )


def _add_groups(api: FastAPI, site: Site) -> None:
    @api.get("/groups")
    def groups(
        name: RunName = "",
        text: str = "",
        kind: Kind = "all",
        order: Order = "newest",
        low: float | None = None,
        high: float | None = None,
        first_step: int | None = None,
        last_step: int | None = None,
        offset: Annotated[int, Query(ge=0)] = 0,
        at_once: Annotated[bool, Query(description="The newest steps alone are enough.")] = False,
    ) -> GroupList:
        index = _run(site, name).groups
        wanted = Wanted(
            text=text,
            kind=kind,
            order=order,
            low=low,
            high=high,
            first_step=first_step,
            last_step=last_step,
        )
        newest = index.newest(PAGE) if at_once and wanted == Wanted() and not offset else None
        kept = index.summaries() if newest is None else newest
        found = chosen(kept, wanted)
        rewards = [reward for group in kept for reward in group.rewards if reward is not None]
        return GroupList(
            groups=found[offset : offset + PAGE],
            total=len(found),
            kept=len(kept),
            is_newest=newest is not None,
            steps=(kept[0].step, kept[-1].step) if kept else None,
            rewards=(min(rewards), max(rewards)) if rewards else None,
        )

    @api.get("/groups/one")
    def one(step: int, prompt: str, name: RunName = "") -> GroupView:
        run = _run(site, name)
        with _missing_is_404():
            return shown(run.groups.group(step, prompt), run=run.folder.name)

    @api.get("/groups/same")
    def same(step: int, prompt: str, name: RunName = "") -> Elsewhere:
        run = _run(site, name)
        with _missing_is_404():
            return Elsewhere(
                places=elsewhere(run.groups.group(step, prompt), site.summaries(of=run))
            )

    @api.get("/groups/strip", response_class=Response)
    def strip(step: int, prompt: str, name: RunName = "") -> Response:
        run = _run(site, name)
        with _missing_is_404():
            jpeg = run.strips.of(run.groups.group(step, prompt).clip)
        if jpeg is None:
            return Response(status_code=204)
        return Response(
            jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"}
        )


def _add_evaluations(api: FastAPI, site: Site) -> None:
    @api.get("/evaluations")
    def listed() -> list[Any]:
        from jobs.dash import evaluations

        return evaluations.find(site.root)

    @api.get("/evaluations/one")
    def page(evaluation: str, name: RunName = "") -> Any:
        from jobs.dash import evaluations

        with _missing_is_404():
            one = site.run_if_any(name)
            run = None if one is None else one.folder.run()
            roots = () if run is None else run.shared.video.roots
            return evaluations.shown(site.root, evaluation, roots=roots)

    @api.get("/evaluations/compared")
    def compared(a: str, b: str) -> Any:
        from jobs.dash import evaluations

        with _missing_is_404():
            return evaluations.compared(site.root, a, b)


def _run(site: Site, name: str) -> OneRun:
    with _missing_is_404():
        return site.run(name)


@contextmanager
def _missing_is_404() -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise Problem(404, str(error.args[0])) from error
    except ConfigError as error:
        raise Problem(404, str(error)) from error
    except QueueError as error:
        raise Problem(503, str(error)) from error
    except ValueError as error:
        raise Problem(422, str(error)) from error


class _Careful:
    """ASGI middleware: headers that keep the page to itself, and by whose name it may be asked."""

    def __init__(self, app: ASGIApp, *, names_matter: bool) -> None:
        self._app = app
        self._names_matter = names_matter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        is_replaced = False

        async def with_headers(message: Message) -> None:
            nonlocal is_replaced
            if is_replaced:
                return
            if message["type"] == "http.response.start":
                refused = _refused_part(scope, message)
                if refused is not None:
                    await problem_response(refused)(scope, receive, with_headers)
                    is_replaced = True
                    return
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        problem = self._refusal(scope)
        if problem is not None:
            await problem_response(problem)(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Problem | None:
        if self._names_matter and not _is_local(scope):
            return Problem(
                421, "wanted a request to localhost or a loopback address, as no token is asked for"
            )
        if scope["method"] not in LOOKS and _is_of_another_origin(scope):
            return Problem(403, "found a request of another origin's page, wanted one of our own")
        return None


def _refused_part(scope: Scope, message: Message) -> Problem | None:
    """A part that a file does not have, as a problem: files refuse it in plain text."""
    headers = Headers(raw=message["headers"])
    status = message["status"]
    if status not in PART_REFUSED or not headers.get("content-type", "").startswith("text/plain"):
        return None
    return Problem(
        status,
        f"Range: found {_header(scope, b'range')!r}, wanted bytes=FIRST-LAST inside the file",
        headers={name: found for name, found in headers.items() if name == "content-range"},
    )


def _header(scope: Scope, wanted: bytes) -> str | None:
    """None unless it is there once."""
    found = [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
    return found[0] if len(found) == 1 else None


def _is_of_another_origin(scope: Scope) -> bool:
    """Browsers say where the page that asks comes from; who says nothing is none."""
    if all(name != b"origin" for name, _ in scope["headers"]):
        return False
    return urlsplit(_header(scope, b"origin") or "").netloc != _header(scope, b"host")


def _is_local(scope: Scope) -> bool:
    host = _header(scope, b"host")
    if host is None:
        return False
    return is_loopback(host[1:].partition("]")[0] if host[0:1] == "[" else host.partition(":")[0])
