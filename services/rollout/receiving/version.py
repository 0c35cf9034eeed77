"""The replica's side of a weight transfer, in three stages that fail apart.

    receive   the workers take the stream into staging, beside generation
    verify    each compares the digest of what it holds with the learner's
    apply     generation pauses, and every worker loads what it holds

A transfer that breaks in the first two leaves the old version serving. One that breaks in the third
may leave half a model: then nothing is served any more (`broken`) and the process ends. The
learner's `publishing` calls this through `app`; `worker` waits here for its first weights.
"""

import asyncio
import logging
import time

from common.errors import GroupError, WeightError
from common.messages import HeldWeights
from common.weights.messages import JoinWeightGroup, LeaveWeightGroup, UpdateWeights
from services.rollout.engine import Engine

logger = logging.getLogger(__name__)


class Weights:
    """Which generation this replica belongs to and which verified version it serves."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = asyncio.Condition()
        self._transfer = asyncio.Lock()
        self._epoch = 0
        self.generation: int | None = None
        self.version: int | None = None
        """None until the first verified transfer of the run: no prompt is taken before that."""
        self.run_tag: str | None = None
        """Of the run that made the weights of `version`; None for the checkpoint on disk."""
        self.held = HeldWeights()
        self.pause_ms: float | None = None
        self._broke = asyncio.Event()
        self._failure: WeightError | None = None

    def serve_checkpoint(self) -> None:
        """The weights the engine loaded from disk are served as version 0."""
        self.version = 0

    @property
    def is_broken(self) -> bool:
        """Whether new weights were half applied: nothing is served any more."""
        return self._broke.is_set()

    async def fail_when_broken(self) -> None:
        """Runs until then.

        Raises:
            WeightError: says what happened.
        """
        await self._broke.wait()
        assert self._failure is not None
        raise self._failure

    async def join(self, request: JoinWeightGroup) -> None:
        """Leave the current group and join a new one; a transfer under way is given up.

        Raises:
            GroupError: an older learner asks, or the group was not complete in time.
            WeightError: this replica cannot be in it.
        """
        self._refuse_older(request.epoch)
        if not request.rehearsal:
            await self._give_up()
        async with self._transfer:
            await self._engine.transfer("join", request)
            if not request.rehearsal:
                self.generation = request.generation
        logger.info(
            "rehearsed a weight group" if request.rehearsal else "joined weight group",
            extra={"generation": request.generation},
        )

    async def leave(self, request: LeaveWeightGroup) -> None:
        """Leave the group at once, whatever is under way.

        Raises:
            GroupError: an older learner asks.
        """
        self._refuse_older(request.epoch)
        await self._give_up()

    async def update(self, request: UpdateWeights) -> None:
        """Receive one version and switch to it.

        Raises:
            GroupError: this replica is in another generation, or the transfer broke; the previous
                version keeps serving.
            WeightError: it holds no such base, has no room, or a digest differs (the previous
                version keeps serving); or the version was half applied, and nothing is served.
        """
        self._refuse_older(request.epoch)
        async with self._transfer:
            started = time.monotonic()
            self.held = HeldWeights()
            try:
                self.held = await self._engine.transfer("receive", request)
            except WeightError:
                self.generation = None
                raise
            received = time.monotonic()
            await self._apply(request)
            logger.info(
                "serving new weights",
                extra={
                    "policy_version": request.version,
                    "receive_s": round(received - started, 4),
                    "pause_ms": self.pause_ms,
                },
            )

    async def _apply(self, request: UpdateWeights) -> None:
        try:
            pause_s = await self._engine.apply_weights(request.version)
        except Exception as error:  # vLLM passes worker errors on as bare Exception
            self.version, self.generation = None, None
            broken = WeightError(
                f"version {request.version} was half applied, nothing is served any more: {error}"
            )
            self._failure = broken
            self._broke.set()
            raise broken from error
        async with self._changed:
            self.version, self.run_tag = request.version, request.run_tag
            self.pause_ms = round(1000 * pause_s, 2)
            self._changed.notify_all()

    def are_of(self, run_tag: str) -> bool:
        """Whether a version of that run is served."""
        return self.version is not None and self.run_tag == run_tag

    def disown(self) -> None:
        """Serve nothing until the next transfer: there is a new run, and these are of another."""
        if self.version is None:
            return
        logger.warning(
            "weights of an earlier run are not served any more",
            extra={"policy_version": self.version, "run_tag": self.run_tag},
        )
        self.version = None

    async def _give_up(self) -> None:
        self.generation = None
        self.held = await self._engine.transfer("leave")

    def _refuse_older(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise GroupError(
                f"found epoch {epoch} of a learner that lost the run, wanted {self._epoch} or later"
            )
        self._epoch = epoch

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
