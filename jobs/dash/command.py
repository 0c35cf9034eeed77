"""`tempsamp dash`: a page that shows runs while they learn, and afterwards, and asks models.

RUN (a run folder, or a folder of them), models -> http://127.0.0.1:8400
"""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common import logs
from common.errors import ConfigError, QueueError
from common.rest import serving
from common.rest.address import is_loopback
from common.rest.connections import Connections
from common.secrets import REDIS_PASSWORD, TOKEN, Tokens, has_credentials, tokens
from jobs.asking.openai.media import FramesAs
from jobs.asking.openai.options import (
    FramesAsOption,
    OpenAIUrl,
    ServedModel,
    check_options,
    opened,
)
from jobs.dash.playground import MOST_UPLOAD_MB

if TYPE_CHECKING:
    from jobs.dash.playground.routes import Playground

DEFAULT_ROOT = Path("runs")
CONNECTIONS = 256
DRAIN_S = 1
"""Event streams never end by themselves."""
END_S = 5.0
MODEL_END_S = 30.0
"""More for each replica of our own: an engine is asked to end before it is ended."""
UPLOAD_S = 3600.0
"""For a video to arrive, from who showed a token or sits at this machine."""


def command(
    run: Annotated[
        Path | None,
        typer.Argument(help="A run folder, or a folder of runs; default: runs.", metavar="RUN"),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="With RUN: where its Redis is, if not where its settings say; without: the "
            "services of the runs that it knows.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8400,
    host: Annotated[
        str, typer.Option(help="Off loopback a token is needed (TEMPSAMP_TOKEN).")
    ] = "127.0.0.1",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help=r"For the playground: folder or ORG/NAME\[@revision] of the hub, loaded when it "
            "is first asked; may be given twice."
        ),
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(help="For the playground: URL of a running replica; may be repeated."),
    ] = None,
    openai: OpenAIUrl = None,
    served_model: ServedModel = None,
    frames_as: FramesAsOption = None,
    max_upload_mb: Annotated[
        int,
        typer.Option(min=1, help="Of videos that the playground keeps until the dash ends, MB."),
    ] = MOST_UPLOAD_MB,
) -> None:
    """Show runs while they learn, and afterwards: curves, groups, evaluations; ask models."""
    known = tokens()
    refuse_open(host, known)
    sent_as = check_options(openai, served_model=served_model, frames_as=frames_as, endpoint=None)
    if redis is not None:
        _check_redis(redis)
    from jobs.dash.app import create_app
    from jobs.dash.playground.routes import Playground
    from jobs.dash.site import Site
    from jobs.dash.watch import Ending

    ending = Ending()
    playground = Playground(most_upload_mb=max_upload_mb)
    _add_models(playground, model or [], endpoint or [])
    if openai is not None and sent_as is not None:
        _add_foreign(playground, openai, served_model=served_model, frames_as=sent_as)
    needs_no_run = run is None and bool(playground.models) and not DEFAULT_ROOT.is_dir()
    root = None if needs_no_run else DEFAULT_ROOT if run is None and redis is None else run
    try:
        site = Site(root, redis_url=redis)
    except QueueError as error:
        raise ConfigError(str(error)) from error
    logs.configure("dash", run_id="-")
    listening = serving.listen(host, port, knobs=("--host", "--port"))
    with listening, playground:
        asks = ", which asks for a token" if known.known() else ""
        typer.echo(f"{serving.url_of(listening, host)}{asks}  (Ctrl-C ends it)")
        config = serving.configured(
            create_app(site, tokens=known, playground=playground, ending=ending),
            connections=Connections(serving.room_for(CONNECTIONS), body_s=UPLOAD_S),
            drain_s=DRAIN_S,
        )
        try:
            end_s = END_S + MODEL_END_S * playground.num_local
            serving.serve(config, listening, end_s=end_s, on_stop=ending.now)
        except KeyboardInterrupt:
            raise typer.Exit(128 + signal.SIGINT) from None


def _check_redis(url: str) -> None:
    """Raises: ConfigError: it is no address of a Redis, or has secrets in it."""
    from common.queue.access import split_redis_url
    from jobs.dash.folder import REDIS_OPTION

    if has_credentials(url):
        raise ConfigError(
            f"{REDIS_OPTION}: found a user or a password in it, wanted none: {REDIS_PASSWORD}"
        )
    split_redis_url(url, knob=REDIS_OPTION)


def _add_models(playground: "Playground", models: Sequence[str], endpoints: Sequence[str]) -> None:
    from jobs.asking.endpoints import check_endpoints
    from jobs.dash.playground.models import endpoint

    playground.add_local(models)
    check_endpoints(endpoints)
    playground.add(*(endpoint(url, key=f"replica-{n}") for n, url in enumerate(endpoints, 1)))


def _add_foreign(
    playground: "Playground", url: str, *, served_model: str | None, frames_as: FramesAs
) -> None:
    from jobs.dash.playground.models import foreign

    server = opened(url, served_model=served_model, frames_as=frames_as, wants_logprobs=True)
    playground.add(foreign(server, key="openai", frames_as=frames_as))


def refuse_open(host: str, known: Tokens) -> None:
    """Refuse to show runs to a network that need show nothing.

    Raises:
        ConfigError: names the host and the variable.
    """
    if not is_loopback(host) and not known.known():
        raise ConfigError(
            f"--host: found {host!r} and no token: anybody who reaches this port would see videos "
            f"and answers; set {TOKEN}, or listen on 127.0.0.1 and use a tunnel"
        )
