"""Typed clients of the reward service: `RewardClient` (sync) and `AsyncRewardClient`, over httpx.

    with RewardClient("http://127.0.0.1:8100") as reward:
        response = reward.score(ScoreRequest(items=(item,)))

One call is one request, without retries: who retries knows what is at stake. Refusals and broken
connections raise `RewardError`; `RewardError.__cause__` tells them apart.
"""

from types import TracebackType
from typing import Self, TypeVar

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from common.config import bearer
from common.errors import RewardError
from common.rest import direct
from common.rest.refusals import detail_of
from common.rest.reward_api import (
    InjectionRequest,
    InjectionResponse,
    ScoreRequest,
    ScoreResponse,
    ScorersResponse,
    ShapeRequest,
    ShapeResponse,
)

Reply = TypeVar("Reply", bound=BaseModel)
CONNECT_TIMEOUT_S = 5.0


def _headers(token: SecretStr | str | None) -> dict[str, str]:
    return {"Content-Type": "application/json", **bearer(token)}


def _timeout(timeout_s: float) -> httpx.Timeout:
    return httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))


def read_reply(model: type[Reply], response: httpx.Response) -> Reply:
    """A response as its model.

    Raises:
        RewardError: a refusal, with the service's detail, or a reply of another shape.
    """
    try:
        response.raise_for_status()
        return model.model_validate_json(response.content)
    except httpx.HTTPStatusError as error:
        detail = detail_of(response)
        raise RewardError(f"{response.url}: {response.status_code}: {detail}") from error
    except ValidationError as error:
        raise RewardError(f"{response.url}: not a {model.__name__}: {error}") from error


class RewardClient:
    """Synchronous client; use it as a context manager or `close()` it."""

    def __init__(
        self,
        base_url: str,
        token: SecretStr | str | None = None,
        timeout_s: float = 10.0,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = direct.client(
            base_url=base_url,
            transport=transport,
            headers=_headers(token),
            timeout=_timeout(timeout_s),
        )

    def score(self, request: ScoreRequest) -> ScoreResponse:
        """POST /v1/score."""
        return self._post("/v1/score", request, ScoreResponse)

    def injection(self, request: InjectionRequest) -> InjectionResponse:
        """POST /v1/injection."""
        return self._post("/v1/injection", request, InjectionResponse)

    def shape(self, request: ShapeRequest) -> ShapeResponse:
        """POST /v1/shape."""
        return self._post("/v1/shape", request, ShapeResponse)

    def scorers(self) -> ScorersResponse:
        """GET /v1/scorers."""
        try:
            return read_reply(ScorersResponse, self._http.get("/v1/scorers"))
        except httpx.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _post(self, path: str, request: BaseModel, reply: type[Reply]) -> Reply:
        try:
            response = self._http.post(path, content=request.model_dump_json())
        except httpx.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error
        return read_reply(reply, response)


class AsyncRewardClient:
    """Asynchronous client; use it as an async context manager or `await aclose()` it."""

    def __init__(
        self,
        base_url: str,
        token: SecretStr | str | None = None,
        timeout_s: float = 10.0,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = direct.async_client(
            base_url=base_url,
            transport=transport,
            headers=_headers(token),
            timeout=_timeout(timeout_s),
        )

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """POST /v1/score."""
        return await self._post("/v1/score", request, ScoreResponse)

    async def injection(self, request: InjectionRequest) -> InjectionResponse:
        """POST /v1/injection."""
        return await self._post("/v1/injection", request, InjectionResponse)

    async def shape(self, request: ShapeRequest) -> ShapeResponse:
        """POST /v1/shape."""
        return await self._post("/v1/shape", request, ShapeResponse)

    async def scorers(self) -> ScorersResponse:
        """GET /v1/scorers."""
        try:
            return read_reply(ScorersResponse, await self._http.get("/v1/scorers"))
        except httpx.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _post(self, path: str, request: BaseModel, reply: type[Reply]) -> Reply:
        try:
            response = await self._http.post(path, content=request.model_dump_json())
        except httpx.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error
        return read_reply(reply, response)


def _unreachable(base_url: httpx.URL, error: httpx.TransportError) -> RewardError:
    return RewardError(f"{base_url}: {type(error).__name__}: {error}: is the reward service up?")
