"""What the learner asks of a replica over HTTP during a publish.

    peers.vouch(replica)    it proves to know the token, before it is told anything
    peers.join / update / leave

Whatever goes wrong with one replica comes out as a `PeerError` that says whether it is that
replica's own fault: only then it gets a strike.
"""

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from common.config import bearer
from common.messages import ReplicaIdentity, ReplicaStatus
from common.rest import direct
from common.rest.identity import challenge, verify
from common.rest.refusals import detail_of
from common.weights.messages import JoinWeightGroup, LeaveWeightGroup, UpdateWeights
from services.learner.publishing.membership import PeerError

CONNECT_TIMEOUT_S = 2.0
PROBE_TIMEOUT_S = 1.5
"""A replica that does not answer a small question this fast is taken for frozen."""
MAX_ERROR_CHARS = 500


class Peers:
    """Replicas, as the learner reaches them; lives in one event loop."""

    def __init__(self, token: SecretStr | None) -> None:
        self._token = token
        # Never through a proxy: these are our own services.
        self._http = direct.async_client()

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()

    async def vouch(self, replica: ReplicaStatus) -> None:
        """Have a replica prove that it knows the token.

        Raises:
            PeerError: it does not, or nothing answers there.
        """
        asked = challenge("control")
        body = await self._call(
            "GET", f"{replica.url}/v1/identity", timeout_s=PROBE_TIMEOUT_S, params=asked
        )
        try:
            identity = ReplicaIdentity.model_validate_json(body)
            verify(identity, url=replica.url, nonce=asked["nonce"], token=self._token)
        except ValueError as error:
            raise PeerError(str(error), is_own_fault=True) from error

    async def join(self, replica: ReplicaStatus, request: JoinWeightGroup) -> ReplicaStatus:
        """Answers when the group is complete.

        Raises:
            PeerError: it is not.
        """
        return await self._control(replica, "join", request, timeout_s=None)

    async def update(self, replica: ReplicaStatus, request: UpdateWeights) -> ReplicaStatus:
        """Answers when the version is served; the caller decides how long that may take.

        Raises:
            PeerError: it is not.
        """
        return await self._control(replica, "update", request, timeout_s=None)

    async def leave(self, replica: ReplicaStatus, request: LeaveWeightGroup) -> ReplicaStatus:
        """Answers at once, with what the replica holds after giving up.

        Raises:
            PeerError: it does not.
        """
        return await self._control(replica, "leave", request, timeout_s=PROBE_TIMEOUT_S)

    async def _control(
        self, replica: ReplicaStatus, action: str, body: BaseModel, *, timeout_s: float | None
    ) -> ReplicaStatus:
        answer = await self._call(
            "POST",
            f"{replica.url}/v1/weights/{action}",
            timeout_s=timeout_s,
            content=body.model_dump_json(),
            headers={"Content-Type": "application/json", **bearer(self._token)},
        )
        try:
            return ReplicaStatus.model_validate_json(answer)
        except ValidationError as error:
            raise PeerError(
                f"{replica.url}: {action} gave no status: {answer[:100]!r}", is_own_fault=True
            ) from error

    async def _call(
        self, method: str, url: str, *, timeout_s: float | None, **more: object
    ) -> bytes:
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        try:
            response = await self._http.request(method, url, timeout=timeout, **more)  # type: ignore[arg-type]
        except Exception as error:  # whatever an address from the registry brings up
            raise PeerError(f"{url}: {error!r}", is_own_fault=True) from error
        if not response.is_success:
            detail = detail_of(response, most_chars=MAX_ERROR_CHARS)[:MAX_ERROR_CHARS]
            raise PeerError(
                f"{url} gave {response.status_code}: {detail}",
                is_own_fault=response.status_code != httpx.codes.CONFLICT,
            )
        return response.content
