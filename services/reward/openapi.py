"""What /openapi.json says beyond FastAPI's own reading: request bodies, refusals, tasks, security.

The handlers take raw bytes, so the request schemas are added here; names of tasks and parsers
become enumerations, so that /docs and generated clients say what is installed.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from common.answers.reading import PARSERS
from common.rest.auth import PUBLIC_PATHS
from common.rest.problems import MEDIA_TYPE, ProblemDocument
from common.rest.reward_api import InjectionRequest, ScoreRequest, ShapeRequest

REFERENCE = "#/components/schemas/{model}"
MEANING = {
    400: "the body is not JSON",
    401: "missing or wrong token",
    413: "too large",
    422: "a field is wrong",
    503: "too many requests wait for a third-party scorer",
}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads `model` from bytes."""
    schema = {"$ref": REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: problem documents for these statuses."""
    return {status: _refusal(status) for status in statuses}


def describe(app: FastAPI, *, tasks: Sequence[str], secured: bool) -> None:
    """Install the complete document on `app`."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    _, definitions = models_json_schema(
        [
            (ScoreRequest, "validation"),
            (InjectionRequest, "validation"),
            (ShapeRequest, "validation"),
            (ProblemDocument, "validation"),
        ],
        ref_template=REFERENCE,
    )
    schemas.update(definitions["$defs"])
    for name in ("ScoreItem", "InjectionRequest"):
        schemas[name]["properties"]["task"]["enum"] = list(tasks)
    for name in ("ScoreRequest", "InjectionRequest"):
        schemas[name]["properties"]["parser"]["enum"] = list(PARSERS)
    if secured:
        _secure(document)
    app.openapi = lambda: document  # type: ignore[method-assign]


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
            operation["responses"]["401"] = _refusal(401)
