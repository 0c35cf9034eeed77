"""Schemathesis over a replica's /openapi.json: requests made from the schema, good and bad.

The engine is a stub, all else is real: routes, checks, roots, refusals. The first run asks for all
checks but acceptance (that a clip is there cannot be said in JSON Schema), the second puts the
question right and asks for acceptance too. Both are deterministic.
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

from services.rollout.app import create_app
from services.rollout.replica import Replica
from tests.fixtures.clips import make_clip
from tests.fixtures.pages.openapi_runs import any_and_good, bounded
from tests.fixtures.replicas.stub_replica import stub_replica

FOLDER = tempfile.TemporaryDirectory(prefix="tempsamp-schema-")
VIDEOS = Path(FOLDER.name)
"""Known before any fixture is: the schema is read while tests are collected."""


def _replica() -> Replica:
    replica, _ = stub_replica(roots=VIDEOS, environ={})
    replica._end = lambda: None
    # Schemathesis enters the app's lifespan, which would load an engine.
    replica.run = _loaded  # type: ignore[method-assign]
    return replica


async def _loaded() -> None:
    await asyncio.Event().wait()


CLIP = _replica().loader.sample(make_clip(VIDEOS / "clip.mp4", num_frames=24))
app = create_app(_replica())
any_schema, good_schema = any_and_good(app)


def _put_right(body: dict[str, Any]) -> None:
    """A clip that is there, and sizes that a stub makes up quickly."""
    if "clip" in body:
        body["clip"] = CLIP.model_dump(mode="json")
        body["num_samples"] = 2


def truths(case: schemathesis.Case) -> list[Any]:
    """Checks that a replica which drains, as this one soon does, fails rightly: it is not ready."""
    return [not_a_server_error] if case.path == "/readyz" else []


def test_every_route_is_tried() -> None:
    found = {operation.ok().path for operation in any_schema.get_all_operations()}
    assert {"/v1/generate", "/v1/weights/join", "/v1/drain", "/v1/status", "/readyz"} <= found


@any_schema.parametrize()
@bounded
def test_no_request_breaks_the_contract(case: schemathesis.Case) -> None:
    case.call_and_validate(excluded_checks=[positive_data_acceptance, *truths(case)])


@good_schema.parametrize()
@bounded
def test_meaningful_requests_are_accepted(case: schemathesis.Case) -> None:
    assert case.meta is None or case.meta.generation.mode is GenerationMode.POSITIVE
    if isinstance(case.body, dict):
        _put_right(case.body)
    case.call_and_validate(excluded_checks=truths(case))
