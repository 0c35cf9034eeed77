"""The replica's loop: a claimed prompt in, a scored group out.

    prompts stream -> claim -> frames -> policy samples -> verdicts + GT answer -> groups stream

Pull, not push: a replica takes a prompt when it has room and is well (`wellness`), keeps its lease
while it works (`claims`) and acknowledges the prompt together with the group. A failed prompt goes
to other replicas, and after `max_attempts` of them to the dead letters.
"""

import asyncio
import contextlib
import logging
import time

from common.config import Rollout, Shared
from common.errors import QueueError
from common.logs import NowAndThen
from common.messages import PromptRequest, Sample, ScoredGroup, Timings, Verdict
from common.queue.broker import Broker, ClaimedPrompt, Limits
from common.video.loader import ClipLoader
from services.rollout.claiming.claims import Claims, InWork
from services.rollout.claiming.wellness import DOUBTFUL_ROW, Doubts, ReplicaSickError, Wellness
from services.rollout.engine import Engine, Generation
from services.rollout.metrics import Counters
from services.rollout.receiving.version import Weights
from services.rollout.reward_client import GroupScorer, Scoring

logger = logging.getLogger(__name__)

CLAIM_BLOCK_S = 1.0
"""How long one claim waits for a prompt; also how fast a stop is noticed."""
HAND_BACK_S = 1.0
LONGEST_TEND_PAUSE_S = 2.0
TROUBLE_TTL_S = 15.0
SAY_IDLE_AFTER_S, SAY_IDLE_EVERY_S = 5.0, 30.0
"""A replica that has nothing to do says why; prompts may be away for as long as a learner steps."""


class _OtherRunError(Exception):
    """The weights that are served are not of the prompt's run."""


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
        self._limits = Limits(max_attempts=rollout.max_attempts, max_deaths=rollout.max_deaths)
        self._claims = Claims(broker, lease_s=rollout.lease_s, deadline_s=rollout.prompt_deadline_s)
        self._wellness = Wellness(
            check_engine=engine.check_health, check_reward=reward.check, video=shared.video
        )
        self._doubts = Doubts()
        self._waits_for: str | None = None
        self._word = NowAndThen()
        self.counters = Counters()

    @property
    def trouble(self) -> str | None:
        """Why it answers nothing; None: it is well."""
        return self._wellness.trouble or self._reward.trouble

    async def run(self) -> None:
        """Work on `concurrent_prompts` prompts at once; returns after `stop()` and a drain.

        Raises:
            ReplicaSickError: the engine is dead, or `max_failures_in_a_row` prompts failed one
                after the other.
        """
        async with asyncio.TaskGroup() as tasks:
            tending = tasks.create_task(self._tend())
            try:
                async with asyncio.TaskGroup() as loops:
                    wanted = range(self._rollout.concurrent_prompts)
                    claiming = [loops.create_task(self._loop()) for _ in wanted]
                    try:
                        await asyncio.wait(claiming)
                    finally:
                        # Before the group cancels them and waits for all: redis-py may swallow one
                        # cancellation, and that loop would claim on for ever.
                        self._stopping.set()
            finally:
                tending.cancel()

    def stop(self) -> None:
        """Claim nothing more; prompts in work are finished."""
        self._stopping.set()

    async def _loop(self) -> None:
        while not self._stopping.is_set():
            if not await self._wellness.is_well(within_s=CLAIM_BLOCK_S):
                continue
            if not await self._weights.served(within_s=CLAIM_BLOCK_S):
                continue
            claim = await self._broker.claim_prompt(
                self._replica, lease_s=self._rollout.lease_s, block_s=CLAIM_BLOCK_S
            )
            if claim is not None:
                async with self._claims.held(claim) as work:
                    if work is not None:
                        await self._work_on(work)

    async def _tend(self) -> None:
        """What has to be done now and then, prompts or not."""
        period_s = min(self._rollout.lease_s / 4, LONGEST_TEND_PAUSE_S)
        while not self._stopping.is_set():
            await self._broker.sweep(
                self._replica,
                lease_s=self._rollout.lease_s,
                period_s=period_s,
                limits=self._limits,
            )
            if trouble := self.trouble:
                await self._broker.report_trouble(self._replica, trouble, ttl_s=TROUBLE_TTL_S)
            self._say_what_is_waited_for()
            await asyncio.sleep(period_s)

    def _say_what_is_waited_for(self) -> None:
        """Of a replica that does nothing: a word within seconds, then now and then."""
        if self._claims.num_held:
            waits_for = None
        elif trouble := self._wellness.trouble:
            waits_for = f"the end of its trouble: {trouble}"
        elif self._weights.version is None:
            waits_for = "the learner's first weights"
        else:
            waits_for = "prompts"
        if waits_for != self._waits_for:
            self._waits_for = waits_for
            self._word = NowAndThen(SAY_IDLE_EVERY_S, first_s=SAY_IDLE_AFTER_S)
        elif waits_for is not None and self._word.is_due():
            logger.info("waiting for %s", waits_for)

    async def _work_on(self, work: InWork) -> None:
        try:
            group = await self.answer(work.claim.request, work=work)
            await self._broker.push_group(work.claim, group)
        except QueueError:
            raise
        except _OtherRunError:
            await self._broker.release(work.claim)
        except Exception as error:  # noqa: BLE001 - one prompt never ends the replica (STYLE 5)
            await self._give_back(work.claim, error)
        except asyncio.CancelledError:
            await self._hand_back(work.claim)
            raise
        else:
            self.counters.pushed(group)
            await self._settle_doubts()

    async def _hand_back(self, claim: ClaimedPrompt) -> None:
        """Now, or when its lease ends: time is up, and Redis may be away."""
        with contextlib.suppress(TimeoutError, QueueError):
            async with asyncio.timeout(HAND_BACK_S):
                await self._broker.release(claim)

    async def answer(self, request: PromptRequest, *, work: InWork) -> ScoredGroup:
        """The page: one prompt becomes one scored group."""
        if not self._weights.are_of(request.run_tag):
            # Redis has prompts of one run at a time, so that of these weights is over.
            self._weights.disown()
            raise _OtherRunError
        started = time.monotonic()
        async with work.timed("decoding"):
            frames = await asyncio.to_thread(self._loader.load, request.clip)
        decoded = time.monotonic()
        await self._wait_for_fresh_weights(request)
        async with work.timed("generating"):
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
            sequence=request.sequence,
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
            strategy=None if request.grading is None else request.grading.strategy,
        )

    async def _wait_for_fresh_weights(self, request: PromptRequest) -> None:
        """Spare samples that would be stale, within bounds: after a learner resumed at an older
        version the newer one may never come, and intake judges staleness anyway."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._rollout.weight_timeout_s):
                await self._weights.at_least(request.min_version)
        if not self._weights.are_of(request.run_tag):  # meanwhile a new run began
            raise _OtherRunError

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

    async def _give_back(self, claim: ClaimedPrompt, error: Exception) -> None:
        """A prompt that failed, or that this replica failed."""
        fault = self._wellness.fault_of(error)
        # Whatever was in work when the fault came fails with it, and is one failure.
        self.counters.failed(error, in_a_row=fault is None or self._wellness.trouble is None)
        text = f"{type(error).__name__}: {error}"
        logger.warning(
            "prompt failed" if fault is None else "prompt given back",
            extra={"prompt_id": claim.request.prompt_id, "error": text},
        )
        if fault is None:
            await self._fail(claim, error)
        else:
            self._wellness.leave(fault.trouble, fault.check)
            if fault.is_crash:
                await self._broker.release_after_crash(claim, str(error), limits=self._limits)
            else:
                await self._broker.release(claim)
            await self._broker.report_trouble(self._replica, fault.trouble, ttl_s=TROUBLE_TTL_S)
        if self.counters.failures_in_a_row >= self._rollout.max_failures_in_a_row:
            raise ReplicaSickError(
                f"{self.counters.failures_in_a_row} prompts failed one after the other "
                f"(rollout.max_failures_in_a_row); the last one: {error}"
            )

    async def _fail(self, claim: ClaimedPrompt, error: Exception) -> None:
        """Count it against the prompt, if this replica is known to be well."""
        in_a_row = self.counters.failures_in_a_row
        is_doubtful = in_a_row >= DOUBTFUL_ROW or self.counters.completed_groups == 0
        if is_doubtful:
            self._doubts.add(claim.entry_id)
            self._wellness.leave(f"{in_a_row} prompt(s) failed one after the other: {error}")
        await self._broker.fail_prompt(claim, str(error), limits=self._limits, doubted=is_doubtful)

    async def _settle_doubts(self) -> None:
        """After an answer this replica is known to be well."""
        self._wellness.answered()
        confirmed, forgiven = self._doubts.settle()
        await self._broker.confirm_failures(self._replica, confirmed)
        await self._broker.forgive_failures(self._replica, forgiven)
