"""What the services of a run say of themselves: registry, queues, GET /v1/status → `Fleet`.

    run file -> look(run) -> Fleet, which `jobs.fleet.table` shows

A replica that does not answer is shown as the registry has it. Neighbours: `common.queue.broker`,
`services.rollout.app` and `services.learner.status` over HTTP.
"""

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from common.config import Learner, Run, bearer
from common.errors import ConfigError, QueueError
from common.messages import Message, ReplicaIdentity, ReplicaStatus
from common.queue.access import REDIS_URL, connection_options
from common.queue.broker import Broker
from common.rest import direct
from common.rest.address import base_url
from common.rest.fleet_api import LearnerReport, ReplicaReport
from common.rest.identity import challenge, verify
from common.secrets import Role, Tokens

TIMEOUT_S = 3.0
REDIS_OUTAGE_S = 3.0
SHOWN_CHARS = 200

Report = TypeVar("Report", bound=BaseModel)


class Queues(Message):
    """Lengths of the run's queues in Redis."""

    prompts_waiting: int
    prompts_claimed: int
    groups_unread: int
    groups_unacknowledged: int
    dead_letters: int


class Replica(Message):
    """One replica, as the registry and it itself say."""

    status: ReplicaStatus
    report: ReplicaReport | None = None
    unreachable: str | None = None
    """Why there is no report."""


class Fleet(Message):
    """A whole run."""

    run_id: str
    replicas: tuple[Replica, ...]
    queues: Queues | None = None
    """None when nothing of the run is there."""
    learner: LearnerReport | None = None
    learner_url: str | None = None
    learner_unreachable: str | None = None

    @property
    def is_there(self) -> bool:
        """Whether anything runs."""
        return self.learner is not None or bool(self.replicas)


async def look(run: Run, *, learner_url: str | None, redis_knob: str = REDIS_URL) -> Fleet:
    """Ask everybody at once.

    Args:
        run: whose services these are.
        learner_url: of rank 0; None where nobody knows.
        redis_knob: what the run's Redis was named by.

    Raises:
        ConfigError: Redis cannot be asked.
    """
    async with (
        opened(run, redis_knob=redis_knob) as broker,
        direct.async_client(timeout=TIMEOUT_S) as client,
    ):
        statuses = await broker.replicas()
        tokens = run.shared.tokens
        asked = asyncio.gather(*(_replica(client, status, tokens) for status in statuses))
        learner, unreachable = await _learner(client, learner_url, tokens)
        replicas = tuple(await asked)
        there = replicas or learner is not None
        depths = await broker.depths() if there else None
    return Fleet(
        run_id=run.shared.run_id,
        replicas=replicas,
        queues=Queues.model_validate(depths, from_attributes=True) if depths else None,
        learner=learner,
        learner_url=learner_url,
        learner_unreachable=unreachable,
    )


@asynccontextmanager
async def opened(run: Run, *, redis_knob: str = REDIS_URL) -> AsyncIterator[Broker]:
    """The run's Redis, asked for seconds only.

    Raises:
        ConfigError: it does not answer, or does not let us in.
    """
    shared = run.shared
    broker = Broker(
        shared.redis_url,
        run_id=shared.run_id,
        outage_s=REDIS_OUTAGE_S,
        knob=redis_knob,
        **connection_options(shared, knob=redis_knob),
    )
    try:
        yield broker
    except QueueError as error:
        raise ConfigError(str(error)) from error
    finally:
        await broker.close()


async def found(run: Run, name: str) -> ReplicaStatus:
    """The replica of that name, or of the only name that begins so.

    Raises:
        ConfigError: there is none, or there are several; or Redis cannot be asked.
    """
    async with opened(run) as broker:
        statuses = {status.replica: status for status in await broker.replicas()}
    if name in statuses:
        return statuses[name]
    fitting = [status for known, status in statuses.items() if known.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(statuses) or "none"
    raise ConfigError(
        f"REPLICA: found {len(fitting)} replicas of run {run.shared.run_id!r} whose name begins "
        f"with {name!r}, wanted one; the registry has: {known}"
    )


def url_of_learner(learner: Learner) -> str | None:
    """Where rank 0 answers, as far as a run file says; None for a port of the system's choice."""
    if learner.metrics_port == 0:
        return None
    host = learner.metrics_host
    try:
        if ipaddress.ip_address(host).is_unspecified:
            host = learner.host
    except ValueError:
        pass
    return base_url(host, learner.metrics_port)


async def vouched(client: httpx.AsyncClient, url: str, *, tokens: Tokens, role: Role) -> None:
    """Have who answers at an address of the registry prove to know a token, before it is shown.

    Raises:
        ConfigError: it does not, or belongs to another address.
        httpx.HTTPError: nothing answers there.
    """
    if (token := tokens.of(role)) is None:
        return
    asked = challenge(role)
    answer = await client.get(f"{url}/v1/identity", params=asked)
    answer.raise_for_status()
    try:
        identity = ReplicaIdentity.model_validate_json(answer.content)
    except ValidationError as error:
        raise ConfigError(f"{url}: found no identity of a replica: {error}") from error
    verify(identity, url=url, nonce=asked["nonce"], token=token)


async def _replica(client: httpx.AsyncClient, status: ReplicaStatus, tokens: Tokens) -> Replica:
    report, unreachable = await _ask(client, status.url, ReplicaReport, tokens, vouch=True)
    return Replica(
        status=report.status if report else status, report=report, unreachable=unreachable
    )


async def _learner(
    client: httpx.AsyncClient, url: str | None, tokens: Tokens
) -> tuple[LearnerReport | None, str | None]:
    if url is None:
        return None, "learner.metrics_port is 0: --learner URL says where it is"
    return await _ask(client, url, LearnerReport, tokens, vouch=False)


async def _ask(
    client: httpx.AsyncClient, url: str, model: type[Report], tokens: Tokens, *, vouch: bool
) -> tuple[Report | None, str | None]:
    """A report, or why there is none."""
    try:
        if vouch:
            await vouched(client, url, tokens=tokens, role="generate")
        answer = await client.get(f"{url}/v1/status", headers=bearer(tokens.of("generate")))
        answer.raise_for_status()
        return model.model_validate_json(answer.content), None
    except httpx.HTTPStatusError as error:
        return None, f"status {error.response.status_code}: {error.response.text[:SHOWN_CHARS]}"
    except ConfigError as error:
        return None, str(error)[:SHOWN_CHARS]
    except ValidationError:
        return None, f"not a {model.__name__}"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return None, f"{type(error).__name__}: {error}"[:SHOWN_CHARS]
