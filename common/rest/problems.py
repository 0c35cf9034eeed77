"""What the FastAPI services share: problem JSON (RFC 9457), body limits, bodies → pydantic models.

Every refusal is `application/problem+json` with type, title, status, detail and, for bad input,
`errors`: one entry per field with its path (`items.0.target.spans.0`), a JSON pointer and what is
wrong. `read_json` validates strictly (no number in a string) straight from bytes.
"""

import http
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 16
"""Fields named in one problem; a batch of thousands would otherwise be answered with megabytes."""
MAX_COUNTED = 1000
"""Wrong fields from which on none is named: listing a million costs seconds and gigabytes."""

TITLES = {413: "Request Entity Too Large", 422: "Unprocessable Entity"}
"""Phrases that `http` words differently from Python 3.13 on; a title shall not tell the Python."""

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field of a request."""

    field: str
    """Path from the body, dots between names and indices; `body` for the whole of it."""
    detail: str

    @property
    def pointer(self) -> str:
        """The same as a JSON pointer fragment (RFC 6901)."""
        return "#" if self.field == "body" else "#/" + self.field.replace(".", "/")


class Problem(Exception):
    """A request that is refused; becomes a problem document."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str | None = None,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = tuple(errors) or ((FieldError(field, detail),) if field else ())
        self.headers = dict(headers or {})


class ProblemError(BaseModel):
    """One entry of `errors` in a problem document."""

    field: str
    pointer: str
    detail: str


class ProblemDocument(BaseModel):
    """Body of every refusal (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[ProblemError] = []


def problem_response(problem: Problem) -> Response:
    """The problem as a response."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": TITLES.get(problem.status) or http.HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "errors": [
            {"field": error.field, "pointer": error.pointer, "detail": error.detail}
            for error in problem.errors
        ],
    }
    return Response(
        to_json(document),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=problem.headers,
    )


def read_json(model: type[Model], body: bytes) -> Model:
    """Validate a request body.

    Raises:
        Problem: 400 when it is not JSON or not UTF-8, 422 when a field is wrong; names the fields.
    """
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise problem_of(error) from error


def problem_of(error: ValidationError) -> Problem:
    """A failed validation as a problem."""
    if error.error_count() > MAX_COUNTED:
        return Problem(422, f"{error.error_count()} values are wrong", field="body")
    details = error.errors(include_url=False, include_context=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON in UTF-8: {details[0]['msg']}", field="body")
    return _invalid(details)


def _invalid(details: Sequence[ErrorDetails]) -> Problem:
    details = [entry for entry in details if not _follows_from_another(entry, details)]
    errors = [FieldError(_path(entry["loc"]), entry["msg"]) for entry in details[:MAX_ERRORS]]
    more = f" (and {len(details) - MAX_ERRORS} more)" if len(details) > MAX_ERRORS else ""
    return Problem(422, f"{errors[0].field}: {errors[0].detail}{more}", errors=errors)


def _follows_from_another(entry: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """A list whose members were all refused is also reported as too short."""
    location = entry["loc"]
    return entry["type"] == "too_short" and any(
        other is not entry and other["loc"][: len(location)] == location for other in details
    )


def _path(location: Sequence[int | str]) -> str:
    """Names and indices; the tag pydantic adds after a tagged union is left out."""
    parts: list[str] = []
    for part in location:
        if parts and parts[-1] == "target" and part in ("spans", "highlights", "text"):
            parts.append(f"\0{part}")
            continue
        parts.append(str(part))
    return ".".join(part for part in parts if not part.startswith("\0")) or "body"


class BodyLimit:
    """ASGI middleware: 413 for a body over `max_bytes`, declared or streamed."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next((v for name, v in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await problem_response(self._too_large())(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> Problem:
        return Problem(413, f"the body is over {self._max_bytes} bytes", field="body")


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every refusal and every crash of this app as problem JSON."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientDisconnect, _on_gone)
    app.add_exception_handler(Exception, _on_crash)


def _on_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(error)


def _on_validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem_response(_invalid([_in_body(entry) for entry in error.errors()]))


def _in_body(entry: ErrorDetails) -> ErrorDetails:
    """FastAPI says where a value was sent; the fields of a body are named without it."""
    location = entry["loc"]
    return {**entry, "loc": location[1:]} if location[:1] == ("body",) else entry


def _on_http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem_response(Problem(error.status_code, str(error.detail), headers=error.headers))


def _on_gone(request: Request, _error: Exception) -> Response:
    """Half a body and then nobody: no fault of ours, and a traceback each would fill any log."""
    logger.info("caller hung up", extra={"path": request.url.path})
    return problem_response(Problem(400, "the body ended early", field="body"))


def _on_crash(request: Request, error: Exception) -> Response:
    logger.error("request failed", exc_info=error, extra={"path": request.url.path})
    return problem_response(Problem(500, "the service failed; its log says why"))
