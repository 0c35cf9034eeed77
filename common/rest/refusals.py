"""What a service says when it refuses, as its callers read it."""

import httpx


def detail_of(response: httpx.Response, *, most_chars: int = 200) -> str:
    """The detail of a problem document (RFC 9457), or the start of whatever came."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:most_chars]
