"""The reward service's /openapi.json: names of tasks and parsers become enumerations, so that /docs
and generated clients say what is installed. What services share: `common.rest.openapi`.
"""

from collections.abc import Sequence

from fastapi import FastAPI

from common.answers.reading import PARSERS
from common.rest.openapi import complete
from common.rest.reward_api import InjectionRequest, ScoreRequest, ShapeRequest

BODIES = (ScoreRequest, InjectionRequest, ShapeRequest)


def describe(app: FastAPI, *, tasks: Sequence[str], secured: bool) -> None:
    """Install the complete document on `app`."""
    schemas = complete(app, bodies=BODIES, secured=secured)["components"]["schemas"]
    for name in ("ScoreItem", "InjectionRequest"):
        schemas[name]["properties"]["task"]["enum"] = list(tasks)
    for name in ("ScoreRequest", "InjectionRequest"):
        schemas[name]["properties"]["parser"]["enum"] = list(PARSERS)
