"""Bearer tokens and the loopback rule."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from common.errors import ConfigError
from common.rest import auth
from common.rest.auth import BearerAuth, is_loopback, refuse_open_port
from common.secrets import Tokens


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.add_middleware(BearerAuth, tokens=Tokens(general=SecretStr("sésame")))

    @app.get("/healthz")
    async def healthz() -> str:
        return "ok"

    @app.get("/secret")
    async def secret() -> str:
        return "treasure"

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_the_right_token_passes_whatever_the_case_of_the_scheme(
    client: httpx.AsyncClient,
) -> None:
    for scheme in ("Bearer", "bearer"):
        header = {"Authorization": f"{scheme} sésame".encode()}
        assert (await client.get("/secret", headers=header)).status_code == 200


@pytest.mark.parametrize(
    "value", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic c2VzYW1l", "Bearer sésam"]
)
async def test_anything_else_is_refused_with_a_problem(
    client: httpx.AsyncClient, value: str | None
) -> None:
    headers = {} if value is None else {"Authorization": value.encode()}
    response = await client.get("/secret", headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.json()["errors"][0]["field"] == "header.authorization"
    assert "treasure" not in response.text


async def test_two_authorization_headers_are_refused(client: httpx.AsyncClient) -> None:
    headers = [("Authorization", "Bearer wrong"), ("Authorization", "Bearer sésame".encode())]
    assert (await client.get("/secret", headers=headers)).status_code == 401


async def test_health_needs_no_token(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/nowhere")).status_code == 401


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.1.2.3", False),
        ("reward", False),
        ("", False),
    ],
)
def test_loopback_hosts(host: str, wanted: bool) -> None:
    assert is_loopback(host) is wanted


def test_off_loopback_without_a_token_is_refused_with_the_knobs() -> None:
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0.*TEMPSAMP_TOKEN.*reward\.allow_remote"):
        refuse_open_port("0.0.0.0", tokens=Tokens(), allow_remote=False, section="reward")


def test_off_loopback_is_allowed_with_a_token_or_when_told_so() -> None:
    refuse_open_port(
        "0.0.0.0", tokens=Tokens(generate=SecretStr("x")), allow_remote=False, section="reward"
    )
    refuse_open_port("0.0.0.0", tokens=Tokens(), allow_remote=True, section="reward")
    refuse_open_port("127.0.0.1", tokens=Tokens(), allow_remote=False, section="reward")


ROLES = {"/v1/generate": "generate", "/v1/weights": "control"}


def guarded(**tokens: str) -> httpx.AsyncClient:
    """An app with two roles' paths and one that anybody known may read."""
    app = FastAPI()
    known = Tokens(**{role: SecretStr(token) for role, token in tokens.items()})
    app.add_middleware(BearerAuth, tokens=known, roles=ROLES)
    for path in ("/v1/generate", "/v1/weights/join", "/metrics"):
        app.add_api_route(path, lambda: "ok")
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


@pytest.mark.parametrize(
    ("tokens", "shown", "generate", "join", "metrics"),
    [
        ({"general": "a"}, "a", 200, 200, 200),
        ({"general": "a", "control": "c"}, "a", 200, 403, 200),
        ({"general": "a", "control": "c"}, "c", 403, 200, 200),
        ({"generate": "g", "control": "c"}, "g", 200, 403, 200),
        ({"generate": "g", "control": "c", "score": "s"}, "s", 403, 403, 200),
        ({"generate": "g"}, "g", 200, 403, 200),
        ({"general": "a", "control": "c"}, "x", 401, 401, 401),
    ],
)
async def test_a_token_opens_what_its_role_may_do_and_no_more(
    tokens: dict[str, str], shown: str, generate: int, join: int, metrics: int
) -> None:
    async with guarded(**tokens) as client:
        header = {"Authorization": f"Bearer {shown}"}
        found = [
            (await client.get(path, headers=header)).status_code
            for path in ("/v1/generate", "/v1/weights/join", "/metrics")
        ]
    assert found == [generate, join, metrics]


async def test_the_wrong_role_is_told_which_is_wanted_and_no_secret() -> None:
    async with guarded(generate="g-secret", control="c-secret") as client:
        header = {"Authorization": "Bearer g-secret"}
        refused = await client.get("/v1/weights/join", headers=header)
    assert "'control' (TEMPSAMP_CONTROL_TOKEN" in refused.json()["detail"]
    assert "secret" not in refused.text


def test_every_comparison_is_made_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    real = auth.hmac.compare_digest
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    secrets = [b"Bearer a", b"Bearer b", b"Bearer c"]
    assert auth._is_one_of(b"Bearer a", secrets)
    assert compared == secrets, "the first hit does not end it"
