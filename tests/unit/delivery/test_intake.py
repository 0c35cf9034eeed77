"""The intake on a real Redis: each prompt once, in order, across crashes."""

import asyncio
import functools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from common.config import Learner, Shared, Video
from common.messages import PromptRequest, ScoredGroup
from common.queue.broker import Broker, Limits
from services.learner import intake as intake_module
from services.learner.feed import Feed, FeedState, NoRowLeftError
from services.learner.intake import Intake, IntakeState
from tests.fixtures.clips import make_clip
from tests.fixtures.rows import event_row, write_rows
from tests.fixtures.servers.redis_server import RedisServer
from tests.fixtures.wire import replica_status, scored_group

NUM_ROWS = 40
GROUPS_PER_STEP = 4


@dataclass
class Ring:
    """The learner's half of a ring; the test plays the replica."""

    server: RedisServer
    run_id: str
    folder: Path
    runner: asyncio.Runner
    max_staleness: int = 1
    max_returns: int = 3
    max_unusable_in_a_row: int = 6
    max_without_verdict_s: float = 1800.0
    opened: list[Broker] = field(default_factory=list)
    recorded: list[tuple[str, str, str]] = field(default_factory=list)
    """Fate, prompt id, reason."""

    def __post_init__(self) -> None:
        self.replica = self.open_broker()
        self.start()

    def open_broker(self) -> Broker:
        self.opened.append(self.server.broker(self.run_id))
        return self.opened[-1]

    def start(self, saved: tuple[str, str] | None = None) -> None:
        """A learner, new or from a checkpoint; the one before is forgotten as by kill -9."""
        self.broker = self.open_broker()
        shared = Shared(
            run_id=self.run_id,
            model=str(self.folder),
            group_size=3,
            video=Video(
                roots=(self.folder,),
                fps=1.0,
                max_frames=4,
                min_pixels=32 * 32,
                max_pixels=64 * 64,
            ),
        )
        learner = Learner(
            rows=self.folder / "rows.jsonl",
            run_dir=self.folder / "run",
            steps=1,
            groups_per_step=GROUPS_PER_STEP,
            max_staleness=self.max_staleness,
            max_returns=self.max_returns,
            max_unusable_in_a_row=self.max_unusable_in_a_row,
            max_without_verdict_s=self.max_without_verdict_s,
        )
        self.feed = Feed(
            self.broker,
            shared=shared,
            learner=learner,
            runner=self.runner,
            state=FeedState.model_validate_json(saved[0]) if saved else None,
        )
        self.intake = Intake(
            self.broker,
            feed=self.feed,
            runner=self.runner,
            settings=learner,
            state=IntakeState.model_validate_json(saved[1]) if saved else None,
            record=self._record,
        )

    def _record(self, fate: str, prompt_id: str, reason: str) -> None:
        assert self.feed.request(prompt_id).prompt_id == prompt_id, "it is still outstanding"
        self.recorded.append((fate, prompt_id, reason))

    def checkpoint(self) -> tuple[str, str]:
        return self.feed.state().model_dump_json(), self.intake.state().model_dump_json()

    def answer(
        self,
        count: int | None = None,
        *,
        version: int = 0,
        num_scored: int = 3,
        shuffle: random.Random | None = None,
        bad: str | None = None,
    ) -> list[str]:
        """Claim prompts (all without `count`) and push a group for each; returns their ids.

        The prompt `bad` gets no verdict.
        """

        async def answer() -> list[str]:
            claims = []
            while len(claims) != count and (
                claim := await self.replica.claim_prompt("a", lease_s=60, block_s=0.01)
            ):
                claims.append(claim)
            if shuffle:
                shuffle.shuffle(claims)
            for claim in claims:
                scored = 0 if claim.request.prompt_id == bad else num_scored
                group = group_of(claim.request, version=version, num_scored=scored)
                await self.replica.push_group(claim, group)
            return [claim.request.prompt_id for claim in claims]

        return self.runner.run(answer())

    def fail(self, error: str) -> str:
        """Claim one prompt and bury it; returns its id."""

        async def fail() -> str:
            claim = await self.replica.claim_prompt("a", lease_s=60, block_s=0.01)
            assert claim is not None
            assert await self.replica.fail_prompt(claim, error, limits=Limits(max_attempts=1))
            return claim.request.prompt_id

        return self.runner.run(fail())

    def take(self, at: int, **keys: Any) -> list[str]:
        """One step; a test whose step starves fails at once."""
        keys.setdefault("should_stop", Starved())
        return ids(self.intake.take(GROUPS_PER_STEP, at=at, **keys))


def group_of(request: PromptRequest, *, version: int = 0, num_scored: int = 3) -> ScoredGroup:
    """What a replica answers."""
    group = scored_group(request.prompt_id, version=version, num_scored=num_scored)
    return group.model_copy(update={"sequence": request.sequence})


def put(ring: Ring, key: str, message: dict[str, Any]) -> None:
    """Somebody else writes into the run's streams."""
    command = ("XADD", key, "*", "body", json.dumps(message))
    ring.runner.run(ring.replica._connection.run(*command))


def ids(groups: Sequence[ScoredGroup]) -> list[str]:
    return [group.prompt_id for group in groups]


class Stop:
    """Stops a take at the n-th look, so that a test sees one that waits."""

    def __init__(self, looks: int) -> None:
        self._looks = looks

    def __call__(self) -> bool:
        self._looks -= 1
        return self._looks < 0


class Starved(Stop):
    """Fails after about four seconds of waiting."""

    def __init__(self) -> None:
        super().__init__(looks=200)

    def __call__(self) -> bool:
        assert not super().__call__(), "the step starves"
        return False


@pytest.fixture
def open_ring(
    tmp_path: Path, redis_server: RedisServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Ring]]:
    monkeypatch.setattr(intake_module, "POLL_S", 0.02)
    monkeypatch.setattr(intake_module, "RECONCILE_EVERY_S", 0.1)
    make_clip(tmp_path / "clip.mp4", num_frames=24)
    write_rows(tmp_path / "rows.jsonl", (event_row(number) for number in range(NUM_ROWS)))
    opened: list[Ring] = []
    with asyncio.Runner() as runner:

        def open_one(server: RedisServer = redis_server, **settings: Any) -> Ring:
            opened.append(Ring(server, run_id, tmp_path, runner, **settings))
            return opened[-1]

        yield open_one
        for broker in (broker for ring in opened for broker in ring.opened):
            runner.run(broker.close())


@pytest.fixture
def ring(open_ring: Callable[..., Ring]) -> Ring:
    return open_ring()


class TestTake:
    def test_gives_one_step_in_stream_order(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        pushed = ring.answer(shuffle=random.Random(0))
        assert ring.take(at=0) == pushed[:GROUPS_PER_STEP]
        assert ring.take(at=1) == pushed[GROUPS_PER_STEP:]
        assert not ring.feed.outstanding
        assert ring.intake.counters.groups_taken == 2 * GROUPS_PER_STEP

    def test_the_next_step_is_seen_before_it_is_taken(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        pushed = ring.answer()
        assert ring.take(at=0) == pushed[:GROUPS_PER_STEP]
        for _ in range(2):
            seen = ids(ring.intake.ahead(GROUPS_PER_STEP, at=1))
            assert seen == pushed[GROUPS_PER_STEP:]
        assert ring.intake.counters.groups_taken == GROUPS_PER_STEP
        assert ring.intake.ahead(GROUPS_PER_STEP + 1, at=1) == []
        assert ring.intake.ahead(GROUPS_PER_STEP, at=100) == []
        assert ring.take(at=1) == pushed[GROUPS_PER_STEP:]
        assert ring.intake.ahead(GROUPS_PER_STEP, at=1) == []

    def test_waits_and_lets_the_caller_work_meanwhile(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        ring.answer(2)
        looks = []

        def on_idle() -> None:
            looks.append(1)
            if len(looks) == 3:
                ring.answer(2)

        assert len(ring.take(at=0, on_idle=on_idle)) == GROUPS_PER_STEP
        assert len(looks) == 3

    def test_stopped_gives_nothing_and_keeps_everything_for_later(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        pushed = ring.answer(3)
        assert ring.take(at=0, should_stop=Stop(looks=6)) == []
        assert len(ring.feed.outstanding) == 2 * GROUPS_PER_STEP
        ring.intake.acknowledge(ring.intake.done)
        pushed += ring.answer(1)
        assert ring.take(at=0) == pushed

    def test_error_of_the_idle_callback_is_not_swallowed(self, ring: Ring) -> None:
        ring.feed.top_up(0)

        def on_idle() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ring.take(at=0, on_idle=on_idle)


class TestDrops:
    def test_second_group_of_a_prompt_is_dropped(self, ring: Ring) -> None:
        ring.feed.top_up(0)

        async def push_twice() -> None:
            claim = await ring.replica.claim_prompt("a", lease_s=60, block_s=0.01)
            assert claim is not None
            for _ in range(2):
                await ring.replica.push_group(claim, scored_group(claim.request.prompt_id))

        ring.runner.run(push_twice())
        ring.answer()
        taken = ring.take(at=0)
        assert len(set(taken)) == GROUPS_PER_STEP
        assert ring.intake.counters.groups_duplicate == 1

    def test_group_of_another_run_is_dropped(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        first_tag = ring.feed.state().tag
        ring.answer(3)
        ring.start()
        ring.feed.top_up(0)
        taken = ring.take(at=0, on_idle=ring.answer)
        assert not any(prompt_id.startswith(first_tag) for prompt_id in taken)
        assert ring.intake.counters.groups_duplicate == 8, "all that the first run had fed"

    def test_too_stale_is_dropped_and_asked_again(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        old, fresh = ring.answer(2, version=3), ring.answer(6, version=4)
        assert ring.take(at=5) == fresh[:4]
        assert ring.intake.counters.groups_stale == 2
        assert ring.answer() == old
        assert list(ring.feed.outstanding) == [*fresh[4:], *old]

    def test_staleness_limit_is_inclusive_and_newer_than_the_learner_is_fine(
        self, ring: Ring
    ) -> None:
        ring.feed.top_up(0)
        pushed = ring.answer(2, version=4) + ring.answer(2, version=9)
        assert ring.take(at=5) == pushed

    def test_unscored_is_dropped_counted_and_asked_again(self, ring: Ring) -> None:
        """Before: its row was lost for the epoch."""
        ring.feed.top_up(0)
        bad, good = ring.answer(3, num_scored=1), ring.answer(5, num_scored=2)
        assert ring.take(at=0) == good[:4]
        counters = ring.intake.counters
        assert (counters.groups_unscored, counters.samples_unscored) == (3, 3 * 2 + 4 * 1)
        assert list(ring.feed.outstanding) == [good[4], *bad]
        assert ring.answer() == bad

    def test_row_that_no_grader_can_score_is_given_up_and_listed(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        bad = next(iter(ring.feed.outstanding))
        for version in range(6):
            ring.take(
                at=version, on_idle=lambda version=version: ring.answer(version=version, bad=bad)
            )
            ring.feed.top_up(version + 1)
        assert bad not in ring.feed.outstanding
        assert ring.intake.counters.groups_unscored == 3
        [line] = (ring.folder / "run/given_up_rows.jsonl").read_text().splitlines()
        listed = json.loads(line)
        assert (listed["prompt_id"], listed["replica"]) == (bad, "replica-a")
        assert "unusable 3 times (learner.max_returns)" in listed["reason"]
        assert ring.feed.state().given_up[0].prompt_id == bad
        ring.start(saved=ring.checkpoint())
        assert (ring.folder / "run/given_up_rows.jsonl").read_text().splitlines() == [line]

    def test_grader_that_fails_at_everything_costs_no_row_and_stops_the_run_in_time(
        self, open_ring: Callable[..., Ring], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before: after 64 rows, all lost, and without a checkpoint."""
        monkeypatch.setattr(intake_module, "WORD_EVERY_S", 0.1)
        ring = open_ring(max_without_verdict_s=1.0)
        ring.feed.top_up(0)
        outstanding = set(ring.feed.outstanding)
        num_answers: list[int] = []

        def on_idle() -> None:
            num_answers.append(len(ring.answer(num_scored=0)))

        assert ring.take(at=0, on_idle=on_idle, should_stop=lambda: False) == []
        assert sum(num_answers) >= 3 * len(outstanding)
        assert set(ring.feed.outstanding) == outstanding
        assert "no answer within 10 s" in str(ring.intake.stalled)
        assert "learner.max_without_verdict_s = 1" in str(ring.intake.stalled)

    def test_a_fleet_that_is_away_is_waited_for(
        self,
        open_ring: Callable[..., Ring],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Before: not a word in 74 s."""
        monkeypatch.setattr(intake_module, "WORD_EVERY_S", 0.1)
        ring = open_ring(max_without_verdict_s=0.2)
        ring.feed.top_up(0)
        assert ring.take(at=0, should_stop=Stop(looks=40)) == []
        assert ring.intake.stalled is None
        said = "no group that can be used"
        words = [record for record in caplog.records if record.message == said]
        assert words
        assert words[0].num_prompts == 2 * GROUPS_PER_STEP  # type: ignore[attr-defined]

    def test_replicas_that_are_all_in_trouble_stop_the_run_in_time(
        self, open_ring: Callable[..., Ring], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(intake_module, "WORD_EVERY_S", 0.1)
        ring = open_ring(max_without_verdict_s=0.3)
        ring.feed.top_up(0)
        ring.runner.run(ring.replica.announce(replica_status("a"), ttl_s=60))
        ring.runner.run(ring.replica.report_trouble("a", "no reward service", ttl_s=60))
        assert ring.take(at=0) == []
        assert "no reward service" in str(ring.intake.stalled)

    def test_with_no_slack_a_dropped_group_does_not_starve_the_step(
        self, open_ring: Callable[..., Ring]
    ) -> None:
        ring = open_ring(max_staleness=0)
        ring.feed.top_up(0)
        ring.answer(1, num_scored=0)
        ring.fail("no frames")
        taken = ring.take(at=0, on_idle=ring.answer)
        assert len(taken) == GROUPS_PER_STEP

    def test_too_many_unusable_in_a_row_stop_the_run_with_the_reason(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        refused: list[str] = []

        def faults_of(groups: Sequence[ScoredGroup]) -> dict[str, str]:
            refused.extend(ids(groups))
            return dict.fromkeys(ids(groups), "found 5 visual tokens, wanted 4")

        assert ring.take(at=0, faults_of=faults_of, on_idle=ring.answer) == []
        assert len(refused) == 2 * GROUPS_PER_STEP
        assert "max_unusable_in_a_row" in str(ring.intake.stalled)
        assert "found 5 visual tokens" in str(ring.intake.stalled)

    def test_a_last_row_that_dies_leaves_a_state_to_save(
        self, open_ring: Callable[..., Ring]
    ) -> None:
        ring = open_ring(max_unusable_in_a_row=2 * NUM_ROWS)
        ring.feed.top_up(0)
        with pytest.raises(NoRowLeftError, match=r"no usable row left; rejected: .*dead letter"):
            ring.take(at=0, on_idle=lambda: ring.fail("no frames"), should_stop=lambda: False)
        feed, intake = (json.loads(state) for state in ring.checkpoint())
        assert len(feed["outstanding"]) < ring.feed.capacity
        assert len(feed["rejected"]) == intake["counters"]["prompts_dead"] == NUM_ROWS

    def test_a_good_group_between_ends_the_row(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        ring.answer(4, num_scored=0)
        ring.answer(1)
        ring.answer(3, num_scored=0)
        assert len(ring.take(at=0, on_idle=ring.answer)) == GROUPS_PER_STEP
        assert ring.intake.counters.groups_unscored == 7
        assert ring.intake.stalled is None

    def test_unusable_groups_are_dead_letters_and_their_prompts_asked_again(
        self, ring: Ring
    ) -> None:
        """Before: the learner ended, and so did each that resumed it."""
        ring.feed.top_up(0)
        pushed = ring.answer()
        bad = pushed[1:3]

        def faults_of(groups: Sequence[ScoredGroup]) -> dict[str, str]:
            return {key: "one visual token too many" for key in ids(groups) if key in bad}

        assert ring.take(at=0, faults_of=faults_of) == [pushed[0], *pushed[3:6]]
        assert ring.intake.counters.groups_unusable == 2
        letters = [letter for _, letter in ring.runner.run(ring.broker.read_dead_letters())]
        assert [letter.prompt_id for letter in letters] == bad
        assert {(letter.replica, letter.attempts) for letter in letters} == {("replica-a", 0)}
        assert ScoredGroup.model_validate_json(letters[0].body).prompt_id == bad[0]
        assert ring.answer() == bad
        assert ring.take(at=1) == [*pushed[6:], *bad], "their own letters do not give them up"
        assert ring.intake.counters.prompts_dead == 0

    def test_a_crash_after_an_unusable_group_is_no_loop(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        saved = ring.checkpoint()
        pushed = ring.answer()

        def faults_of(groups: Sequence[ScoredGroup]) -> dict[str, str]:
            return {key: "undecodable" for key in ids(groups) if key == pushed[0]}

        before = ring.take(at=0, faults_of=faults_of)
        ring.start(saved)
        assert ring.take(at=0, faults_of=faults_of) == before

    def test_answers_that_were_cut_short_are_asked_again(self, ring: Ring) -> None:
        ring.feed.top_up(0)

        async def push_aborted() -> str:
            claim = await ring.replica.claim_prompt("a", lease_s=60, block_s=0.01)
            assert claim is not None
            group = group_of(claim.request)
            cut = group.samples[0].model_copy(update={"finish_reason": "abort"})
            samples = (cut, *group.samples[1:])
            await ring.replica.push_group(claim, group.model_copy(update={"samples": samples}))
            return claim.request.prompt_id

        bad = ring.runner.run(push_aborted())
        ring.answer()
        assert bad not in ring.take(at=0)
        assert bad in ring.feed.outstanding
        assert ring.intake.counters.samples_aborted == 1

    def test_unreadable_group_is_asked_again(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        [first] = ring.answer(1)
        fields = ("prompt_id", first, "body", "{}")
        groups = f"tempsamp:{ring.run_id}:groups"
        ring.runner.run(ring.replica._connection.run("DEL", groups))
        ring.runner.run(ring.replica._connection.make_groups())
        ring.runner.run(ring.replica._connection.run("XADD", groups, "*", *fields))
        ring.answer()
        assert first not in ring.take(at=0)
        assert ring.intake.counters.groups_unusable == 1
        assert first in ring.feed.outstanding
        assert ring.answer() == [first]

    def test_stale_duplicates_ask_once_more_and_no_oftener(self, ring: Ring) -> None:
        """Before: three stale groups of a prompt were three requests for it."""
        ring.feed.top_up(0)

        async def push_thrice() -> str:
            claim = await ring.replica.claim_prompt("a", lease_s=60, block_s=0.01)
            assert claim is not None
            for _ in range(3):
                await ring.replica.push_group(claim, group_of(claim.request, version=0))
            return claim.request.prompt_id

        stale = ring.runner.run(push_thrice())
        ring.answer(version=5)
        ring.take(at=5)
        assert ring.answer(version=5) == [stale]

    def test_dead_letter_ends_its_prompt(
        self, ring: Ring, caplog: pytest.LogCaptureFixture
    ) -> None:
        ring.feed.top_up(0)
        dead = ring.fail("clip.mp4: it changed after sampling")
        ring.answer()
        assert dead not in ring.take(at=0)
        assert dead not in ring.feed.outstanding
        assert ring.intake.counters.prompts_dead == 1
        assert "prompt given up" in [record.message for record in caplog.records]

    def test_row_of_a_dead_letter_is_rejected_and_fed_in_no_later_epoch(self, ring: Ring) -> None:
        """Before: a file that no replica reads was asked, and failed at, in every epoch."""
        ring.feed.top_up(0)
        dead = ring.fail("clip.mp4: PyAV found no frame 122")
        row_id = dead.rsplit("-", 1)[1]
        ring.answer()
        for version in range(NUM_ROWS):
            ring.take(at=version, on_idle=functools.partial(ring.answer, version=version))
            ring.feed.top_up(version + 1)
        state = ring.feed.state()
        assert state.epoch >= 2
        asked = {request.row_id for request in state.outstanding}
        assert row_id not in asked
        [given_up], [rejected] = state.given_up, state.rejected
        assert (given_up.prompt_id, rejected.row_id) == (dead, row_id)
        assert rejected.reason == "dead letter"
        assert "PyAV found no frame 122" in rejected.detail
        listed = ring.folder / "run/rejected_rows.jsonl"
        [line] = listed.read_text().splitlines()
        assert json.loads(line) == rejected.model_dump()
        ring.start(saved=ring.checkpoint())
        assert listed.read_text().splitlines() == [line]
        assert ring.feed.probe_request().row_id != row_id

    def test_dead_letter_counts_as_fed_in_its_epoch(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        fed = ring.feed.state().fed
        ring.fail("broken")
        ring.answer()
        ring.take(at=0)
        state = ring.feed.state()
        assert (state.epoch, state.fed) == (0, fed + 1), "another took its place"

    def test_dead_letters_are_dealt_with_once(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        ring.fail("broken")
        ring.answer()
        ring.take(at=0)
        ring.start(saved=ring.checkpoint())
        ring.take(at=1, on_idle=ring.answer)
        assert ring.intake.counters.prompts_dead == 1

    def test_late_dead_letter_of_a_taken_prompt_changes_nothing(self, ring: Ring) -> None:
        ring.feed.top_up(0)

        async def answer_and_bury() -> str:
            claim = await ring.replica.claim_prompt("a", lease_s=60, block_s=0.01)
            assert claim is not None
            await ring.replica.push_group(claim, scored_group(claim.request.prompt_id, version=0))
            return claim.request.prompt_id

        first = ring.runner.run(answer_and_bury())
        letter = {"prompt_id": first, "error": "x", "attempts": 3, "replica": "b", "body": ""}
        key = f"tempsamp:{ring.run_id}:dead"
        looks: list[int] = []

        def on_idle() -> None:
            if not looks:
                put(ring, key, letter)
            elif len(looks) == 2:
                ring.answer()
            looks.append(1)

        assert ring.take(at=0, on_idle=on_idle)[0] == first
        assert ring.intake.counters.prompts_dead == 0


class TestRecord:
    def test_each_fate_is_told_with_its_reason(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        dead = ring.fail("no frames")
        (stale,) = ring.answer(1, version=3)
        (unscored,) = ring.answer(1, version=5, num_scored=0)
        ring.take(at=5, on_idle=lambda: ring.answer(version=5))
        assert ring.recorded == [
            ("dead", dead, "1 replica(s) failed at it, the last one: no frames"),
            ("stale", stale, "stale by 2 steps"),
            ("returned", unscored, "reward service: no answer within 10 s"),
        ]

    def test_what_redis_lost_is_told(
        self, open_ring: Callable[..., Ring], own_redis_server: RedisServer
    ) -> None:
        ring = open_ring(server=own_redis_server)
        ring.feed.top_up(0)
        waiting = list(ring.feed.outstanding)
        own_redis_server.kill()
        own_redis_server.start_again(forget=True)
        ring.take(at=0, on_idle=ring.answer)
        assert ring.recorded == [("refed", prompt_id, "lost by Redis") for prompt_id in waiting]


class TestCrash:
    def run_steps(self, ring: Ring, versions: range) -> list[list[str]]:
        steps = []
        for version in versions:
            steps.append(ring.take(at=version))
            ring.feed.top_up(version + 1)
            ring.answer(version=version, shuffle=random.Random(version))
        return steps

    def test_unacknowledged_steps_repeat_in_order_and_acknowledged_ones_never(
        self, ring: Ring
    ) -> None:
        ring.feed.top_up(0)
        ring.answer(shuffle=random.Random(9))
        acknowledged = self.run_steps(ring, range(2))
        saved, contained = ring.checkpoint(), ring.intake.done
        before_the_crash = self.run_steps(ring, range(2, 5))
        done = ring.intake.done
        ring.intake.acknowledge(contained)  # written meanwhile: of these steps it has nothing
        assert ring.intake.done == done[len(contained) :]
        ring.start(saved)
        after = self.run_steps(ring, range(2, 5))
        assert after == before_the_crash
        beyond = self.run_steps(ring, range(5, 7))
        trained = [prompt_id for step in acknowledged + after + beyond for prompt_id in step]
        assert len(set(trained)) == len(trained) == 7 * GROUPS_PER_STEP

    def test_drops_repeat_too(self, ring: Ring) -> None:
        ring.feed.top_up(0)

        def run() -> tuple[list[list[str]], str]:
            ring.answer(3, version=3)
            ring.answer(2, version=5, num_scored=0)
            steps = []
            for version in (5, 6):
                steps.append(ring.take(at=version, on_idle=lambda: ring.answer(version=5)))
                ring.feed.top_up(version + 1)
            return steps, ring.checkpoint()[1]

        saved = ring.checkpoint()
        before_the_crash, counters = run()
        ring.start(saved)
        assert run() == (before_the_crash, counters)
        assert ring.intake.counters.groups_stale == 3
        assert ring.intake.counters.groups_unscored == 2

    def test_crash_between_checkpoint_and_acknowledgement_trains_nothing_twice(
        self, ring: Ring
    ) -> None:
        ring.feed.top_up(0)
        ring.answer()
        trained = ring.take(at=0)
        ring.start(saved=ring.checkpoint())
        assert not set(ring.take(at=1)) & set(trained)
        assert ring.intake.counters.groups_duplicate == GROUPS_PER_STEP
        ring.intake.acknowledge(ring.intake.done)
        assert ring.runner.run(ring.broker.depths()).groups_unacknowledged == 0


class TestLossOfRedis:
    def test_prompts_lost_with_everything_else_are_fed_again(
        self, open_ring: Callable[..., Ring], own_redis_server: RedisServer
    ) -> None:
        ring = open_ring(server=own_redis_server)
        ring.feed.top_up(0)
        waiting = list(ring.feed.outstanding)
        ring.answer(2)
        own_redis_server.kill()
        own_redis_server.start_again(forget=True)
        taken = ring.take(at=0, on_idle=ring.answer)
        assert taken == waiting[:4], "the two groups were lost as well"
        assert ring.intake.counters.prompts_lost == 2 * GROUPS_PER_STEP

    def test_kill_9_of_redis_in_the_middle_loses_no_step(
        self, open_ring: Callable[..., Ring], own_redis_server: RedisServer
    ) -> None:
        ring = open_ring(server=own_redis_server)
        ring.feed.top_up(0)
        trained = []
        for version in range(6):
            ring.answer(3, version=version)
            if version in (1, 3):  # the last second or so is not on disk
                own_redis_server.kill()
                own_redis_server.start_again()
            step = ring.take(at=version, on_idle=lambda: ring.answer(1, version=5))
            trained += step
            ring.intake.acknowledge(ring.intake.done)
            ring.feed.top_up(version + 1)
        assert len(set(trained)) == len(trained) == 6 * GROUPS_PER_STEP

    def test_learner_behind_redis_goes_on_at_once(
        self, ring: Ring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before: 72 s for 100 numbers, one more each 5 s."""
        monkeypatch.setattr(intake_module, "RECONCILE_EVERY_S", 3600.0)
        ring.feed.top_up(0)
        saved, trained = ring.checkpoint(), set[str]()
        for version in range(25):
            ring.answer(version=version)
            trained.update(ring.take(at=version))
            ring.intake.acknowledge(ring.intake.done)
            ring.feed.top_up(version + 1)
        assert len(trained) == 25 * GROUPS_PER_STEP
        ring.start(saved)
        ring.feed.top_up(0)
        taken = ring.take(at=0, on_idle=ring.answer)
        assert len(taken) == GROUPS_PER_STEP
        assert ring.intake.counters.prompts_lost == 2 * GROUPS_PER_STEP

    def test_redis_behind_the_learner_goes_on_at_once(
        self,
        open_ring: Callable[..., Ring],
        own_redis_server: RedisServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(intake_module, "RECONCILE_EVERY_S", 3600.0)
        ring = open_ring(server=own_redis_server)
        ring.feed.top_up(0)
        ring.answer(version=0)
        trained = ring.take(at=0)
        own_redis_server.kill()
        own_redis_server.start_again(forget=True)
        taken = ring.take(at=1, on_idle=lambda: ring.answer(version=1))
        assert len({*trained, *taken}) == 2 * GROUPS_PER_STEP

    def test_acknowledgement_that_redis_lost_is_given_again(
        self, ring: Ring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ring.feed.top_up(0)
        ring.answer()
        ring.take(at=0)
        done = list(ring.intake._done)
        ring.intake.acknowledge(ring.intake.done)
        # What an append-only file without its last second comes back with.
        groups, run = f"tempsamp:{ring.run_id}:groups", ring.replica._connection.run
        body = scored_group("p").model_dump_json()
        for number in (1, 2):
            entry_id = f"{int(done[-1].split('-')[0]) + 60_000 + number}-0"
            ring.runner.run(run("XADD", groups, entry_id, "prompt_id", "p", "body", body))
        command = ("XREADGROUP", "GROUP", "learner", "learner", "COUNT", 99, "STREAMS", groups)
        ring.runner.run(run(*command, ">"))
        ring.broker._connection.num_outages += 1
        for version in (1, 2):
            ring.feed.top_up(version)
            ring.take(at=version, on_idle=lambda: ring.answer(version=2))
        ring.intake.acknowledge(ring.intake.done)
        depths = ring.runner.run(ring.broker.depths())
        assert depths.groups_unacknowledged == len(ring.intake._read)

    def test_claimed_and_already_taken_prompts_are_not_lost(self, ring: Ring) -> None:
        ring.feed.top_up(0)
        ring.answer(2)
        claim = ring.runner.run(ring.replica.claim_prompt("a", lease_s=60, block_s=0.01))
        assert claim is not None
        assert ring.take(at=0, should_stop=Stop(looks=20)) == []
        assert ring.intake.counters.prompts_lost == 0
        assert len(ring.answer()) == 2 * GROUPS_PER_STEP - 3
