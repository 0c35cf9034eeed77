"""`tempsamp drain REPLICA`: one replica finishes what is in work, leaves the ring, and ends.

    name -> registry -> POST /v1/drain -> gone from the registry

A supervisor that starts whatever ends starts it again: scale it down there.
"""

import asyncio
import time
from pathlib import Path
from typing import Annotated

import httpx
import typer

from common import config
from common.config import Run, bearer
from common.errors import ConfigError, EngineError
from common.rest import direct
from common.secrets import Tokens, tokens
from jobs.asking.endpoints import check_endpoints, no_replica
from jobs.fleet.services import found, opened, vouched
from jobs.local.terminal import console
from jobs.local.waiting import waiting

TIMEOUT_S = 10.0
GONE_TIMEOUT_S = 60.0
"""A replica takes 35 s at most (services/rollout/server.py); the rest is for a slow Redis."""
POLL_S = 0.25


def command(
    replica: Annotated[str, typer.Argument(help="Its name, or how that begins; or its URL.")],
    run_file: Annotated[
        Path | None, typer.Option("--config", "-c", help="The run's TOML file, to look a name up.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="section.key=value, over the file; may be repeated."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is gone; by name only.")] = True,
) -> None:
    """Take a replica out of the ring; what it has in work is finished or handed back."""
    if "://" in replica:
        check_endpoints([replica], knob="REPLICA")
        url = replica.rstrip("/")
        asyncio.run(_drain(url, tokens(), vouch=False))
        typer.echo(f"{url} drains")
        return
    if run_file is None:
        raise ConfigError(f"--config: found none, wanted a run file to look {replica!r} up")
    run = config.load(run_file, overrides=overrides or ())
    status = asyncio.run(found(run, replica))
    asyncio.run(_drain(status.url, run.shared.tokens, vouch=True))
    typer.echo(f"{status.replica} drains")
    if wait:
        with waiting(console(stderr=True), f"waiting until {status.replica} is gone"):
            asyncio.run(_until_gone(run, status.replica))
        typer.echo(f"{status.replica} is gone")


async def _drain(url: str, known: Tokens, *, vouch: bool) -> None:
    headers = bearer(known.of("control"))
    try:
        async with direct.async_client(timeout=TIMEOUT_S) as client:
            if vouch:
                await vouched(client, url, tokens=known, role="control")
            answer = await client.post(f"{url}/v1/drain", headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(
            f"REPLICA: found {url}: {type(error).__name__}: {error}, wanted the address of a "
            "replica that is up"
        ) from error
    if answer.status_code in (401, 403):
        raise ConfigError(
            f"{url}: found status {answer.status_code}; set TEMPSAMP_TOKEN or "
            "TEMPSAMP_CONTROL_TOKEN to the replica's"
        )
    if answer.status_code == 404:
        raise no_replica(url, answer, knob="REPLICA")
    if not answer.is_success:
        raise EngineError(f"{url}: found status {answer.status_code}: {answer.text[:200]}")


async def _until_gone(run: Run, name: str) -> None:
    deadline_s = time.monotonic() + GONE_TIMEOUT_S
    async with opened(run) as broker:
        while time.monotonic() < deadline_s:
            if name not in {status.replica for status in await broker.replicas()}:
                return
            await asyncio.sleep(POLL_S)
    raise EngineError(f"{name} is still there after {GONE_TIMEOUT_S:.0f} s; its log says why")
