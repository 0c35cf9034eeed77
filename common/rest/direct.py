"""HTTP between our own services: straight to them, whatever the environment says about proxies.

Libraries obey HTTP_PROXY, ALL_PROXY and NO_PROXY, which people set for downloads: the ring's
traffic would go to a proxy that does not know these addresses, or through one that reads answers.
Only downloads of videos and models use one. SSL_CERT_FILE and SSL_CERT_DIR still name authorities.
"""

import os
import ssl
from pathlib import Path
from typing import Any

import httpx

from common.errors import ConfigError

AUTHORITIES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def client(**settings: Any) -> httpx.Client:
    """A client for our own services; `settings` are those of `httpx.Client`.

    Raises:
        ConfigError: SSL_CERT_FILE or SSL_CERT_DIR names what is not there.
    """
    return httpx.Client(trust_env=False, verify=_authorities(), **settings)


def async_client(**settings: Any) -> httpx.AsyncClient:
    """The same of `httpx.AsyncClient`."""
    return httpx.AsyncClient(trust_env=False, verify=_authorities(), **settings)


def _authorities() -> ssl.SSLContext | bool:
    file, folder = (os.environ.get(name) for name in AUTHORITIES)
    for name, path in zip(AUTHORITIES, (file, folder), strict=True):
        if path and not Path(path).exists():
            raise ConfigError(f"{name}: found {path}, which is not there, wanted certificates")
    if not file and not folder:
        return True
    try:
        return ssl.create_default_context(cafile=file or None, capath=folder or None)
    except ssl.SSLError as error:
        raise ConfigError(f"SSL_CERT_FILE: found {file}, wanted certificates: {error}") from error
