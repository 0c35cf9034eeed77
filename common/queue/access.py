"""How the run's Redis may be reached: address, password, user and TLS of `[shared]`, judged.

    refuse_open_redis(shared)   # before anything is loaded; `Broker.of` asks again

Whoever can write to that Redis tells replicas what to answer and the learner which replicas there
are, so off loopback it wants a password. Redis itself is not contacted here.
"""

from typing import Any
from urllib.parse import SplitResult, parse_qs

from common.config import Shared
from common.errors import ConfigError
from common.rest.address import is_loopback, split_url
from common.secrets import REDIS_PASSWORD

REDIS_URL = "shared.redis_url"
"""What names a Redis unless an option does."""
SCHEMES = ("redis", "rediss", "unix")
TLS = "rediss"
ONE_OF_OURS = {
    "username": "shared.redis_user",
    "ssl_ca_certs": "shared.redis_ca",
    "password": REDIS_PASSWORD,
}
"""What redis-py would also read from a URL, and where it belongs."""


def refuse_open_redis(shared: Shared, *, knob: str = REDIS_URL) -> None:
    """Raises when the run's Redis must not be used like this.

    Args:
        shared: address and secrets.
        knob: what the address was named by.

    Raises:
        ConfigError: a URL of another kind, a setting in it that has its own place, off loopback
            without a password, or a CA without TLS. Nothing secret is shown.
    """
    url = split_redis_url(shared.redis_url, knob=knob)
    for name in parse_qs(url.query):
        if name in ONE_OF_OURS or name.startswith("ssl_"):
            place = ONE_OF_OURS.get(name, "rediss:// and shared.redis_ca, which verify")
            raise ConfigError(f"{knob}: found {name} in it, wanted {place}")
    if shared.redis_ca is not None and url.scheme != TLS:
        raise ConfigError(
            f"shared.redis_ca: found {shared.redis_ca} while {knob} is {url.scheme}://, "
            "wanted rediss://"
        )
    if shared.redis_ca is not None and not shared.redis_ca.is_file():
        raise ConfigError(f"shared.redis_ca: found no file {shared.redis_ca}")
    here = url.scheme == "unix" or is_loopback(url.hostname or "localhost")
    if here or shared.redis_password is not None or shared.redis_allow_open:
        return
    or_open = ", or shared.redis_allow_open = true" if knob == REDIS_URL else ""
    raise ConfigError(
        f"{knob}: found {url.hostname!r} and no password: anybody who reaches that Redis could "
        f"steer the run; set {REDIS_PASSWORD} (or {REDIS_PASSWORD}_FILE) there and here{or_open}"
    )


def connection_options(shared: Shared, *, knob: str = REDIS_URL) -> dict[str, Any]:
    """What the client needs beside the URL.

    Raises:
        ConfigError: see `refuse_open_redis`.
    """
    refuse_open_redis(shared, knob=knob)
    password = shared.redis_password
    options: dict[str, Any] = {
        "username": shared.redis_user,
        "password": password.get_secret_value() if password else None,
    }
    if split_redis_url(shared.redis_url, knob=knob).scheme == TLS:
        options |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        if shared.redis_ca is not None:
            options["ssl_ca_certs"] = str(shared.redis_ca)
    return options


def split_redis_url(url: str, *, knob: str) -> SplitResult:
    """The parts of a Redis's address.

    Raises:
        ConfigError: it is none; names `knob`.
    """
    wanted = "redis://HOST:PORT/0, rediss:// or unix://"
    parts = split_url(url, knob=knob, wanted=wanted)
    database = parts.path.strip("/")
    is_place = parts.scheme == "unix" or (parts.netloc and (not database or database.isdecimal()))
    if parts.scheme not in SCHEMES or not is_place:
        raise ConfigError(f"{knob}: found {url!r}, wanted {wanted}")
    return parts
