"""Each client of ours shows the token of its role, and that is the one the real service wants."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.config import Run, bearer
from common.messages import PromptRequest
from jobs.asking.replicas import connected
from jobs.evaluation.held_out import HeldOut, Validation
from services.learner import probe
from services.reward.app import create_app as create_reward
from services.rollout.app import create_app
from services.rollout.reward_client import GroupScorer
from tests.fixtures.replicas.stub_replica import stub_replica
from tests.fixtures.wire import prompt_request

ENVIRON = {
    "TEMPSAMP_TOKEN": "for-all",
    "TEMPSAMP_CONTROL_TOKEN": "for-control",
    "TEMPSAMP_GENERATE_TOKEN": "for-generate",
    "TEMPSAMP_SCORE_TOKEN": "for-score",
}
JOIN = {
    "epoch": 1,
    "generation": 1,
    "host": "127.0.0.1",
    "port": 1,
    "secret": "5e" * 32,
    "backend": "gloo",
    "versions": "gloo of torch 2.13.0",
    "first_rank": 1,
    "world_size": 2,
    "timeout_s": 1.0,
    "deadline_s": 1.0,
}


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("POST", "/v1/generate", "generate"),
        ("POST", "/v1/weights/join", "control"),
        ("POST", "/v1/weights/update", "control"),
        ("POST", "/v1/weights/leave", "control"),
        ("GET", "/v1/weights", "control"),
        ("POST", "/v1/drain", "control"),
    ],
)
async def test_a_replica_s_routes_want_their_role(method: str, path: str, role: str) -> None:
    replica, _ = stub_replica(environ=ENVIRON)
    replica._end = lambda: None
    transport = httpx.ASGITransport(create_app(replica))
    statuses = {}
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        for token in (*ENVIRON.values(), None):
            headers = bearer(token)
            answer = await client.request(method, path, json={}, headers=headers)
            statuses[token] = answer.status_code
    passed = {token for token, status in statuses.items() if status not in (401, 403)}
    assert passed == {f"for-{role}"}
    assert statuses[None] == 401
    assert statuses["for-all"] == 403


async def test_every_route_of_a_replica_has_a_role_or_only_reports() -> None:
    """A new route below /v1 is somebody's: this list is where that is decided."""
    from services.rollout.app import ROLES

    replica, _ = stub_replica(environ=ENVIRON)
    paths = {route.path for route in create_app(replica).routes}  # type: ignore[attr-defined]
    without = {path for path in paths if not path.startswith(tuple(ROLES))}
    reports = {"/healthz", "/readyz", "/metrics", "/v1/status", "/v1/identity"}
    pages = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}
    assert without == reports | pages


async def test_a_replica_shows_the_reward_service_the_score_token() -> None:
    replica, _ = stub_replica(environ=ENVIRON)
    app = create_reward(tokens=replica.shared.tokens)
    scorer = GroupScorer(
        replica.shared, rollout=replica.rollout, transport=httpx.ASGITransport(app)
    )
    request: PromptRequest = prompt_request(1)
    scoring = await scorer.score(request, texts=["<answer> 1.0 to 2.5 </answer>"])
    await scorer.close()
    assert [verdict.kind for verdict in scoring.verdicts] == ["scored"]


def test_the_learner_s_probe_shows_the_generate_token(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, _ = stub_replica(environ=ENVIRON)
    shown: dict[str, str] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        shown.update(request.headers)
        raise httpx.ConnectError("far enough")

    def client(**settings: Any) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(answer), **settings)

    monkeypatch.setattr(probe.direct, "client", client)
    probe.generate_probe(prompt_request(1), url="http://r", version=1, shared=replica.shared)
    assert shown["authorization"] == "Bearer for-generate"


def test_validation_shows_the_generate_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(HeldOut, "__init__", lambda self, *_, **named: given.update(named))
    replica, _ = stub_replica(environ=ENVIRON)
    learner = {
        "rows": tmp_path / "r",
        "run_dir": tmp_path,
        "steps": 1,
        "validation": {"rows": tmp_path / "v"},
    }
    Validation(Run.model_validate({"shared": replica.shared, "learner": learner}))

    async def header() -> str:
        async with connected(["http://r"], token=given["token"]) as (client,):
            return str(client.headers["Authorization"])

    assert asyncio.run(header()) == "Bearer for-generate"
