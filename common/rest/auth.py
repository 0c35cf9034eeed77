"""Who may call a REST service: bearer tokens by role (constant-time compare), the loopback rule.

Every service uses it: `refuse_open_port` before the port opens, `BearerAuth` afterwards.
"""

import hmac
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import ConfigError
from common.rest.address import is_loopback
from common.rest.problems import Problem, problem_response
from common.secrets import ROLES, TOKEN, TOKEN_OF, Role, Tokens

PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/v1/identity"})
"""Answered without a token: orchestrators probe them, and the learner asks for a proof."""


def refuse_open_port(
    host: str,
    *,
    tokens: Tokens,
    allow_remote: bool,
    section: str,
    knob: str = "host",
) -> None:
    """Refuse to listen off loopback without a token, unless told so.

    Args:
        host: to listen at.
        tokens: that callers will have to show.
        allow_remote: the section's knob of that name.
        section: of the run file.
        knob: of that section, where `host` came from.

    Raises:
        ConfigError: names the host, the variable and the knob.
    """
    if is_loopback(host) or tokens.known() or allow_remote:
        return
    raise ConfigError(
        f"{section}.{knob}: found {host!r} and no token: anybody who reaches this port could "
        f"use it; set {TOKEN}, listen on 127.0.0.1, or set {section}.allow_remote = true"
    )


class BearerAuth:
    """ASGI middleware: who shows no known token gets 401, a token of another role 403.

    `PUBLIC_PATHS` are open. Paths below a prefix of `roles` want that role's token; all others,
    such as /metrics, any that is known. A role without a token is closed.
    """

    def __init__(
        self, app: ASGIApp, *, tokens: Tokens, roles: Mapping[str, Role] = MappingProxyType({})
    ) -> None:
        self._app = app
        self._roles = roles
        self._of_role = {role: _header(tokens.of(role)) for role in ROLES}
        self._known = [_header(token) for token in tokens.known()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = None if scope["type"] != "http" else self._refusal(scope)
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await problem_response(problem)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Problem | None:
        path = scope["path"]
        if path in PUBLIC_PATHS:
            return None
        shown = _shown(scope)
        if not _is_one_of(shown, self._known):
            return Problem(
                401,
                "missing or wrong bearer token",
                field="header.authorization",
                headers={"WWW-Authenticate": "Bearer"},
            )
        prefixes = (prefix for prefix in self._roles if path.startswith(prefix))
        role = next((self._roles[prefix] for prefix in prefixes), None)
        if role is None or _is_one_of(shown, [self._of_role[role]]):
            return None
        return Problem(
            403,
            f"found a token of another role, wanted that of {role!r} ({TOKEN_OF[role]}, or {TOKEN} "
            "where that is not set)",
            field="header.authorization",
        )


def _header(token: SecretStr | None) -> bytes | None:
    return None if token is None else b"Bearer " + token.get_secret_value().encode()


def _shown(scope: Scope) -> bytes | None:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(given) != 1:
        return None
    header: bytes = given[0]
    scheme, _, token = header.partition(b" ")
    return scheme.capitalize() + b" " + token.strip()


def _is_one_of(shown: bytes | None, wanted: Sequence[bytes | None]) -> bool:
    """In a time that does not tell how much of one was right, or which."""
    if shown is None:
        return False
    equal = [hmac.compare_digest(shown, one) for one in wanted if one is not None]
    return any(equal)
