"""The worker on a real Redis, with an engine, a loader and a reward service made of a few lines."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from common.config import Rollout, Shared, Video
from common.errors import EngineError, RewardError, VideoError
from common.messages import DeadLetter, Sample, Scored, VersionSpan
from common.queue.broker import Broker, Depths
from services.rollout.claiming import wellness
from services.rollout.claiming import worker as worker_module
from services.rollout.claiming.wellness import ReplicaSickError, innermost
from services.rollout.claiming.worker import Worker
from services.rollout.engine import EngineDownError, Generation
from services.rollout.reward_client import Scoring
from tests.fixtures.wire import CLIP, prompt_request

SAMPLE = Sample(
    token_ids=(5, 6, 2),
    logprobs=(-0.5, -0.5, -0.5),
    version_spans=(VersionSpan(version=3, start=0, end=3),),
    finish_reason="stop",
    provenance="policy",
)


class Parts:
    """Everything beside Redis that a worker needs; a test breaks what it wants broken."""

    trouble: str | None = None
    version: int | None = 3

    def __init__(self) -> None:
        self.is_dead = False
        self.asked: list[str] = []

    async def generate(self, *_: Any, num_samples: int, **__: Any) -> Generation:
        await asyncio.sleep(0.01)
        return Generation(
            prompt_token_ids=(1, 2),
            num_visual_tokens=1,
            grid_thw=(2, 2, 2),
            samples=(SAMPLE,) * num_samples,
            texts=("x",) * num_samples,
        )

    def encode_answer(self, _: str) -> tuple[int, ...]:
        return (1,)

    async def check_health(self) -> None:
        if self.is_dead:
            raise RuntimeError("EngineCore is gone")

    def load(self, _: Any) -> None:
        return None

    async def score(self, _: Any, *, texts: Any) -> Scoring:
        return Scoring(tuple(Scored(reward=0.5, parts={}) for _ in texts), None)

    async def check(self) -> None:
        pass

    async def served(self, *, within_s: float) -> bool:
        return True

    async def at_least(self, version: int) -> int:
        return version

    def are_of(self, _: str) -> bool:
        return True


class Fleet:
    """Replicas of one run."""

    def __init__(self, open_broker: Callable[[], Broker], roots: Path) -> None:
        self._open_broker = open_broker
        self._roots = roots
        self.broker = open_broker()

    async def feed(self, count: int) -> None:
        for sequence in range(1, count + 1):
            await self.broker.feed_prompt(prompt_request(sequence))

    def worker(self, parts: Any, replica: str, **settings: Any) -> Worker:
        rollout = Rollout.model_validate({"concurrent_prompts": 4, "lease_s": 2.0} | settings)
        video = Video(roots=(self._roots,))
        return Worker(
            broker=self._open_broker(),
            engine=parts,
            reward=parts,
            weights=parts,
            shared=Shared(run_id="r", model="m", video=video),
            rollout=rollout,
            loader=parts,
            replica=replica,
        )

    @contextlib.asynccontextmanager
    async def at_work(self, parts: Any, replica: str, **settings: Any) -> AsyncIterator[Worker]:
        worker = self.worker(parts, replica, **settings)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    async def until(self, is_reached: Callable[[Depths], bool]) -> Depths:
        for _ in range(600):
            if is_reached(depths := await self.broker.depths()):
                return depths
            await asyncio.sleep(0.02)
        raise AssertionError(f"not reached: {depths}")

    async def trouble_of(self, worker: Worker) -> str:
        for _ in range(600):
            if worker.trouble is not None:
                return worker.trouble
            await asyncio.sleep(0.01)
        raise AssertionError("it has no trouble")

    async def letters(self) -> list[DeadLetter]:
        return [letter for _, letter in await self.broker.read_dead_letters()]


@pytest.fixture
def fleet(open_broker: Callable[[], Broker], tmp_path: Path) -> Fleet:
    (tmp_path / "clip.mp4").touch()
    return Fleet(open_broker, tmp_path)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wellness, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(wellness, "LAST_PAUSE_S", 0.2)
    monkeypatch.setattr(worker_module, "CLAIM_BLOCK_S", 0.05)


class Failing(Parts):
    """Fails at what `is_bad` says, quickly."""

    def __init__(self, error: Exception, is_bad: Callable[[int], bool] = lambda _: True) -> None:
        super().__init__()
        self.error = error
        self.is_bad = is_bad
        self.num_generated = 0

    async def generate(self, *arguments: Any, **keys: Any) -> Generation:
        self.num_generated += 1
        if self.is_bad(self.num_generated):
            raise self.error
        return await super().generate(*arguments, **keys)


class BySequence(Parts):
    """Knows which prompt is asked, by its seed."""

    def __init__(self, act: Callable[[int], Awaitable[None]]) -> None:
        super().__init__()
        self._act = act

    async def score(self, request: Any, *, texts: Any) -> Scoring:
        await self._act(request.sequence)
        return await super().score(request, texts=texts)


async def run_to_its_end(worker: Worker) -> BaseException:
    with pytest.raises(BaseExceptionGroup) as caught:
        await asyncio.wait_for(worker.run(), 30)
    return innermost(caught.value)


async def test_a_cancellation_that_the_client_swallows_does_not_keep_the_worker(
    fleet: Fleet,
) -> None:
    """redis-py does so now and then: a replica whose engine died claimed on for ever."""
    worker = fleet.worker(Parts(), "a")
    claims, swallowed = asyncio.Event(), []

    async def deaf_once(*_: Any, **__: Any) -> None:
        claims.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            swallowed.append(True)

    worker._broker.claim_prompt = deaf_once  # type: ignore[method-assign,assignment]
    running = asyncio.create_task(worker.run())
    await asyncio.wait_for(claims.wait(), 20)
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=5)
    assert done
    assert swallowed


class TestReplicaFaults:
    async def test_dead_engine_buries_nothing_and_ends_the_replica(self, fleet: Fleet) -> None:
        """Before: 8 of 32 prompts buried in .03 s by one replica, 24 in three lives."""
        await fleet.feed(32)
        for life in range(3):
            parts = Failing(EngineDownError("vLLM failed: EngineCore died"))
            parts.is_dead = True
            error = await run_to_its_end(fleet.worker(parts, f"sick{life}"))
            assert isinstance(error, ReplicaSickError)
            assert "EngineCore" in str(error)
            assert parts.num_generated <= 4, "it stops claiming at once"
        assert (await fleet.broker.depths()).dead_letters == 0
        async with fleet.at_work(Parts(), "good"):
            await fleet.until(lambda depths: depths.groups_unread == 32)
        assert await fleet.letters() == []

    async def test_cuda_error_that_passes_sends_the_replica_out_and_back(
        self, fleet: Fleet
    ) -> None:
        await fleet.feed(8)
        error = ValueError("CUDA error: an illegal memory access was encountered")
        parts = Failing(error, lambda number: number <= 2)
        async with fleet.at_work(parts, "a") as worker:
            await fleet.until(lambda depths: depths.groups_unread == 8)
            assert worker.trouble is None
        assert await fleet.letters() == []

    async def test_missing_mount_releases_and_says_so_until_it_is_back(
        self, fleet: Fleet, tmp_path: Path
    ) -> None:
        class NoFiles(Parts):
            def load(self, _: Any) -> None:
                if not (tmp_path / "clip.mp4").exists():
                    raise VideoError("clip.mp4: No such file or directory")

        await fleet.feed(8)
        (tmp_path / "clip.mp4").unlink()
        async with fleet.at_work(NoFiles(), "a-1", lease_s=0.4) as worker:
            assert "shared.video.roots: found nothing in" in await fleet.trouble_of(worker)
            await fleet.broker._connection.run("ZADD", fleet.broker._replicas, 1, "a-1")
            await asyncio.sleep(0.3)
            assert "found nothing in" in (await fleet.broker.troubles())["a-1"]
            depths = await fleet.broker.depths()
            assert (depths.prompts_waiting, depths.dead_letters) == (8, 0)
            assert worker.counters.failed_prompts <= 4
            (tmp_path / "clip.mp4").touch()
            await fleet.until(lambda depths: depths.groups_unread == 8)

    async def test_replica_that_never_answered_buries_nothing(self, fleet: Fleet) -> None:
        """Wrong video roots: other folders are there, every file is missing."""
        await fleet.feed(16)

        class WrongRoots(Parts):
            def load(self, _: Any) -> None:
                raise VideoError("clip.mp4: No such file or directory")

        settings = {"max_failures_in_a_row": 12}
        for life in range(4):
            error = await run_to_its_end(fleet.worker(WrongRoots(), f"w{life}", **settings))
            assert "prompts failed one after the other" in str(error)
        assert await fleet.letters() == []
        async with fleet.at_work(Parts(), "good"):
            await fleet.until(lambda depths: depths.groups_unread == 16)

    async def test_reward_that_is_away_for_too_long_gives_prompts_back_uncounted(
        self, fleet: Fleet
    ) -> None:
        await fleet.feed(6)

        class NoReward(Parts):
            is_up = False

            async def score(self, request: Any, *, texts: Any) -> Scoring:
                await self.check()
                return await super().score(request, texts=texts)

            async def check(self) -> None:
                if not self.is_up:
                    raise RewardError("no answer from http://reward")

        parts = NoReward()
        async with fleet.at_work(parts, "a", max_failures_in_a_row=3) as worker:
            await fleet.trouble_of(worker)
            await asyncio.sleep(0.4)
            assert (await fleet.broker.depths()).prompts_waiting == 6
            parts.is_up = True
            await fleet.until(lambda depths: depths.groups_unread == 6)


class TestPromptFaults:
    async def test_poison_prompt_ends_after_three_replicas_and_the_others_are_answered(
        self, fleet: Fleet
    ) -> None:
        async def act(sequence: int) -> None:
            if sequence == 3:
                raise EngineError("prompt of 99999 tokens")

        await fleet.feed(12)
        async with (
            fleet.at_work(BySequence(act), "a"),
            fleet.at_work(BySequence(act), "b"),
            fleet.at_work(BySequence(act), "c"),
        ):
            depths = await fleet.until(lambda d: d.groups_unread == 11 and d.dead_letters == 1)
        assert depths.prompts_waiting == depths.prompts_claimed == 0
        [letter] = await fleet.letters()
        assert (letter.prompt_id, letter.attempts) == ("p3", 3)
        assert "prompt of 99999 tokens" in letter.error

    async def test_poison_first_in_a_lone_replica_ends_too(self, fleet: Fleet) -> None:
        async def act(sequence: int) -> None:
            if sequence <= 2:
                raise EngineError("too long")

        await fleet.feed(6)
        async with fleet.at_work(BySequence(act), "a", lease_s=0.3):
            await fleet.until(lambda d: d.groups_unread == 4 and d.dead_letters == 2)
        assert {letter.prompt_id for letter in await fleet.letters()} == {"p1", "p2"}

    async def test_many_poison_prompts_in_a_row_end_too(self, fleet: Fleet) -> None:
        async def act(sequence: int) -> None:
            if sequence <= 7:
                raise EngineError("too long")

        await fleet.feed(10)
        async with fleet.at_work(BySequence(act), "a", lease_s=0.3, max_failures_in_a_row=99):
            await fleet.until(lambda d: d.groups_unread == 3 and d.dead_letters == 7)


class TestDeadline:
    async def test_hung_prompts_go_to_another_replica_and_the_first_answer_counts(
        self, fleet: Fleet
    ) -> None:
        """Before: all 8 stayed with the hung replica for ever."""

        class Hung(Parts):
            async def generate(self, *_: Any, **__: Any) -> Generation:
                await asyncio.Event().wait()
                raise AssertionError

        await fleet.feed(8)
        settings = {"prompt_deadline_s": 0.5, "concurrent_prompts": 8}
        async with fleet.at_work(Hung(), "hung", **settings) as hung:
            await fleet.until(lambda depths: depths.prompts_claimed == 8)
            async with fleet.at_work(Parts(), "good", **settings):
                await fleet.until(lambda depths: depths.groups_unread == 8)
            assert hung.counters.completed_groups == 0
        assert await fleet.letters() == []

    async def test_slow_prompt_of_a_lone_replica_is_finished_by_it(self, fleet: Fleet) -> None:
        class Slow(Parts):
            async def generate(self, *arguments: Any, **keys: Any) -> Generation:
                await asyncio.sleep(0.45)
                return await super().generate(*arguments, **keys)

        await fleet.feed(2)
        async with fleet.at_work(Slow(), "a", prompt_deadline_s=0.3, lease_s=0.6):
            await fleet.until(lambda depths: depths.groups_unread == 2)
        assert (await fleet.broker.depths()).prompts_waiting == 0
        assert await fleet.letters() == []


class TestAlone:
    async def test_a_suspect_runs_with_nothing_beside_it(self, fleet: Fleet) -> None:
        at_once: dict[int, int] = {}
        in_work: set[int] = set()

        async def act(sequence: int) -> None:
            in_work.add(sequence)
            await asyncio.sleep(0.05)
            at_once[sequence] = len(in_work)
            in_work.discard(sequence)

        await fleet.feed(1)
        for replica in ("x", "y"):
            claim = await fleet.broker.claim_prompt(replica, lease_s=60, block_s=0.05)
            assert claim is not None
            await fleet.broker.release_after_crash(claim, "died", limits=worker_module.Limits())
        for sequence in range(2, 13):
            await fleet.broker.feed_prompt(prompt_request(sequence))
        async with fleet.at_work(BySequence(act), "a"):
            await fleet.until(lambda depths: depths.groups_unread == 12)
        assert at_once[1] == 1
        assert max(at_once.values()) > 1


def test_videos_are_missing_when_no_root_has_anything(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / CLIP.uri.split("/")[-1]).touch()
    assert wellness.missing_videos(Video(roots=(empty, full))) is None
    assert "are they mounted here?" in str(wellness.missing_videos(Video(roots=(empty,))))
    gone = Video(roots=(tmp_path / "gone",))
    assert str(tmp_path / "gone") in str(wellness.missing_videos(gone))
    strict = Video(roots=(full,), cache=empty, cache_mode="strict")
    assert "shared.video.cache" in str(wellness.missing_videos(strict))


@pytest.mark.parametrize(
    ("version", "said"),
    [(None, "waiting for the learner's first weights"), (3, "waiting for prompts")],
)
async def test_a_replica_that_does_nothing_says_what_it_waits_for(
    version: int | None,
    said: str,
    fleet: Fleet,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "SAY_IDLE_AFTER_S", 0.0)
    parts = Parts()
    parts.version = version
    with caplog.at_level("INFO", logger="services.rollout.claiming.worker"):
        async with fleet.at_work(parts, "idle", lease_s=0.2):
            for _ in range(200):
                if caplog.records:
                    break
                await asyncio.sleep(0.02)
    assert caplog.messages == [said]
