"""Addresses of `--endpoint` → are they rollout replicas? Known before a minute of retries.

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


def check_endpoints(endpoints: Iterable[str]) -> None:
    """Refuse what cannot be a rollout replica.

    Raises:
        ConfigError: an address is no URL, or something else answers there.
    """
    for endpoint in endpoints:
        checked_url(endpoint, knob="--endpoint")
    for endpoint in endpoints:
        _check_service(endpoint)


def _check_service(endpoint: str) -> None:
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
        raise ConfigError(
            f"--endpoint: found {endpoint}, whose /readyz answers status {answer.status_code}: "
            f"{answer.text[:SHOWN_CHARS]!r}; wanted a rollout replica"
        ) from error
