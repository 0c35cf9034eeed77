"""What POST /v1/generate refuses before it costs anything, and how much it does at once."""

import asyncio
import contextlib
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.config import bearer
from common.errors import EngineError
from common.messages import ChatMessage, ClipRef, GenerateRequest, TextPart, VideoPart
from common.video.limits import ClipLimits
from jobs.asking.replicas import Fleet, Replicas
from services.rollout.app import create_app
from services.rollout.replica import Replica
from tests.fixtures.clips import make_clip
from tests.fixtures.replicas.stub_replica import TOKEN, StubEngine, stub_replica

QUESTION = ChatMessage(role="user", content=(VideoPart(), TextPart(text="When?")))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    make_clip(tmp_path / "clip.mp4", num_frames=24)
    return tmp_path


@contextlib.asynccontextmanager
async def asking(replica: Replica) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the token."""
    transport = httpx.ASGITransport(create_app(replica))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://replica", headers=bearer(TOKEN)
    ) as client:
        yield client


def request(replica: Replica, videos: Path, **changed: Any) -> GenerateRequest:
    """A question about the clip; `changed` are fields of its reference."""
    clip = replica.loader.sample(videos / "clip.mp4")
    return GenerateRequest(
        clip=ClipRef.model_validate(clip.model_dump() | changed), messages=(QUESTION,)
    )


async def post(client: httpx.AsyncClient, body: GenerateRequest) -> httpx.Response:
    return await client.post("/v1/generate", json=body.model_dump(mode="json"))


def frames(count: int) -> dict[str, Any]:
    """So many times the first frame."""
    return {"frame_indices": (0,) * count, "frame_times_s": (0.0,) * count}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"frame_hw": (40_000, 40_000)}, "rollout.max_clip_pixels"),
        ({"frame_hw": (8000, 8000)}, "found 4 frames of 8000x8000, 256000000 pixels, wanted"),
        (frames(20_000), "found 20000 frames, wanted at most 768 (rollout.max_clip_frames)"),
        ({"frame_hw": (0, 64)}, "wanted an even number of frames with sides of at least 1"),
        ({"frame_hw": (-64, -64)}, "wanted an even number of frames with sides of at least 1"),
        (frames(0), "wanted an even number of frames"),
        (frames(3), "wanted an even number of frames"),
        ({"frame_indices": (0, 1, 2, 24)}, "found frames 0 to 24, wanted some of the 24"),
        ({"frame_indices": (-1, 1, 2, 3)}, "found frames -1 to 3, wanted some of the 24"),
    ],
)
async def test_a_costly_clip_is_refused_before_it_is_opened(
    videos: Path, changed: dict[str, Any], words: str
) -> None:
    replica, _ = stub_replica(roots=videos)
    async with asking(replica) as client:
        body = request(replica, videos, **changed)
        tracemalloc.start()
        started = time.monotonic()
        refused = await post(client, body)
        took_s, (_, most) = time.monotonic() - started, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "clip"
    assert words in refused.json()["detail"]
    assert replica.loader.counts["decoded"] == 0
    assert took_s < 2
    assert most < 64 * 2**20


async def test_the_limits_hold_for_the_ring_s_prompts_too(videos: Path) -> None:
    replica, _ = stub_replica(roots=videos)
    clip = request(replica, videos, frame_hw=(40_000, 40_000)).clip
    with pytest.raises(Exception, match=r"rollout\.max_clip_pixels"):
        replica.loader.load(clip)


def test_nothing_that_a_prompt_can_hold_is_over_the_derived_limit() -> None:
    replica, _ = stub_replica()
    limits = ClipLimits.of(replica.shared, replica.rollout)
    # The demo's factor is 16 and a prompt holds 900 tokens, each of two frames.
    assert limits.max_pixels == 900 * 2 * 16 * 16
    assert limits.max_frames == 768
    own, _ = stub_replica(rollout__max_clip_pixels=5000, rollout__max_clip_frames=8)
    assert ClipLimits.of(own.shared, own.rollout) == ClipLimits(max_frames=8, max_pixels=5000)


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.01)


async def test_so_many_are_in_work_some_wait_and_the_rest_is_told_to_come_again(
    videos: Path,
) -> None:
    replica, engine = stub_replica(
        roots=videos, rollout__concurrent_generates=2, rollout__queued_generates=3
    )
    engine.may_answer.clear()
    async with asking(replica) as client, asyncio.TaskGroup() as tasks:
        body = request(replica, videos)
        asked = [tasks.create_task(post(client, body)) for _ in range(5)]
        await _until(lambda: replica.gate.waiting == 3 and engine.at_work == 2)
        refused = await post(client, body)
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        assert "rollout.concurrent_generates" in refused.json()["detail"]
        engine.may_answer.set()
        assert [(await answer).status_code for answer in asked] == [200] * 5
    assert engine.most_at_work == 2
    assert (replica.gate.in_work, replica.gate.waiting) == (0, 0)


async def test_who_is_cancelled_while_waiting_leaves_the_queue(videos: Path) -> None:
    replica, engine = stub_replica(roots=videos, rollout__concurrent_generates=1)
    engine.may_answer.clear()
    async with asking(replica) as client, asyncio.TaskGroup() as tasks:
        body = request(replica, videos)
        first = tasks.create_task(post(client, body))
        second = tasks.create_task(post(client, body))
        await _until(lambda: replica.gate.waiting == 1)
        second.cancel()
        await asyncio.wait([second])
        assert replica.gate.waiting == 0
        engine.may_answer.set()
        assert (await first).status_code == 200
        assert (await post(client, body)).status_code == 200


async def test_evaluation_and_validation_cope_with_a_full_replica(videos: Path) -> None:
    replica, engine = stub_replica(
        roots=videos, rollout__concurrent_generates=1, rollout__queued_generates=1
    )
    answered: list[int] = []
    async with asking(replica) as client:
        body = request(replica, videos)

        async def do(job: int, ask: Any) -> None:
            await ask(body)
            answered.append(job)

        # Refused for longer than a replica that is down would be borne.
        engine.may_answer.clear()
        fleet = Fleet([client], concurrency=6, retry_s=0.5)
        working = asyncio.create_task(
            fleet.work(range(8), do=do, give_up=lambda *_: None, pile_of=lambda job: job)
        )
        await asyncio.sleep(1.5)
        assert not working.done()
        engine.may_answer.set()
        await asyncio.wait_for(working, 20)
        assert sorted(answered) == list(range(8))

        replicas = Replicas([client], concurrency=8, retry_s=20)
        await asyncio.gather(*(replicas.generate(body) for _ in range(8)))


async def test_a_replica_that_stays_full_is_said_to_be(videos: Path) -> None:
    replica, engine = stub_replica(
        roots=videos, rollout__concurrent_generates=1, rollout__queued_generates=0
    )
    engine.may_answer.clear()
    async with asking(replica) as client:
        body = request(replica, videos)
        held = asyncio.create_task(post(client, body))
        await _until(lambda: engine.at_work == 1)
        with pytest.raises(EngineError, match=r"429.*rollout\.queued_generates"):
            await Replicas([client], concurrency=1, retry_s=0.5).generate(body)
        engine.may_answer.set()
        assert (await held).status_code == 200


def test_a_stub_is_an_engine_where_it_is_asked() -> None:
    """Or these tests would say nothing of the real one."""
    import inspect

    from services.rollout.engine import Engine

    for name in ("generate", "token_ends"):
        assert inspect.signature(getattr(StubEngine, name)) == inspect.signature(
            getattr(Engine, name)
        )
