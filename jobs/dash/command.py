"""`tempsamp dash`: a page that shows runs while they learn, and afterwards.

RUN (a run folder, or a folder of them) -> http://127.0.0.1:8400
"""

import signal
from pathlib import Path
from typing import Annotated

import typer

from common import logs
from common.errors import ConfigError
from common.rest import serving
from common.rest.address import is_loopback
from common.secrets import TOKEN, Tokens, has_credentials, tokens

DEFAULT_ROOT = Path("runs")
CONNECTIONS = 256
DRAIN_S = 1
"""Event streams never end by themselves."""
END_S = 5.0


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
) -> None:
    """Show runs while they learn, and afterwards: curves, groups, evaluations."""
    known = tokens()
    refuse_open(host, known)
    if redis is not None and has_credentials(redis):
        raise ConfigError(
            "--redis: found a user or a password in it, wanted none: TEMPSAMP_REDIS_PASSWORD"
        )
    from jobs.dash.app import create_app
    from jobs.dash.site import Site

    site = Site(DEFAULT_ROOT if run is None and redis is None else run, redis_url=redis)
    logs.configure("dash", run_id="-")
    listening = serving.listen(
        host, port, section="tempsamp dash", host_knob="host", port_knob="port"
    )
    with listening:
        asks = ", which asks for a token" if known.known() else ""
        typer.echo(f"{serving.url_of(listening, host)}{asks}  (Ctrl-C ends it)")
        config = serving.configured(
            create_app(site, tokens=known), connections=CONNECTIONS, drain_s=DRAIN_S
        )
        try:
            serving.serve(config, listening, end_s=END_S)
        except KeyboardInterrupt:
            raise typer.Exit(128 + signal.SIGINT) from None


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
