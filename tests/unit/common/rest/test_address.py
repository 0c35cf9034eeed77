"""Hosts of both families of addresses."""

import socket

import pytest

from common.errors import ConfigError
from common.rest.address import base_url, checked_url, family_of, refuse_foreign


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
