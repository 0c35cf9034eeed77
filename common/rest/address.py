"""Host and port of a service, of either family: `base_url("fd00::1", 8200)`, `family_of("::")`.

The one place where addresses become URLs, and where URLs that somebody wrote are judged.
"""

import ipaddress
import logging
import socket
from urllib.parse import SplitResult, urlsplit

from common.errors import ConfigError

logger = logging.getLogger(__name__)


def family_of(host: str) -> socket.AddressFamily:
    """AF_INET or AF_INET6: what a name or an address leads to first.

    Raises:
        OSError: no such host.
    """
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]


def host_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def base_url(host: str, port: int) -> str:
    """`http://host:port`."""
    return f"http://{host_port(host, port)}"


def checked_url(url: str, *, knob: str, example: str = "http://127.0.0.1:8200") -> str:
    """The base URL of a service, without a slash at its end; nobody is asked.

    Raises:
        ConfigError: it is none; names the knob.
    """
    wanted = f"a URL such as {example}"
    parts = split_url(url, knob=knob, wanted=wanted)
    if parts.scheme not in ("http", "https") or not parts.hostname or any(map(str.isspace, url)):
        raise ConfigError(f"{knob}: found {url!r}, wanted {wanted}")
    return url.rstrip("/")


def split_url(url: str, *, knob: str, wanted: str) -> SplitResult:
    """The parts of a URL of any scheme.

    Raises:
        ConfigError: its port or its brackets are none.
    """
    try:
        parts = urlsplit(url)
        address = parts.netloc.rpartition("@")[2]
        # Nobody can tell the port of ::1:6379 from the address.
        is_bare_ipv6 = address.count(":") > 1 and not address.startswith("[")
        if is_bare_ipv6:
            wanted = "brackets around an IPv6 address, as in [::1]:PORT"
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"{knob}: found {url!r}, wanted {wanted}: {error}") from error
    if is_bare_ipv6:
        raise ConfigError(f"{knob}: found {url!r}, wanted {wanted}")
    return parts


def refuse_foreign(host: str, *, knob: str) -> None:
    """Raises ConfigError unless this machine can listen at that name or address."""
    try:
        with socket.socket(family_of(host), socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except OSError as error:
        raise ConfigError(
            f"{knob}: found {host!r}: {error.strerror or error}, wanted a name or an address of "
            "this machine"
        ) from error


def loopback_behind(host: str) -> str | None:
    """The loopback address that a name of this machine leads to; None: it is another's, it does not
    hide it, or there is none. Installers of Debian and Ubuntu write `127.0.1.1 NAME` into
    /etc/hosts, and a server bound to NAME is then out of every other machine's reach."""
    if "localhost" in host or is_loopback(host):
        return None
    try:
        address = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None
    return address if is_loopback(address) else None


def warn_of_loopback(host: str, *, knob: str) -> None:
    """Say so in the log if no other machine can reach what listens at that name."""
    if (address := loopback_behind(host)) is not None:
        wanted = "an address of this machine, or /etc/hosts without that line"
        facts = {"knob": knob, "found": host, "address": address, "wanted": wanted}
        logger.warning("a name leads to loopback: no other machine gets here", extra=facts)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`; of names, only localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
