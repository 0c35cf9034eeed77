"""Host and port of a service, of either family: `base_url("fd00::1", 8200)`, `family_of("::")`."""

import ipaddress
import socket


def family_of(host: str) -> socket.AddressFamily:
    """AF_INET or AF_INET6: what a name or an address leads to first.

    Raises:
        OSError: no such host.
    """
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]


def base_url(host: str, port: int) -> str:
    """`http://host:port`, with brackets around an IPv6 address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`; of names, only localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
