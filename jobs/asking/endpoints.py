"""Addresses of `--endpoint` and the like → are they rollout replicas? Known before any retry.

    --endpoint … -> check_endpoints() -> jobs.asking.replicas asks them

An address that nobody answers at, or a replica that still loads, passes: `jobs.asking.replicas`
waits.
"""

from collections.abc import Iterable

import httpx
from pydantic import ValidationError

from common.errors import ConfigError
from common.messages import ReplicaStatus
from common.rest import direct
from common.rest.address import checked_url

TIMEOUT_S = 5.0
SHOWN_CHARS = 80


def check_endpoints(endpoints: Iterable[str], *, knob: str = "--endpoint") -> None:
    """Refuse what cannot be a rollout replica.

    Args:
        endpoints: their addresses.
        knob: what names them.

    Raises:
        ConfigError: an address is no URL, or something else answers there.
    """
    for endpoint in endpoints:
        checked_url(endpoint, knob=knob)
    for endpoint in endpoints:
        _check_service(endpoint, knob=knob)


def _check_service(endpoint: str, *, knob: str) -> None:
    url = f"{endpoint.rstrip('/')}/readyz"
    try:
        with direct.client(timeout=TIMEOUT_S) as client:
            answer = client.get(url)
    except httpx.TransportError:
        return
    if answer.is_server_error:
        return
    try:
        ReplicaStatus.model_validate_json(answer.raise_for_status().content)
    except (httpx.HTTPStatusError, ValidationError) as error:
        raise no_replica(endpoint, answer, knob=knob) from error


def no_replica(endpoint: str, answer: httpx.Response, *, knob: str) -> ConfigError:
    """What answers like this is none."""
    return ConfigError(
        f"{knob}: found {endpoint}, whose {answer.request.url.path} answers status "
        f"{answer.status_code}: {answer.text[:SHOWN_CHARS]!r}; wanted a rollout replica"
    )
