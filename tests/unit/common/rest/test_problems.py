"""Problem documents, body limits and strict JSON, on a small app of their own."""

from collections.abc import AsyncIterator
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel, Field

from common.rest.problems import MEDIA_TYPE, BodyLimit, Problem, install_problem_handlers, read_json

MAX_BYTES = 200


class Box(BaseModel):
    sizes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


async def body_of(request: Request) -> bytes:
    return await request.body()


def make_app() -> FastAPI:
    app = FastAPI()
    install_problem_handlers(app)
    app.add_middleware(BodyLimit, max_bytes=MAX_BYTES)

    @app.post("/boxes")
    def boxes(body: Annotated[bytes, Depends(body_of)]) -> int:
        return sum(read_json(Box, body).sizes)

    @app.post("/typed")
    def typed(box: Box) -> int:
        return sum(box.sizes)

    @app.get("/crash")
    def crash() -> None:
        raise ZeroDivisionError("private detail")

    @app.get("/busy")
    def busy() -> None:
        raise Problem(503, "not ready", headers={"Retry-After": "1"})

    return app


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=make_app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.parametrize(
    ("body", "status", "field", "pointer"),
    [
        (b'{"sizes": [1, -1]}', 422, "sizes.1", "#/sizes/1"),
        (b'{"sizes": ["1"]}', 422, "sizes.0", "#/sizes/0"),
        (b'{"sizes": []}', 422, "sizes", "#/sizes"),
        (b"{}", 422, "sizes", "#/sizes"),
        (b"[]", 422, "body", "#"),
        (b"{", 400, "body", "#"),
        (b"", 400, "body", "#"),
        (b'{"sizes": "\xff"}', 400, "body", "#"),
        (b"[" * 150, 400, "body", "#"),
    ],
)
async def test_a_bad_body_is_a_problem_that_names_the_field(
    client: httpx.AsyncClient, body: bytes, status: int, field: str, pointer: str
) -> None:
    response = await client.post("/boxes", content=body)
    document = response.json()
    assert response.status_code == document["status"] == status
    assert response.headers["content-type"] == MEDIA_TYPE
    assert document["type"] == "about:blank"
    assert document["errors"][0]["field"] == field
    assert document["errors"][0]["pointer"] == pointer
    assert document["detail"]


async def test_titles_are_those_of_every_python(client: httpx.AsyncClient) -> None:
    wrong = await client.post("/boxes", content=b"{}")
    assert wrong.json()["title"] == "Unprocessable Entity"
    large = await client.post("/boxes", content=b" " * (MAX_BYTES + 1))
    assert large.json()["title"] == "Request Entity Too Large"


async def test_only_the_first_errors_are_listed_and_the_rest_counted(
    client: httpx.AsyncClient,
) -> None:
    body = b'{"sizes": [' + b",".join([b"-1"] * 40) + b"]}"
    document = (await client.post("/boxes", content=body)).json()
    assert len(document["errors"]) == 16
    assert "and 24 more" in document["detail"]


async def test_a_list_of_wrong_members_is_not_also_too_short(client: httpx.AsyncClient) -> None:
    document = (await client.post("/boxes", content=b'{"sizes": [null]}')).json()
    assert [error["field"] for error in document["errors"]] == ["sizes.0"]


async def test_a_body_over_the_limit_is_413_declared_or_streamed(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * (MAX_BYTES // 4)

    assert (await client.post("/boxes", content=b" " * (MAX_BYTES + 1))).status_code == 413
    response = await client.post("/boxes", content=chunks())
    assert response.status_code == 413
    assert response.json()["errors"][0]["field"] == "body"


async def test_a_body_at_the_limit_passes(client: httpx.AsyncClient) -> None:
    body = b'{"sizes": [7]}'
    assert (await client.post("/boxes", content=body.ljust(MAX_BYTES))).json() == 7


async def test_fastapis_own_refusals_are_problems_too(client: httpx.AsyncClient) -> None:
    for response, status in (
        (await client.post("/typed", json={"sizes": [-1]}), 422),
        (await client.get("/nowhere"), 404),
        (await client.get("/boxes"), 405),
    ):
        assert response.status_code == response.json()["status"] == status
        assert response.headers["content-type"] == MEDIA_TYPE
    typed = await client.post("/typed", json={"sizes": [-1]})
    assert typed.json()["errors"][0]["field"] == "sizes.0"
    assert (await client.get("/boxes")).headers["allow"] == "POST"


async def test_a_crash_is_a_500_without_its_details(client: httpx.AsyncClient) -> None:
    response = await client.get("/crash")
    assert response.status_code == 500
    assert "private" not in response.text


async def test_headers_of_a_problem_are_sent(client: httpx.AsyncClient) -> None:
    assert (await client.get("/busy")).headers["retry-after"] == "1"


async def test_who_hangs_up_in_the_middle_leaves_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    received = iter(
        [
            {"type": "http.request", "body": b"{", "more_body": True},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> dict[str, object]:
        return next(received)

    async def send(_message: object) -> None:
        """Nobody is there."""

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/boxes",
        "raw_path": b"/boxes",
        "query_string": b"",
        "headers": [],
        "http_version": "1.1",
        "root_path": "",
    }
    await make_app()(scope, receive, send)
    assert [(line.levelname, line.message) for line in caplog.records] == [
        ("INFO", "caller hung up")
    ]
