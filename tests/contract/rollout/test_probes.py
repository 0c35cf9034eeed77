"""What orchestrators learn from a replica without a token: alive, loaded, serving, draining."""

from types import SimpleNamespace

import httpx
import pytest

from common import config
from common.rest.auth import PUBLIC_PATHS
from services.rollout.app import create_app
from services.rollout.replica import Replica
from tests.fixtures.pages.documents import ROOT
from tests.fixtures.replicas.stub_replica import load

LOADED, SERVING = "/readyz", "/readyz?serving=true"


@pytest.fixture
def replica() -> Replica:
    """One that asks for a token and has loaded nothing yet."""
    run = config.load(ROOT / "deploy/configs/demo.toml", environ={"TEMPSAMP_TOKEN": "secret"})
    return Replica(run, url="http://replica.example:8200")


async def statuses(replica: Replica) -> dict[str, int]:
    """Path → status, asked without a token."""
    transport = httpx.ASGITransport(create_app(replica))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        return {
            path: (await client.get(path)).status_code for path in ("/healthz", LOADED, SERVING)
        }


async def test_a_loading_replica_is_alive_and_not_ready(replica: Replica) -> None:
    assert await statuses(replica) == {"/healthz": 200, LOADED: 503, SERVING: 503}


async def test_a_loaded_replica_without_weights_is_started_and_does_not_serve(
    replica: Replica,
) -> None:
    load(replica, SimpleNamespace())
    assert await statuses(replica) == {"/healthz": 200, LOADED: 200, SERVING: 503}


async def test_a_verified_version_makes_it_serve_and_a_drain_ends_that(replica: Replica) -> None:
    load(replica, SimpleNamespace()).version = 3
    assert await statuses(replica) == {"/healthz": 200, LOADED: 200, SERVING: 200}
    replica.stop()
    assert await statuses(replica) == {"/healthz": 200, LOADED: 200, SERVING: 503}


async def test_the_refusal_names_what_was_found_and_wanted(replica: Replica) -> None:
    load(replica, SimpleNamespace())
    transport = httpx.ASGITransport(create_app(replica))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        answer = (await client.get(SERVING)).json()
        assert "'syncing'" in answer["detail"]
        assert (await client.get("/readyz?serving=perhaps")).status_code == 422
        assert (await client.get("/v1/weights")).status_code == 401
    assert {"/healthz", "/readyz"} <= PUBLIC_PATHS
