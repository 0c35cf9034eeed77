"""What /openapi.json says beyond FastAPI's own reading: strict bodies, refusals, security.

Bodies are validated straight from bytes (`common.rest.problems.read_json`), so a route says with
`json_body` what it reads, and with `refusals` which problems it answers; `complete` puts the
schemas of both into the document.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from pydantic_core import from_json, to_json

from common.rest.auth import PUBLIC_PATHS
from common.rest.problems import MEDIA_TYPE, Problem, ProblemDocument, read_json

REFERENCE = "#/components/schemas/{model}"
MEANING = {
    400: "the body is not JSON",
    401: "missing or wrong token",
    403: "the token of another role",
    409: "a weight transfer did not succeed",
    413: "too large",
    422: "a field is wrong",
    429: "too many requests wait; Retry-After says when to come again",
    503: "not ready, or too much to do",
}

Model = TypeVar("Model", bound=BaseModel)


def strictly(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """A dependency: the body as its model, no number in a string, refusals as problems."""

    async def read(request: Request) -> Model:
        body = await request.body()
        try:
            return read_json(model, body)
        except Problem as problem:
            if problem.status != 422:
                raise
        return read_json(model, to_json(_whole(from_json(body, allow_inf_nan=False))))

    return read


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 2.0 is an integer to JSON Schema, and to who reads floats."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads `model` from bytes."""
    schema = {"$ref": REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: problem documents for these statuses."""
    return {status: _refusal(status) for status in statuses}


def complete(app: FastAPI, *, bodies: Sequence[type[BaseModel]], secured: bool) -> dict[str, Any]:
    """Install the complete document on `app`; returned, so that it can be refined."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    models: list[type[BaseModel]] = [*bodies, ProblemDocument]
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template=REFERENCE
    )
    schemas.update(definitions["$defs"])
    for schema in schemas.values():
        _require_tags(schema)
    if secured:
        _secure(document)
    app.openapi = lambda: document  # type: ignore[method-assign]
    return document


def _require_tags(schema: dict[str, Any]) -> None:
    """A tag has a default for who makes a message; who reads one tells unions apart by it."""
    tags = [name for name, field in schema.get("properties", {}).items() if "const" in field]
    if tags:
        schema["required"] = sorted({*schema.get("required", ()), *tags})


def _refusal(status: int) -> dict[str, Any]:
    schema = {"$ref": REFERENCE.format(model=ProblemDocument.__name__)}
    return {"description": MEANING[status], "content": {MEDIA_TYPE: {"schema": schema}}}


def _secure(document: dict[str, Any]) -> None:
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        if path in PUBLIC_PATHS:
            continue
        for operation in operations.values():
            operation["security"] = [{"token": []}]
            operation["responses"] |= {"401": _refusal(401), "403": _refusal(403)}
