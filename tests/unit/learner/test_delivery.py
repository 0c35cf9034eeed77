"""Exactly once, whatever happens: a state machine over the real feed, intake, broker and a Redis.

Two replicas claim, push, push twice, fail, die, hand over and come back late; leases end; the
learner crashes between any two steps, before and after it acknowledged; Redis is emptied and rolled
back to an older dump. After each operation nothing has been trained twice, nor trained and given
up; after a quiet end every row of every finished epoch was trained or is listed as given up.
"""

import asyncio
import json
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
from common.messages import ScoredGroup
from common.prompts import grounding_problem
from common.queue.broker import ClaimedPrompt, Limits
from services.learner import intake as intake_module
from services.learner.feed import Feed, FeedState
from services.learner.intake import Intake, IntakeState
from tests.fixtures.clips import make_clip
from tests.fixtures.redis_server import RedisServer
from tests.fixtures.wire import scored_group

T = TypeVar("T")

NUM_ROWS, GROUPS_PER_STEP = 12, 2
NUM_EXAMPLES, STEPS_PER_EXAMPLE = 36, 310
"""About 10,500 operations a run: not every rule finds something to do."""
REPLICAS = ("left-1", "right-1")
LIMITS = Limits(max_attempts=2, max_deaths=4)
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


class Delivery(RuleBasedStateMachine):
    """One run with its learner and two replicas."""

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
        self.start(None)
        self.feed.top_up(0)
        self.saved = self.checkpoint()

    # --- the learner --------------------------------------------------------------------------

    def start(self, saved: Checkpoint | None) -> None:
        folder, runner = self.world.folder, self.world.runner
        broker = self.world.server.broker(self.run_id)
        self.opened.append(broker)
        self.learner = broker
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

    def checkpoint(self) -> Checkpoint:
        feed, intake = self.feed.state(), self.intake.state()
        return Checkpoint(
            feed.model_dump_json(), intake.model_dump_json(), self.version, list(self.trained)
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

    @rule(looks=st.integers(1, 5), unusable=st.sampled_from([0, 0, 0, 0, 1, 2]))
    def take_a_step(self, looks: int, unusable: int) -> None:
        num_operations["take"] += 1
        self.take(looks, unusable)

    @rule(acknowledges=st.booleans(), crashes=st.sampled_from([False, False, True]))
    def save(self, acknowledges: bool, crashes: bool) -> None:
        num_operations["save"] += 1
        self.saved = self.checkpoint()
        if acknowledges:
            self.intake.acknowledge()
        if crashes:
            self.crash()

    @rule()
    def crash(self) -> None:
        num_operations["crash"] += 1
        self.version, self.trained = self.saved.version, list(self.saved.trained)
        self.run(self.learner.close())
        self.start(self.saved)
        self.feed.top_up(self.version)

    # --- replicas -----------------------------------------------------------------------------

    @rule(replica=st.sampled_from(REPLICAS))
    def claim(self, replica: str) -> None:
        num_operations["claim"] += 1
        self.claim_as(replica)

    @rule(replica=st.sampled_from(REPLICAS))
    def claim_more(self, replica: str) -> None:
        num_operations["claim"] += 1
        self.claim_as(replica)

    def claim_as(self, replica: str) -> ClaimedPrompt | None:
        claim = self.run(self.replica.claim_prompt(replica, lease_s=LONG_S, block_s=0))
        if claim is not None:
            self.held.append(claim)
        return claim

    @rule(
        which=st.integers(0, 9),
        lag=st.sampled_from([0, 0, 0, 0, 1, 2, 3]),
        scored=st.sampled_from([3, 3, 3, 3, 3, 3, 0]),
        times=st.sampled_from([1, 1, 1, 2]),
    )
    def push(self, which: int, lag: int, scored: int, times: int) -> None:
        num_operations["push"] += 1
        if not (pool := self.held or self.late):
            return
        claim = pool.pop(which % len(pool))
        for _ in range(times):
            self.push_as(claim, version=max(0, self.version - lag), scored=scored)

    def push_as(self, claim: ClaimedPrompt, *, version: int, scored: int = 3) -> None:
        request = claim.request
        group = scored_group(request.prompt_id, version=version, num_scored=scored)
        group = group.model_copy(update={"sequence": request.sequence})
        self.run(self.replica.push_group(claim, group))

    @rule(
        which=st.integers(0, 9),
        how=st.sampled_from(
            ["fail", "doubt", "confirm", "release", "crash", "hand over", "die", "die"]
        ),
    )
    def give_back(self, which: int, how: str) -> None:
        num_operations[how] += 1
        if not self.held:
            return
        claim = self.held.pop(which % len(self.held))
        if how == "die":
            self.late.append(claim)
        elif how == "fail":
            self.run(self.replica.fail_prompt(claim, "x", limits=LIMITS))
        elif how in ("doubt", "confirm"):
            self.run(self.replica.fail_prompt(claim, "x", limits=LIMITS, doubted=True))
            settle = self.replica.confirm_failures
            settle = settle if how == "confirm" else self.replica.forgive_failures
            self.run(settle(claim.replica, [claim.entry_id]))
        elif how == "crash":
            self.run(self.replica.release_after_crash(claim, "x", limits=LIMITS))
        elif how == "hand over":
            self.run(self.replica.hand_over(claim))
            self.late.append(claim)
        else:
            self.run(self.replica.release(claim))

    @rule()
    def leases_end(self) -> None:
        num_operations["sweep"] += 1
        self.late += self.held
        self.held = []
        self.sweep()

    def sweep(self) -> None:
        time.sleep(0.003)
        self.run(self.replica.sweep("left-1", lease_s=0.001, period_s=0.001, limits=LIMITS))

    # --- Redis --------------------------------------------------------------------------------

    @rule(seen=st.booleans(), really=st.sampled_from([True, False, False]))
    def empty_redis(self, seen: bool, really: bool) -> None:
        if really:
            num_operations["flush"] += 1
            keys = self.keys()
            if keys:
                self.run(self.redis("DEL", *keys))
            self.outage(seen)

    @rule()
    def dump_redis(self) -> None:
        num_operations["dump"] += 1
        self.dump = {key: self.run(self.dumped(key)) for key in self.keys()}

    @rule(seen=st.booleans(), really=st.sampled_from([True, False]))
    def roll_redis_back(self, seen: bool, really: bool) -> None:
        if not self.dump or not really:
            return
        num_operations["roll back"] += 1
        if keys := self.keys():
            self.run(self.redis("DEL", *keys))
        for key, body in self.dump.items():
            if body is not None:
                self.run(self.redis("RESTORE", key, 0, body))
        self.dump = {}
        self.outage(seen)

    def outage(self, seen: bool) -> None:
        """A restart breaks the learner's connection, unless it was idle."""
        if seen:
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
        rows = {f"{state.tag}-{e}-{n}" for e in range(goal) for n in range(1, NUM_ROWS + 1)}
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
    rows = [
        {
            "problem": grounding_problem(f"Event {number}.", mode="answer"),
            "spans": [[1, 2]],
            "videos": ["clip.mp4"],
        }
        for number in range(NUM_ROWS)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
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
    assert {"crash", "flush", "roll back", "die", "doubt"} <= num_operations.keys()
