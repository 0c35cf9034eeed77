"""Hosts of both families of addresses."""

import socket

import pytest

from common.errors import ConfigError
from common.rest.address import (
    base_url,
    checked_url,
    family_of,
    loopback_behind,
    refuse_foreign,
    warn_of_loopback,
)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8200"),
        ("fd00::1", "http://[fd00::1]:8200"),
        ("node-1.example", "http://node-1.example:8200"),
    ],
)
def test_only_an_ipv6_address_gets_brackets(host: str, url: str) -> None:
    assert base_url(host, 8200) == url


def test_the_family_is_the_address_s_own() -> None:
    assert family_of("10.0.0.1") == family_of("0.0.0.0") == socket.AF_INET
    assert family_of("fd00::1") == family_of("::") == socket.AF_INET6


@pytest.mark.parametrize(
    "url",
    [
        *("node-1:8200", "nonsense", "http://", "http:///x", "ftp://node-1", "redis://node-1"),
        *("http://[::1", "http://node-1:99999", "http://node-1:http", "http://node 1"),
    ],
)
def test_what_is_no_url_is_said(url: str) -> None:
    with pytest.raises(ConfigError, match=r"REPLICA: found .* wanted a URL such as http://127"):
        checked_url(url, knob="REPLICA")


def test_an_ipv6_address_without_brackets_is_said() -> None:
    with pytest.raises(ConfigError, match="wanted brackets around an IPv6 address"):
        checked_url("http://::1:8200", knob="REPLICA")


@pytest.mark.parametrize("url", ["http://node-1:8200", "https://node-1", "http://[::1]:8200/a"])
def test_a_base_url_has_no_slash_at_its_end(url: str) -> None:
    assert checked_url(f"{url}/", knob="REPLICA") == checked_url(url, knob="REPLICA") == url


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "0.0.0.0"])
def test_addresses_of_this_machine_pass(host: str) -> None:
    refuse_foreign(host, knob="learner.host")


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "nosuchhost.invalid"])
def test_an_address_of_another_machine_is_said(host: str) -> None:
    wanted = f"learner.host: found '{host}': .*, wanted a name or an address of this machine"
    with pytest.raises(ConfigError, match=wanted):
        refuse_foreign(host, knob="learner.host")


ENTRY = {"node-1": "127.0.1.1", "node-6": "::1", "node-2": "192.0.2.7"}
"""Of an /etc/hosts as installers write it."""


@pytest.fixture
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if host not in ENTRY:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ENTRY[host], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.usefixtures("_named")
@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("node-1", "127.0.1.1"),
        ("node-6", "::1"),
        *((host, None) for host in ("node-2", "node-3", "10.0.0.1", "0.0.0.0", "::")),
        *((host, None) for host in ("localhost", "ip6-localhost", "127.0.0.1", "127.0.1.1", "::1")),
    ],
)
def test_only_a_name_can_hide_loopback(host: str, address: str | None) -> None:
    assert loopback_behind(host) == address


@pytest.mark.usefixtures("_named")
def test_a_name_that_hides_it_is_said_with_its_cure(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_loopback("node-2", knob="learner.host")
    assert not caplog.records
    warn_of_loopback("node-1", knob="learner.host")
    (said,) = (vars(record) for record in caplog.records)
    assert (said["knob"], said["found"], said["address"]) == ("learner.host", "node-1", "127.0.1.1")
    assert "/etc/hosts" in said["wanted"]
