"""Who may call a REST service: a bearer token (constant-time compare) and the loopback rule.

Every service uses it: `refuse_open_port` before the port opens, `BearerAuth` afterwards.
"""

import hmac
import ipaddress

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import ConfigError
from common.rest.problems import Problem, problem_response

PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/v1/identity"})
"""Answered without a token: orchestrators probe them, and the learner asks for a proof."""
TOKEN_VARIABLE = "TEMPSAMP_TOKEN"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`; of names, only localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_open_port(
    host: str,
    *,
    token: SecretStr | None,
    allow_remote: bool,
    section: str,
    knob: str = "host",
) -> None:
    """Refuse to listen off loopback without a token, unless told so.

    Args:
        host: to listen at.
        token: that callers will have to show.
        allow_remote: the section's knob of that name.
        section: of the run file.
        knob: of that section, where `host` came from.

    Raises:
        ConfigError: names the host, the variable and the knob.
    """
    if is_loopback(host) or token is not None or allow_remote:
        return
    raise ConfigError(
        f"{section}.{knob}: found {host!r} and no token: anybody who reaches this port could "
        f"use it; set {TOKEN_VARIABLE}, listen on 127.0.0.1, or set {section}.allow_remote = true"
    )


class BearerAuth:
    """ASGI middleware: 401 without `Authorization: Bearer <token>`, except on `PUBLIC_PATHS`."""

    def __init__(self, app: ASGIApp, *, token: SecretStr) -> None:
        self._app = app
        self._expected = b"Bearer " + token.get_secret_value().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS or self._is_allowed(scope):
            await self._app(scope, receive, send)
            return
        problem = Problem(
            401,
            "missing or wrong bearer token",
            field="header.authorization",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await problem_response(problem)(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(b" ")
        return hmac.compare_digest(scheme.capitalize() + b" " + token.strip(), self._expected)
