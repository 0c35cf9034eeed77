"""The feed on real clips and a real Redis."""

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.config import Learner, Phase, Pool, Shared, Video
from common.errors import ConfigError
from common.messages import ClipRef, PromptRequest, Sampling, SpansTarget, Window
from common.queue.broker import Broker
from common.video.loader import ClipLoader
from services.learner.curriculum.phases import HasPlateaued, never
from services.learner.feed import Feed, FeedState
from tests.fixtures.clips import make_clip
from tests.fixtures.rows import event_row, write_rows
from tests.fixtures.servers.redis_server import RedisServer

NUM_ROWS = 10
GROUPS_PER_STEP = 3


@dataclass
class Ring:
    """A run folder with rows and clips, and its broker."""

    folder: Path
    run_id: str
    broker: Broker
    runner: asyncio.Runner

    def learner(self, **settings: Any) -> Learner:
        return Learner(
            **{
                "rows": self.folder / "rows.jsonl",
                "run_dir": self.folder / "run",
                "steps": 1,
                "groups_per_step": GROUPS_PER_STEP,
                "max_staleness": 1,
            }
            | settings
        )

    def feed(
        self,
        *,
        state: FeedState | None = None,
        sampling: Sampling | None = None,
        has_plateaued: HasPlateaued = never,
        **settings: Any,
    ) -> Feed:
        shared = Shared(
            run_id=self.run_id,
            model=str(self.folder),
            group_size=4,
            seed=7,
            sampling=sampling or Sampling(),
            video=Video(
                roots=(self.folder,),
                fps=1.0,
                max_frames=4,
                min_pixels=32 * 32,
                max_pixels=64 * 64,
            ),
        )
        learner = self.learner(**settings)
        return Feed(
            self.broker,
            shared=shared,
            learner=learner,
            runner=self.runner,
            state=state,
            has_plateaued=has_plateaued,
        )

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        write_rows(self.folder / "rows.jsonl", rows)

    def claim_all(self) -> list[PromptRequest]:
        """Everything that lies in the prompts stream, in order."""

        async def claim() -> list[PromptRequest]:
            found = []
            while claimed := await self.broker.claim_prompt("a", lease_s=60, block_s=0.01):
                found.append(claimed.request)
            return found

        return self.runner.run(claim())


@pytest.fixture
def ring(tmp_path: Path, redis_server: RedisServer, run_id: str) -> Iterator[Ring]:
    make_clip(tmp_path / "clip.mp4", num_frames=24)
    with asyncio.Runner() as runner:
        broker = redis_server.broker(run_id)
        ring = Ring(tmp_path, run_id, broker, runner)
        ring.write_rows([event_row(number) for number in range(1, NUM_ROWS + 1)])
        yield ring
        runner.run(broker.close())


def row_ids(feed: Feed) -> list[str]:
    return [request.row_id for request in feed.state().outstanding]


def consume_all(feed: Feed) -> None:
    for prompt_id in list(feed.outstanding):
        feed.consumed(prompt_id)


class TestTopUp:
    def test_keeps_staleness_plus_one_steps_outstanding(self, ring: Ring) -> None:
        feed = ring.feed()
        assert len(feed.top_up(0)) == 2 * GROUPS_PER_STEP
        assert feed.top_up(0) == []
        for prompt_id in list(feed.outstanding)[:2]:
            feed.consumed(prompt_id)
        assert len(feed.top_up(1)) == 2
        assert [request.sequence for request in ring.claim_all()] == list(range(1, 9))

    def test_the_files_of_the_next_step_are_read_beside_this_one(
        self, ring: Ring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        readers: list[str] = []
        sample = ClipLoader.sample

        def noted(loader: ClipLoader, path: str, window: Window | None = None) -> ClipRef:
            readers.append(threading.current_thread().name)
            return sample(loader, path, window)

        monkeypatch.setattr(ClipLoader, "sample", noted)
        feed = ring.feed()
        for version in range(3):
            feed.top_up(version)
            for prompt_id in list(feed.outstanding)[:GROUPS_PER_STEP]:
                feed.consumed(prompt_id)
        feed.close()
        beside = sum(name.startswith("lookahead") for name in readers)
        assert beside >= NUM_ROWS
        # The last step took rows of the next epoch, whose order is not known before it begins.
        assert len(readers) - beside == 4 * GROUPS_PER_STEP - NUM_ROWS

    def test_request_says_what_a_replica_needs(self, ring: Ring) -> None:
        ring.feed().top_up(0)
        request = ring.claim_all()[0]
        assert request.clip.uri == str(ring.folder / "clip.mp4")
        assert (request.clip.total_frames, len(request.clip.frame_indices)) == (24, 4)
        assert request.target == SpansTarget(spans=((1.0, 2.0),))
        assert (request.task, request.mode) == ("temporal_grounding", "answer")
        assert request.num_samples == 3, "the fourth of the group is injected"
        assert request.prompt_id.endswith(f"-0-{request.row_id}")

    def test_min_version_is_the_oldest_still_fresh_when_trained_on(self, ring: Ring) -> None:
        feed = ring.feed()
        feed.top_up(5)
        versions = [request.min_version for request in feed.state().outstanding]
        assert versions == [4] * GROUPS_PER_STEP + [5] * GROUPS_PER_STEP

    def test_seed_gives_every_sample_of_every_prompt_its_own(self, ring: Ring) -> None:
        feed = ring.feed(sampling=Sampling(seed=100))
        feed.top_up(0)
        seeds = [request.sampling.seed for request in feed.state().outstanding]
        assert seeds == [104, 108, 112, 116, 120, 124]

    def test_without_a_seed_none_is_sent(self, ring: Ring) -> None:
        feed = ring.feed()
        feed.top_up(0)
        assert {request.sampling.seed for request in feed.state().outstanding} == {None}


class TestEpochs:
    def test_each_epoch_has_every_row_once_in_an_order_of_its_own(self, ring: Ring) -> None:
        feed = ring.feed(groups_per_step=NUM_ROWS)
        feed.top_up(0)
        first, second = row_ids(feed)[:NUM_ROWS], row_ids(feed)[NUM_ROWS:]
        assert sorted(first) == sorted(second) == sorted(str(n) for n in range(1, NUM_ROWS + 1))
        assert first != second

    def test_order_depends_on_the_seed_alone(self, ring: Ring) -> None:
        first, second = ring.feed(), ring.feed()
        for feed in (first, second):
            feed.top_up(0)
        assert row_ids(first) == row_ids(second)

    def test_prompts_of_another_run_have_other_ids(self, ring: Ring) -> None:
        first, second = ring.feed(), ring.feed()
        for feed in (first, second):
            feed.top_up(0)
        assert not set(first.outstanding) & set(second.outstanding)


HYBRID = (
    Phase(strategy="sft", steps=2, format_weight=0.0),
    Phase(epochs=1, max_tokens=16),
    Phase(mode="think", strategy="none", think_injection="bare", format_weight=1.0),
)


class TestPhases:
    def test_without_any_nothing_travels_with_a_prompt(self, ring: Ring) -> None:
        ring.feed().top_up(0)
        request = ring.claim_all()[0]
        assert request.grading is None
        assert "grading" not in request.model_dump()

    def test_each_prompt_carries_what_its_phase_asks(self, ring: Ring) -> None:
        feed = ring.feed(groups_per_step=NUM_ROWS // 2, max_staleness=3, phases=HYBRID)
        feed.top_up(0)
        found = [
            (r.epoch, r.mode, r.sampling.max_tokens, r.num_samples, r.grading)
            for r in feed.state().outstanding
        ]
        warm, answers = found[:NUM_ROWS], found[NUM_ROWS:]
        assert {item[:4] for item in warm} == {(0, "answer", 256, 1)}
        assert {item[:4] for item in answers} == {(1, "answer", 16, 3)}
        consume_all(feed)
        feed.top_up(4)
        thinking = feed.state().outstanding[0]
        assert (thinking.epoch, thinking.mode, thinking.num_samples) == (2, "think", 4)
        assert thinking.grading is not None
        assert thinking.grading.model_dump() == {
            "strategy": "none",
            "format_weight": 1.0,
            "think_injection": "bare",
        }
        grading = warm[0][4]
        assert grading is not None
        assert (grading.strategy, grading.format_weight) == ("sft", 0.0)
        assert feed.phases.is_last

    @pytest.mark.parametrize("rounds", range(1, 8))
    def test_a_resumed_feed_goes_on_in_the_middle_of_a_phase(self, ring: Ring, rounds: int) -> None:
        phases = (
            Phase(steps=2),
            Phase(mode="think", epochs=1),
            Phase(plateau=2),
            Phase(steps=None),
        )

        def plateau(*, since: int, before: int, patience: int) -> bool:
            return before - since > patience

        def asked(feed: Feed, versions: range) -> list[tuple[str, int, str]]:
            found = []
            for version in versions:
                consume_all(feed)
                for request in feed.top_up(version):
                    found.append((request.row_id, request.sequence, request.mode))
            return found

        settings = {"phases": phases, "max_staleness": 0, "groups_per_step": 4}
        learner_feed = ring.feed(has_plateaued=plateau, **settings)
        asked(learner_feed, range(rounds))
        resumed = ring.feed(state=learner_feed.state(), has_plateaued=plateau, **settings)
        rest = range(rounds, 14)
        assert asked(resumed, rest) == asked(learner_feed, rest)
        assert resumed.state() == learner_feed.state()
        assert resumed.phases.state.index == 3

    def test_a_prompt_asked_again_keeps_its_phase(self, ring: Ring) -> None:
        feed = ring.feed(phases=(Phase(steps=1, max_tokens=16), Phase(mode="think")))
        feed.top_up(0)
        first = next(iter(feed.outstanding))
        feed.refeed(first, version=1)
        assert feed.request(first).mode == "answer"
        assert feed.request(first).sampling.max_tokens == 16


class TestPool:
    def test_few_shot_subsets_are_nested_and_follow_their_seed(self, ring: Ring) -> None:
        def rows(**pool: int) -> set[str]:
            feed = ring.feed(groups_per_step=NUM_ROWS, pool=Pool(**pool))
            feed.top_up(0)
            return set(row_ids(feed))

        assert len(rows(subset=3)) == 3
        assert rows(subset=3) < rows(subset=5)
        assert rows(subset=3) == rows(subset=3, subset_seed=7), "shared.seed is 7"
        assert any(rows(subset=3) != rows(subset=3, subset_seed=seed) for seed in range(5))

    def test_difficulty_bounds_leave_rows_out_and_say_why(self, ring: Ring) -> None:
        rows = [event_row(number, difficulty=number / 10) for number in range(1, 10)]
        ring.write_rows([*rows, event_row(10)])
        feed = ring.feed(pool=Pool(min_difficulty=0.3, max_difficulty=0.6))
        feed.top_up(0)
        assert set(row_ids(feed)) == {"3", "4", "5", "6"}
        assert feed.pool.fixed["2"] == "difficulty 0.2 below 0.3"
        assert feed.pool.fixed["9"] == "difficulty 0.9 above 0.6"
        assert feed.pool.fixed["10"] == "no difficulty"

    def test_a_pool_without_rows_ends_the_start(self, ring: Ring) -> None:
        with pytest.raises(ConfigError, match=r"learner\.pool: found none of 10 usable rows"):
            ring.feed(pool=Pool(min_difficulty=0.3))


class TestUnusableRows:
    def test_are_skipped_for_good_counted_and_filed(self, ring: Ring) -> None:
        (ring.folder / "empty.mp4").touch()
        whole = (ring.folder / "clip.mp4").read_bytes()
        (ring.folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
        (ring.folder / "prose.mp4").write_text("not a video")
        make_clip(ring.folder / "one.mp4", num_frames=1)
        bad = ["missing.mp4", "empty.mp4", "truncated.mp4", "prose.mp4", "one.mp4"]
        rows = [event_row(number, videos=[name]) for number, name in enumerate(bad, start=1)]
        ring.write_rows([*rows, event_row(6, spans=[[1, 9]]), event_row(7), event_row(8)])
        feed = ring.feed()
        feed.top_up(0)
        assert set(row_ids(feed)) == {"7", "8"}
        lines = (ring.folder / "run/rejected_rows.jsonl").read_text().splitlines()
        reasons = {line["row_id"]: line["reason"] for line in map(json.loads, lines)}
        unreadable = {str(number): "unreadable video" for number in range(1, 6)}
        assert reasons == unreadable | {"6": "target outside the clip"}
        assert len(lines) == 6, "each once, over all epochs"

    def test_are_not_among_those_that_the_ledger_is_told_were_fed(self, ring: Ring) -> None:
        bad = event_row(1, videos=["missing.mp4"])
        ring.write_rows([bad, *(event_row(number) for number in range(2, 13))])
        feed = ring.feed()
        feed.top_up(0)
        state = feed.state()
        assert state.epoch == 0
        assert state.fed == len(feed.outstanding) < 11
        assert ring.feed(state=state).state() == state

    def test_nothing_left_stops_with_the_reasons(self, ring: Ring) -> None:
        ring.write_rows([event_row(1, videos=["missing.mp4"]), event_row(2, spans=[[50, 60]])])
        with pytest.raises(ConfigError, match=r"no usable row left; rejected: 1 x "):
            ring.feed().top_up(0)

    def test_reading_rows_opens_no_video(self, ring: Ring) -> None:
        ring.write_rows([event_row(number, videos=["missing.mp4"]) for number in range(1000)])
        assert ring.feed().outstanding == {}.keys()

    def test_probe_request_is_not_fed(self, ring: Ring) -> None:
        ring.write_rows([event_row(1, videos=["missing.mp4"]), event_row(2)])
        feed = ring.feed()
        assert feed.probe_request().row_id == "2"
        assert feed.probe_request() == feed.probe_request()
        assert not feed.outstanding
        assert ring.claim_all() == []


class TestAgain:
    def test_refed_prompt_goes_behind_the_others_under_a_new_number(self, ring: Ring) -> None:
        feed = ring.feed()
        feed.top_up(0)
        first = next(iter(feed.outstanding))
        feed.refeed(first, version=4)
        request = ring.claim_all()[-1]
        assert (request.prompt_id, request.sequence) == (first, 2 * GROUPS_PER_STEP + 1)
        assert request.min_version == 4
        assert list(feed.outstanding)[-1] == first
        assert len(feed.outstanding) == 2 * GROUPS_PER_STEP

    def test_refill_keeps_order_and_numbers_when_redis_lost_everything(self, ring: Ring) -> None:
        feed = ring.feed()
        feed.top_up(0)
        before = ring.claim_all()
        ring.runner.run(ring.broker.reset_run())
        present = {before[0].prompt_id}
        assert feed.refill(present, version=0) == 5
        assert ring.claim_all() == before[1:]

    def test_refill_takes_new_numbers_when_redis_has_moved_on(self, ring: Ring) -> None:
        feed = ring.feed()
        feed.top_up(0)
        before = ring.claim_all()
        assert feed.refill({request.prompt_id for request in before[1:]}, version=2) == 1
        [again] = ring.claim_all()
        assert (again.prompt_id, again.sequence) == (before[0].prompt_id, 7)

    def test_refill_does_nothing_when_all_are_there(self, ring: Ring) -> None:
        feed = ring.feed()
        feed.top_up(0)
        ring.claim_all()
        assert feed.refill(feed.outstanding, version=0) == 0
        assert ring.claim_all() == []


class TestState:
    def test_resumed_feed_goes_on_as_if_never_stopped(self, ring: Ring) -> None:
        def steps(feed: Feed) -> list[PromptRequest]:
            fed = []
            for version in range(1, 6):
                for prompt_id in list(feed.outstanding)[:GROUPS_PER_STEP]:
                    feed.consumed(prompt_id)
                feed.refeed(next(iter(feed.outstanding)), version=version)
                feed.top_up(version)
                fed.append(feed.state())
            return [request for state in fed for request in state.outstanding]

        feed = ring.feed()
        feed.top_up(0)
        saved = feed.state().model_dump_json()
        never_stopped = steps(feed)
        resumed = ring.feed(state=FeedState.model_validate_json(saved))
        assert steps(resumed) == never_stopped

    def test_what_was_fed_between_checkpoint_and_crash_is_not_fed_twice(self, ring: Ring) -> None:
        feed = ring.feed()
        feed.top_up(0)
        saved = feed.state()
        consume_all(feed)
        feed.top_up(1)
        assert len(ring.claim_all()) == 4 * GROUPS_PER_STEP
        resumed = ring.feed(state=saved)
        consume_all(resumed)
        assert len(resumed.top_up(1)) == 2 * GROUPS_PER_STEP
        assert ring.claim_all() == []
        assert list(resumed.outstanding) == list(feed.outstanding)

    def test_rejected_rows_stay_rejected_and_listed(self, ring: Ring) -> None:
        ring.write_rows([event_row(1, videos=["missing.mp4"]), event_row(2)])
        feed = ring.feed()
        feed.top_up(0)
        make_clip(ring.folder / "missing.mp4", num_frames=24)
        resumed = ring.feed(state=feed.state())
        consume_all(resumed)
        resumed.top_up(1)
        assert set(row_ids(resumed)) == {"2"}
        assert "missing.mp4" in (ring.folder / "run/rejected_rows.jsonl").read_text()

    def test_changed_rows_are_refused(self, ring: Ring) -> None:
        saved = ring.feed().state()
        ring.write_rows([event_row(1)])
        with pytest.raises(ConfigError, match=r"learner\.rows: .*changed since the checkpoint"):
            ring.feed(state=saved)
