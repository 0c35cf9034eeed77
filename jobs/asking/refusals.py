"""What servers answer instead of an answer: HTTP status → what to do about it, as errors by kind.

    httpx.Response -> raise_for_status(): Refused (this question), Busy and NotReady (come again)

Neighbours: `jobs.asking.replicas` asks; `jobs.asking.openai` has the same kinds of another form.
"""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from common.errors import EngineError

UNAUTHORIZED = (401, 403)
UNAVAILABLE = (502, 503, 504)
"""A replica that loads, or a proxy whose replica is gone."""
MAX_PAUSE_S = 5.0
"""Longest wait before the next try."""
MAX_RETRY_AFTER_S = 60.0
"""Longest wait that a busy server can ask for."""


class Refused(EngineError):
    """A replica answered that it cannot serve this request."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        """Part of the request that is at fault, if the replica said so (`clip`)."""


class NotReady(EngineError):
    """A replica is still loading."""


class Broken(NotReady):
    """A server failed over this question (500), which may be what breaks it."""


class Busy(NotReady):
    """A replica has as much to do as it takes (429)."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """When it wants to be asked again."""


def raise_for_status(answer: httpx.Response) -> None:
    """Nothing, if it is an answer.

    Raises:
        Refused, NotReady, Busy, EngineError: as `ask`.
    """
    if answer.status_code == httpx.codes.OK:
        return
    detail, field = _problem(answer)
    problem = f"{answer.url}: found status {answer.status_code}: {detail}"
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise Busy(problem, retry_after_s=retry_after_s(answer.headers.get("Retry-After")))
    if answer.status_code in UNAVAILABLE:
        raise NotReady(problem)
    if answer.status_code in UNAUTHORIZED:
        raise EngineError(
            f"{problem}; set TEMPSAMP_TOKEN or TEMPSAMP_GENERATE_TOKEN to the replica's"
        )
    raise Refused(problem, field=field)


def retry_after_s(header: str | None) -> float:
    """Seconds as the server says (a number or a date), within bounds; nothing is a second."""
    try:
        wanted_s = float(header or "1")
    except ValueError:
        wanted_s = _seconds_until(header or "")
    return 1.0 if math.isnan(wanted_s) else min(MAX_RETRY_AFTER_S, max(0.0, wanted_s))


def _seconds_until(date: str) -> float:
    try:
        when = parsedate_to_datetime(date)
    except ValueError:
        return 1.0
    return (when - datetime.now(UTC)).total_seconds() if when.tzinfo else 1.0


def _problem(answer: httpx.Response) -> tuple[str, str | None]:
    """Detail and first field of a problem document, else the start of the body."""
    try:
        document = answer.json()
        errors = document.get("errors") or [{}]
        return str(document["detail"]), errors[0].get("field")
    except (ValueError, KeyError, TypeError, AttributeError):
        return answer.text[:200], None
