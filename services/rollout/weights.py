"""The replica's side of a weight transfer: join a generation, receive, verify, report.

The receiver declares success: `update` returns only when every worker holds a stream whose digest
equals the sender's and serves it. A transfer that breaks leaves the old version serving. The
learner's `publish` calls this through `app`; `worker` waits here for its first weights.
"""

import asyncio
import logging
import time

from common.errors import WeightError
from common.messages import JoinWeightGroup, UpdateWeights
from services.rollout.engine import Engine

logger = logging.getLogger(__name__)


class Weights:
    """Which generation this replica belongs to and which verified version it serves."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = asyncio.Condition()
        self._transfer = asyncio.Lock()
        self.generation: int | None = None
        self.version: int | None = None
        """None until the first verified transfer: no prompt is taken before that."""
        self.run_tag: str | None = None
        """Of the run that made the weights of `version`; None for the checkpoint on disk."""

    def serve_checkpoint(self) -> None:
        """The weights the engine loaded from disk are served as version 0."""
        self.version = 0

    async def join(self, request: JoinWeightGroup) -> None:
        """Leave the current group and join a new one.

        Raises:
            WeightError: the group was not complete before the deadline.
        """
        async with self._transfer:
            self.generation = None
            try:
                await self._engine.join_weight_group(
                    host=request.host,
                    port=request.port,
                    first_rank=request.first_rank,
                    world_size=request.world_size,
                    timeout_s=request.timeout_s,
                )
            except Exception as error:  # vLLM passes worker errors on as bare Exception
                raise WeightError(f"generation {request.generation}: {error}") from error
            self.generation = request.generation
            logger.info("joined weight group", extra={"generation": request.generation})

    async def update(self, request: UpdateWeights) -> None:
        """Receive one version and switch to it.

        Raises:
            WeightError: this replica is in another generation, the transfer broke, or the digest
                differs; the previous version keeps serving.
        """
        async with self._transfer:
            if request.generation != self.generation:
                raise WeightError(
                    f"found generation {self.generation}, wanted {request.generation}: join first"
                )
            started = time.monotonic()
            try:
                await self._engine.receive_weights(
                    request.slices, bucket_bytes=request.bucket_bytes
                )
                received = time.monotonic()
                await self._engine.apply_weights(request.version)
            except Exception as error:  # vLLM passes worker errors on as bare Exception
                self.generation = None
                raise WeightError(f"version {request.version}: {error}") from error
            async with self._changed:
                self.version, self.run_tag = request.version, request.run_tag
                self._changed.notify_all()
            logger.info(
                "serving new weights",
                extra={
                    "policy_version": request.version,
                    "receive_s": round(received - started, 4),
                    "apply_s": round(time.monotonic() - received, 4),
                },
            )

    async def served(self, *, within_s: float) -> bool:
        """Whether a verified version is served, waiting for the first one at most `within_s`."""
        try:
            await asyncio.wait_for(self.at_least(0), within_s)
        except TimeoutError:
            return False
        return True

    async def at_least(self, version: int) -> int:
        """Wait until a verified version >= `version` is served; returns the served version."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self.version is not None and self.version >= version
            )
            assert self.version is not None
            return self.version
