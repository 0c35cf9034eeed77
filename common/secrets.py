"""Secrets: from the environment, or from the file that a variable with _FILE behind it names.

    TEMPSAMP_TOKEN            bearer token for every role that has none of its own
    TEMPSAMP_CONTROL_TOKEN    weights and drains of replicas: the learner, an operator
    TEMPSAMP_GENERATE_TOKEN   answers of replicas: evaluations, the learner's validation
    TEMPSAMP_SCORE_TOKEN      the reward service: replicas, anybody's trainer
    TEMPSAMP_REDIS_PASSWORD   of the run's Redis
    TEMPSAMP_OPENAI_KEY       of somebody else's server (`--openai`), which is told no token of ours

`common.config` puts them into `[shared]`; `common.rest.auth` asks callers for the right one. Once
any token is set, a role without one is closed to everybody.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import SecretStr

from common.errors import ConfigError

Role = Literal["control", "generate", "score"]
ROLES: tuple[Role, ...] = get_args(Role)
TOKEN = "TEMPSAMP_TOKEN"
REDIS_PASSWORD = "TEMPSAMP_REDIS_PASSWORD"
OPENAI_KEY = "TEMPSAMP_OPENAI_KEY"
TOKEN_OF: Mapping[Role, str] = {role: f"TEMPSAMP_{role.upper()}_TOKEN" for role in ROLES}
VARIABLES = (TOKEN, *TOKEN_OF.values(), REDIS_PASSWORD)
"""Of a run."""
MOST_BYTES = 4096
OTHERS = stat.S_IWGRP | stat.S_IRWXO
"""Bits that a file of a secret must not have; its group may read it (Kubernetes' fsGroup)."""


@dataclass(frozen=True)
class Tokens:
    """The bearer tokens that one process knows."""

    general: SecretStr | None = None
    """For the roles without one of their own."""
    control: SecretStr | None = None
    generate: SecretStr | None = None
    score: SecretStr | None = None

    def of(self, role: Role) -> SecretStr | None:
        """What a caller in that role shows; None: nothing, or nobody gets in."""
        own: SecretStr | None = getattr(self, role)
        return own if own is not None else self.general

    def any(self) -> SecretStr | None:
        """What is shown where every role may look, such as /metrics; the least first."""
        ordered = (self.score, self.generate, self.general, self.control)
        return next((token for token in ordered if token is not None), None)

    def known(self) -> tuple[SecretStr, ...]:
        """All of them."""
        found = (self.general, self.control, self.generate, self.score)
        return tuple(token for token in found if token is not None)


def tokens(environ: Mapping[str, str] = os.environ) -> Tokens:
    """The tokens of an environment.

    Raises:
        ConfigError: see `secret`.
    """
    return Tokens(
        general=secret(TOKEN, environ),
        **{role: secret(name, environ) for role, name in TOKEN_OF.items()},
    )


def secret(name: str, environ: Mapping[str, str] = os.environ) -> SecretStr | None:
    """A secret by its variable; None where neither that nor the one with _FILE is set.

    Raises:
        ConfigError: both are set, the file cannot be read or is open to others, or what was found
            is no single line of printable characters. The secret itself is never shown.
    """
    value, file = environ.get(name), environ.get(f"{name}_FILE")
    if value and file:
        raise ConfigError(f"{name}, {name}_FILE: found both, wanted one of them")
    if file:
        return SecretStr(_checked(_read(Path(file), f"{name}_FILE"), f"{name}_FILE: {file}"))
    return SecretStr(_checked(value, name)) if value else None


def has_credentials(url: str) -> bool:
    """Whether a user or a password stands in a URL, well-formed or not."""
    path_may_hold_an_at = url.startswith("unix://")
    suspect = url.removeprefix("unix://").partition("/")[0] if path_may_hold_an_at else url
    return "@" in suspect or "password=" in url


def only(*, token: str, redis_password: str | None = None) -> dict[str, str]:
    """Environment of a child that knows this token for every role, whatever its parent knows."""
    secret_names = (*VARIABLES, OPENAI_KEY)
    names = [*secret_names, *(f"{name}_FILE" for name in secret_names)]
    given = {TOKEN: token, REDIS_PASSWORD: redis_password or ""}
    return {**dict.fromkeys(names, ""), **given}


def _read(path: Path, name: str) -> str:
    try:
        with path.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            content = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{name}: {path}: {error.strerror or error}") from error
    if mode & OTHERS:
        raise ConfigError(
            f"{name}: found {path} with mode {mode:o}, wanted a file that others cannot read: "
            f"chmod 600 {path}"
        )
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: {path}: found bytes, wanted text in UTF-8") from error


def _checked(value: str, where: str) -> str:
    if not value or len(value.encode()) > MOST_BYTES:
        raise ConfigError(
            f"{where}: found {len(value.encode())} bytes, wanted a secret of 1 to {MOST_BYTES}"
        )
    if not value.isprintable() or value != value.strip():
        raise ConfigError(
            f"{where}: found spaces around it, several lines or control characters, wanted one "
            "line of printable characters"
        )
    return value
