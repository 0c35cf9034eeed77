"""The replica's loop: a claimed prompt in, a scored group out.

    prompts stream -> claim -> frames -> policy samples -> verdicts + GT answer -> groups stream

Pull, not push: a replica takes a prompt when it has room, renews its lease while it works and
acknowledges the prompt together with the group. A failed prompt goes back for another try, and
after `max_attempts` to the dead letters; it never ends the replica unless many fail in a row.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from common.config import Rollout, Shared
from common.errors import TempSampError
from common.messages import PromptRequest, Sample, ScoredGroup, Timings, Verdict
from common.queue.broker import Broker, ClaimedPrompt
from common.video.loader import ClipLoader
from services.rollout.engine import Engine, Generation
from services.rollout.metrics import Counters
from services.rollout.reward_client import GroupScorer, Scoring
from services.rollout.weights import Weights

logger = logging.getLogger(__name__)

CLAIM_BLOCK_S = 1.0
"""How long one claim waits for a prompt; also how fast a stop is noticed."""


class TooManyFailuresError(TempSampError):
    """So many prompts in a row failed that the replica itself must be broken."""


class Worker:
    """Answers prompts until `stop()`."""

    def __init__(
        self,
        *,
        broker: Broker,
        engine: Engine,
        reward: GroupScorer,
        weights: Weights,
        shared: Shared,
        rollout: Rollout,
        loader: ClipLoader,
        replica: str,
    ) -> None:
        self._broker = broker
        self._engine = engine
        self._reward = reward
        self._weights = weights
        self._shared = shared
        self._rollout = rollout
        self._loader = loader
        self._replica = replica
        self._stopping = asyncio.Event()
        self.counters = Counters()

    async def run(self) -> None:
        """Work on `concurrent_prompts` prompts at once; returns after `stop()` and a drain.

        Raises:
            TooManyFailuresError: `max_failures_in_a_row` prompts failed one after the other.
        """
        async with asyncio.TaskGroup() as loops:
            for _ in range(self._rollout.concurrent_prompts):
                loops.create_task(self._loop())

    def stop(self) -> None:
        """Claim nothing more; prompts in work are finished."""
        self._stopping.set()

    async def _loop(self) -> None:
        while not self._stopping.is_set():
            if not await self._weights.served(within_s=CLAIM_BLOCK_S):
                continue
            claim = await self._broker.claim_prompt(
                self._replica,
                lease_s=self._rollout.lease_s,
                block_s=CLAIM_BLOCK_S,
                max_attempts=self._rollout.max_attempts,
            )
            if claim is not None:
                async with self._lease(claim):
                    await self._work_on(claim)

    async def _work_on(self, claim: ClaimedPrompt) -> None:
        try:
            group = await self.answer(claim.request)
            await self._broker.push_group(claim, group)
        except Exception as error:  # noqa: BLE001 - one prompt never ends the replica (STYLE 5)
            await self._fail(claim, error)
        except asyncio.CancelledError:
            await self._broker.release(claim)
            raise
        else:
            self.counters.pushed(group)

    async def answer(self, request: PromptRequest) -> ScoredGroup:
        """The page: one prompt becomes one scored group."""
        started = time.monotonic()
        frames = await asyncio.to_thread(self._loader.load, request.clip)
        decoded = time.monotonic()
        await self._wait_for_fresh_weights(request)
        generation = await self._engine.generate(
            request.messages,
            clip=request.clip,
            frames=frames,
            num_samples=request.num_samples,
            sampling=request.sampling,
        )
        generated = time.monotonic()
        self.counters.generated_tokens += sum(len(s.token_ids) for s in generation.samples)
        scoring = await self._reward.score(request, texts=generation.texts)
        samples, verdicts = self._with_injection(generation, scoring)
        return ScoredGroup(
            prompt_id=request.prompt_id,
            row_id=request.row_id,
            epoch=request.epoch,
            mode=request.mode,
            clip=request.clip,
            prompt_token_ids=generation.prompt_token_ids,
            num_visual_tokens=generation.num_visual_tokens,
            grid_thw=generation.grid_thw,
            samples=samples,
            verdicts=verdicts,
            replica=self._replica,
            timings=Timings(
                decode_s=decoded - started,
                generate_s=generated - decoded,
                score_s=time.monotonic() - generated,
            ),
        )

    async def _wait_for_fresh_weights(self, request: PromptRequest) -> None:
        """Spare samples that would be stale, within bounds: after a learner resumed at an older
        version the newer one may never come, and intake judges staleness anyway."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._rollout.weight_timeout_s):
                await self._weights.at_least(request.min_version)

    def _with_injection(
        self, generation: Generation, scoring: Scoring
    ) -> tuple[tuple[Sample, ...], tuple[Verdict, ...]]:
        """The GT answer, when there is one, joins as the last sample of the group."""
        if scoring.injected is None:
            return generation.samples, scoring.verdicts
        text, verdict = scoring.injected
        sample = Sample(
            token_ids=self._engine.encode_answer(text),
            logprobs=(),
            version_spans=(),
            finish_reason="stop",
            provenance="injected",
        )
        return (*generation.samples, sample), (*scoring.verdicts, verdict)

    @contextlib.asynccontextmanager
    async def _lease(self, claim: ClaimedPrompt) -> AsyncIterator[None]:
        """Keep the claim ours while we work on it."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(self._rollout.lease_s / 3)
                await self._broker.renew(claim)

        renewal = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewal.cancel()
            with contextlib.suppress(asyncio.CancelledError, TempSampError):
                await renewal

    async def _fail(self, claim: ClaimedPrompt, error: Exception) -> None:
        self.counters.failed(error)
        logger.warning(
            "prompt failed",
            extra={
                "prompt_id": claim.request.prompt_id,
                "error": f"{type(error).__name__}: {error}",
            },
        )
        await self._broker.fail_prompt(
            claim, error=str(error), max_attempts=self._rollout.max_attempts
        )
        if self.counters.failures_in_a_row >= self._rollout.max_failures_in_a_row:
            raise TooManyFailuresError(
                f"{self.counters.failures_in_a_row} prompts failed one after the other "
                f"(rollout.max_failures_in_a_row); the last one: {error}"
            )
