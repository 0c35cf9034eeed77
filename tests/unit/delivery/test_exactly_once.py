"""Exactly once, whatever happens: a state machine over the real feed, intake, broker and a Redis.

Two replicas claim, push, push twice, fail, die, hand over and come back late; leases end; the
learner crashes between any two steps, while a checkpoint is written, before and after it
acknowledged; another one takes the run over while the first is frozen, and that one wakes up and
writes and reads on; Redis is emptied and rolled back to an older dump. After each operation nothing
has been trained twice, nor trained and given up; after a quiet end every row of every finished
epoch was trained or is listed as given up, or as rejected after replicas gave it up.
"""

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from common.config import Learner, Shared, Video
from common.errors import RunLostError
from common.messages import ScoredGroup
from common.queue.broker import Broker, ClaimedPrompt, Limits
from services.learner import intake as intake_module
from services.learner.feed import Feed, FeedState
from services.learner.intake import Intake, IntakeState
from tests.fixtures.clips import make_clip
from tests.fixtures.rows import event_row, write_rows
from tests.fixtures.servers.redis_server import RedisServer
from tests.fixtures.wire import scored_group

T = TypeVar("T")

NUM_ROWS, GROUPS_PER_STEP = 12, 2
NUM_EXAMPLES, STEPS_PER_EXAMPLE = 62, 200
"""Examples end early now and then: nine tenths of the steps were made in the worst run seen."""
"""10,400 operations a run."""
LEASES_LAST_S = 3600.0
WEIGHTS = {
    "claim": 30,
    "push": 24,
    "take_a_step": 16,
    "fail": 2,
    "doubt": 3,
    "release": 2,
    "lose_engine": 2,
    "hand_over": 3,
    "die": 3,
    "push_late": 3,
    "leases_end": 3,
    "begin_checkpoint": 5,
    "finish_checkpoint": 5,
    "crash": 2,
    "take_over": 2,
    "wake_up": 4,
    "empty_redis": 1,
    "dump_redis": 2,
    "roll_redis_back": 2,
}
OPERATIONS = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
REPLICAS = ("left-1", "right-1")
LIMITS = Limits(max_attempts=2, max_deaths=4)
SPARED = {"1", "2"}
"""Rows that no replica fails at: a run with none left ends."""
LONG_S, QUIET_END_S = 60.0, 30.0
num_operations: Counter[str] = Counter()


@dataclass(frozen=True)
class World:
    """What all examples share."""

    server: RedisServer
    folder: Path
    runner: asyncio.Runner


@dataclass
class Checkpoint:
    """What a learner resumes from, and what it had trained by then."""

    feed: str
    intake: str
    version: int
    trained: list[str]
    contained: tuple[str, ...]
    """What may be acknowledged once it is whole."""


@dataclass(frozen=True)
class Frozen:
    """A learner that another one took over from, and that does not know."""

    broker: Broker
    feed: Feed
    intake: Intake
    version: int


class Delivery(RuleBasedStateMachine):
    """One run with its learner, those before it, and two replicas."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.run_id = f"delivery-{secrets.token_hex(4)}"
        self.replica = self.world.server.broker(self.run_id)
        self.opened = [self.replica]
        self.version = 0
        self.trained: list[str] = []
        self.held: list[ClaimedPrompt] = []
        self.late: list[ClaimedPrompt] = []
        """Claims of replicas that are taken for dead and are not."""
        self.dump: dict[str, bytes] = {}
        self.frozen: list[Frozen] = []
        self.num_learners, self.epoch = 0, 0
        self.start(None)
        self.feed.top_up(0)
        self.saved = self.checkpoint()
        self.written: Checkpoint | None = None
        """The checkpoint under way: lost when its learner is."""

    @rule(operation=st.sampled_from(OPERATIONS), number=st.integers(0, 255))
    def operate(self, operation: str, number: int) -> None:
        """Whatever may happen, as often as `WEIGHTS` says."""
        num_operations[operation] += 1
        getattr(self, operation)(number)

    # --- the learner --------------------------------------------------------------------------

    def start(self, saved: Checkpoint | None) -> None:
        folder, runner = self.world.folder, self.world.runner
        broker = self.world.server.broker(self.run_id)
        self.opened.append(broker)
        self.learner = broker
        self.take_run(broker)
        video = Video(
            roots=(folder,), fps=1.0, max_frames=4, min_pixels=32 * 32, max_pixels=64 * 64
        )
        shared = Shared(run_id=self.run_id, model="m", group_size=3, video=video)
        learner = Learner(
            rows=folder / "rows.jsonl",
            run_dir=folder / "run",
            steps=1,
            groups_per_step=GROUPS_PER_STEP,
            max_staleness=1,
            max_returns=2,
            max_unusable_in_a_row=10**9,
            max_without_verdict_s=1e9,
        )
        state = FeedState.model_validate_json(saved.feed) if saved else None
        self.feed = Feed(broker, shared=shared, learner=learner, runner=runner, state=state)
        self.intake = Intake(
            broker,
            feed=self.feed,
            runner=runner,
            settings=learner,
            state=IntakeState.model_validate_json(saved.intake) if saved else None,
        )

    def take_run(self, broker: Broker) -> None:
        """As a lease does in the folder of a learner that has ended, or is taken for that."""
        names = [f"learner-{self.num_learners + n}" for n in (0, 1)]
        self.num_learners += 1
        hold = self.run(
            broker.fence.take(names[1], ttl_s=LEASES_LAST_S, dead=names[0], at_least=self.epoch + 1)
        )
        assert hold.epoch > self.epoch
        self.epoch = hold.epoch

    def checkpoint(self) -> Checkpoint:
        feed, intake = self.feed.state(), self.intake.state()
        return Checkpoint(
            feed.model_dump_json(),
            intake.model_dump_json(),
            self.version,
            list(self.trained),
            self.intake.done,
        )

    def take(self, looks: int, unusable: int = 0) -> None:
        left = [looks]

        def should_stop() -> bool:
            left[0] -= 1
            return left[0] < 0

        def faults_of(groups: Sequence[ScoredGroup]) -> dict[str, str]:
            bad, left_bad[0] = [group.prompt_id for group in groups][: left_bad[0]], 0
            return dict.fromkeys(bad, "one visual token too many")

        left_bad = [unusable]
        groups = self.intake.take(
            GROUPS_PER_STEP, at=self.version, should_stop=should_stop, faults_of=faults_of
        )
        if groups:
            self.trained += [group.prompt_id for group in groups]
            self.version += 1
            self.feed.top_up(self.version)

    def take_a_step(self, number: int) -> None:
        self.take(looks=1 + number % 5, unusable=(0, 0, 0, 0, 1, 2)[number % 6])

    def begin_checkpoint(self, number: int) -> None:
        self.finish_checkpoint(number)
        self.written = self.checkpoint()

    def finish_checkpoint(self, number: int) -> None:
        """Steps may have been made since it was begun."""
        if self.written is None:
            return
        self.saved, self.written = self.written, None
        if number % 4:
            self.intake.acknowledge(self.saved.contained)
        if number % 3 == 0:
            self.crash(number)

    def crash(self, _: int) -> None:
        self.run(self.learner.close())
        self.resume()

    def take_over(self, _: int) -> None:
        self.frozen.append(Frozen(self.learner, self.feed, self.intake, self.version))
        self.resume()

    def resume(self) -> None:
        self.version, self.trained = self.saved.version, list(self.saved.trained)
        self.written = None
        self.start(self.saved)
        self.feed.top_up(self.version)

    def wake_up(self, number: int) -> None:
        """What a learner may have been about to do when it was frozen."""
        if not self.frozen:
            return
        old = self.frozen[number % len(self.frozen)]
        if number % 5 == 0:  # it was waiting for groups: reading is not refused, they come again
            self.run(old.broker.read_groups(2, block_s=0))
            return
        before = self.everything()
        with contextlib.suppress(RunLostError):
            if number % 5 == 1:
                had = len(old.intake._done)
                old.intake.acknowledge(old.intake.done)
                assert not had, "it was not refused"
            elif number % 5 == 2:
                old.feed.top_up(old.version)
            elif number % 5 == 3 and old.feed.outstanding:
                old.feed.refeed(next(iter(old.feed.outstanding)), version=old.version)
                raise AssertionError("it was not refused")
            elif number % 5 == 4:
                self.run(old.broker.reset_run())
                raise AssertionError("it was not refused")
        assert self.everything() == before

    def everything(self) -> dict[str, bytes]:
        """All that Redis has of this run."""
        return {key: self.run(self.dumped(key)) for key in self.keys()}

    # --- replicas -----------------------------------------------------------------------------

    def claim(self, number: int) -> None:
        self.claim_as(REPLICAS[number % 2])

    def claim_as(self, replica: str) -> ClaimedPrompt | None:
        claim = self.run(self.replica.claim_prompt(replica, lease_s=LONG_S, block_s=0))
        if claim is not None:
            self.held.append(claim)
        return claim

    def push(self, number: int) -> None:
        if pool := self.held or self.late:
            claim = pool.pop(number % len(pool))
            lag, scored = (0, 0, 0, 0, 1, 2, 3)[number % 7], 0 if number % 8 == 0 else 3
            for _ in range(2 if number % 5 == 0 else 1):
                self.push_as(claim, version=max(0, self.version - lag), scored=scored)

    def push_late(self, number: int) -> None:
        if self.late:
            claim = self.late.pop(number % len(self.late))
            self.push_as(claim, version=self.version)

    def push_as(self, claim: ClaimedPrompt, *, version: int, scored: int = 3) -> None:
        request = claim.request
        group = scored_group(request.prompt_id, version=version, num_scored=scored)
        group = group.model_copy(update={"sequence": request.sequence})
        self.run(self.replica.push_group(claim, group))

    def pop(self, number: int) -> ClaimedPrompt | None:
        return self.held.pop(number % len(self.held)) if self.held else None

    def pop_mortal(self, number: int) -> ClaimedPrompt | None:
        """One that a replica may fail at."""
        mortal = [claim for claim in self.held if claim.request.row_id not in SPARED]
        return self.pop(self.held.index(mortal[number % len(mortal)])) if mortal else None

    def fail(self, number: int) -> None:
        if claim := self.pop_mortal(number):
            self.run(self.replica.fail_prompt(claim, "x", limits=LIMITS))

    def doubt(self, number: int) -> None:
        if claim := self.pop_mortal(number):
            self.run(self.replica.fail_prompt(claim, "x", limits=LIMITS, doubted=True))
            one_of = (self.replica.confirm_failures, self.replica.forgive_failures)
            self.run(one_of[number % 2](claim.replica, [claim.entry_id]))

    def release(self, number: int) -> None:
        if claim := self.pop(number):
            self.run(self.replica.release(claim))

    def lose_engine(self, number: int) -> None:
        if claim := self.pop(number):
            self.run(self.replica.release_after_crash(claim, "x", limits=LIMITS))

    def hand_over(self, number: int) -> None:
        if claim := self.pop(number):
            self.run(self.replica.hand_over(claim))
            self.late.append(claim)

    def die(self, number: int) -> None:
        if claim := self.pop(number):
            self.late.append(claim)

    def leases_end(self, _: int) -> None:
        self.late += self.held
        self.held = []
        self.sweep()

    def sweep(self) -> None:
        time.sleep(0.003)
        self.run(self.replica.sweep("left-1", lease_s=0.001, period_s=0.001, limits=LIMITS))

    # --- Redis --------------------------------------------------------------------------------

    def empty_redis(self, number: int) -> None:
        if keys := self.keys():
            self.run(self.redis("DEL", *keys))
        self.outage(number)

    def dump_redis(self, _: int) -> None:
        self.dump = {key: body for key, body in self.everything().items() if key != self.lease}

    def roll_redis_back(self, number: int) -> None:
        if not self.dump:
            return
        if keys := self.keys():
            self.run(self.redis("DEL", *keys))
        for key, body in self.dump.items():
            if body is not None:
                self.run(self.redis("RESTORE", key, 0, body))
        self.dump = {}
        self.outage(number)

    @property
    def lease(self) -> str:
        """A key that ends by itself, long before anybody can bring an older one back."""
        return f"tempsamp:{self.run_id}:learner"

    def outage(self, number: int) -> None:
        """A restart breaks the learner's connection, unless it was idle; its thread renews."""
        holder = f"learner-{self.num_learners}"
        renewal = self.learner.fence.renew(holder, epoch=self.epoch, ttl_s=LEASES_LAST_S)
        assert self.run(renewal)
        if number % 2:
            self.learner._connection.num_outages += 1

    def keys(self) -> list[str]:
        return sorted(self.run(self.redis("KEYS", f"tempsamp:{self.run_id}:*")))

    def redis(self, *command: Any) -> Coroutine[Any, Any, Any]:
        return self.replica._connection.run(*command)

    async def dumped(self, key: str) -> bytes:
        body: bytes = await self.replica._connection.run("DUMP", key, NEVER_DECODE=True)
        return body

    def run(self, call: Awaitable[T]) -> T:
        async def wait() -> T:
            return await call

        return self.world.runner.run(wait())

    # --- what has to hold ---------------------------------------------------------------------

    @invariant()
    def nothing_is_trained_twice(self) -> None:
        twice = [key for key, times in Counter(self.trained).items() if times > 1]
        given_up = [item.prompt_id for item in self.feed.state().given_up]
        assert not twice
        assert not set(self.trained) & set(given_up)
        assert len(set(given_up)) == len(given_up)
        assert len(self.feed.outstanding) <= self.feed.capacity

    def teardown(self) -> None:
        try:
            self.quiet_end()
        finally:
            self.run(self.redis("DEL", *self.keys(), "x"))
            for broker in self.opened:
                self.run(broker.close())

    def quiet_end(self) -> None:
        """Good replicas and no faults, until two more epochs are over."""
        goal, give_up_s = self.feed.state().epoch + 2, time.monotonic() + QUIET_END_S
        self.held = []
        while self.feed.state().epoch < goal:
            self.sweep()
            while claim := self.claim_as("good-1"):
                self.push_as(claim, version=self.version)
            self.take(looks=30)
            assert time.monotonic() < give_up_s, self.where()
        self.nothing_is_trained_twice()
        state = self.feed.state()
        done = {*self.trained, *(item.prompt_id for item in state.given_up)}
        done |= set(self.feed.outstanding)
        left = {str(n) for n in range(1, NUM_ROWS + 1)} - {item.row_id for item in state.rejected}
        rows = {f"{state.tag}-{e}-{n}" for e in range(goal) for n in left}
        assert rows <= done

    def where(self) -> dict[str, Any]:
        """What a run that stands still looks like."""
        pending = ("XPENDING", self.replica._prompts, "rollout", "-", "+", 20)
        return {
            "outstanding": [(r.prompt_id, r.sequence) for r in self.feed.state().outstanding],
            "pending": self.run(self.replica._connection.run(*pending, parse_detail=True)),
            "marks": self.run(self.redis("HGETALL", self.replica._marks)),
            "unread": len(self.intake._read),
            "depths": self.run(self.replica.depths()),
        }


@pytest.fixture
def world(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Callable[[asyncio.Runner], World]:
    monkeypatch.setattr(intake_module, "POLL_S", 0.0)
    monkeypatch.setattr(intake_module, "RECONCILE_EVERY_S", 0.005)
    make_clip(tmp_path / "clip.mp4", num_frames=24)
    write_rows(tmp_path / "rows.jsonl", (event_row(number) for number in range(NUM_ROWS)))
    return lambda runner: World(redis_server, tmp_path, runner)


def test_every_row_of_every_epoch_is_trained_once_or_listed(
    world: Callable[[asyncio.Runner], World],
) -> None:
    num_operations.clear()
    with asyncio.Runner() as runner:
        Delivery.world = world(runner)
        test_case = Delivery.TestCase
        test_case.settings = settings(
            max_examples=NUM_EXAMPLES,
            stateful_step_count=STEPS_PER_EXAMPLE,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        test_case().runTest()
    assert sum(num_operations.values()) >= 10_000
    assert num_operations.keys() == WEIGHTS.keys()
