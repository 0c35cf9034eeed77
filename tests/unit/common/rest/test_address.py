"""Hosts of both families of addresses."""

import socket

import pytest

from common.rest.address import base_url, family_of


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
