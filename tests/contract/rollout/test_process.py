"""A replica's process: how it ends, when, and with which code."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from common.messages import ChatMessage, ClipRef, GenerateRequest, TextPart, VideoPart
from common.video.frames import sample_clip
from common.video.sampling import VideoSampling
from tests.fixtures.clips import make_clip
from tests.fixtures.pages.documents import ROOT
from tests.fixtures.replicas.stub_rollout import DRAIN_S
from tests.fixtures.servers.redis_server import RedisServer
from tests.unit.common.rest.test_serving import sent

SLACK_S = 10.0
"""The machine may be busy; half-sent requests were waited for without an end."""
ALONE = ("rollout.weights=checkpoint",)


@dataclass
class Process:
    """A replica that listens."""

    url: str
    process: "subprocess.Popen[str]"
    log: list[str]
    """All of it once it has ended."""

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz").is_success:
                    return
            time.sleep(0.05)
        raise AssertionError("not ready")

    def stop(self) -> float:
        """SIGTERM; seconds to the end."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - started

    def lines(self, level: str) -> list[dict[str, str]]:
        """Of the log, of one level."""
        return [
            line
            for text in self.log
            if text.startswith("{") and (line := json.loads(text))["level"] == level
        ]


@contextlib.contextmanager
def replica(how: str, *overrides: str, environ: dict[str, str] | None = None) -> Iterator[Process]:
    """A stub replica; ended in any case."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fixtures.replicas.stub_rollout", how, *overrides],
        cwd=ROOT,
        env=None if environ is None else {**_environ(), **environ},
        stderr=subprocess.PIPE,
        text=True,
    )
    log: list[str] = []
    assert process.stderr is not None
    url = ""
    for line in process.stderr:
        log.append(line)
        if '"listening"' in line:
            url = json.loads(line)["url"]
            break
    reader = threading.Thread(target=log.extend, args=(process.stderr,))
    reader.start()
    try:
        yield Process(url, process, log)
    finally:
        process.kill()
        reader.join()
        process.stderr.close()
        process.wait()


def _environ() -> dict[str, str]:
    import os

    return dict(os.environ)


NO_REDIS = ("shared.redis_url=redis://127.0.0.1:1/0",)


@pytest.mark.parametrize(
    ("how", "reason", "settings"),
    [
        ("unloadable", "no memory", ALONE),
        ("dying", "CUDA error", ALONE),
        ("dying", "CUDA error", NO_REDIS),
    ],
    ids=["while it loads", "while it serves", "while it waits for Redis"],
)
def test_a_replica_that_fails_ends_with_1_and_says_why_last(
    how: str, reason: str, settings: tuple[str, ...]
) -> None:
    with replica(how, *settings) as running:
        assert running.process.wait(30) == 1
    (line,) = running.lines("critical")
    assert (line["event"], line["error"]) == ("replica failed", reason)


def test_a_clean_stop_is_0() -> None:
    with replica("well", *ALONE) as running:
        running.wait_until_ready()
        assert running.stop() < DRAIN_S + SLACK_S
        assert running.process.returncode == 0
    assert "engine ended\n" in running.log
    assert running.lines("critical") == []


@pytest.mark.parametrize(
    "half",
    ["POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{", "POST /v1/gen"],
    ids=["body", "head"],
)
def test_half_a_request_does_not_keep_a_replica(half: str) -> None:
    with replica("well", *ALONE) as running:
        running.wait_until_ready()
        with sent(running.url, half):
            time.sleep(0.2)
            assert running.stop() < DRAIN_S + SLACK_S
        assert running.process.returncode == 0


def test_a_taken_port_is_one_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with replica("well", f"rollout.port={port}") as running:
            assert running.process.wait(30) == 2
    (line,) = running.log
    assert f"rollout.host, rollout.port: found 127.0.0.1 port {port}" in line


async def test_what_is_asked_is_answered_while_a_replica_drains_and_everybody_knows(
    tmp_path: Path, redis_server: RedisServer, run_id: str
) -> None:
    """The port closes at once, so the registry has to say at once that it is going."""
    make_clip(tmp_path / "clip.mp4", num_frames=24)
    clip = await asyncio.to_thread(
        sample_clip, tmp_path / "clip.mp4", sampling=VideoSampling(max_pixels=4096)
    )
    settings = (
        f"shared.run_id={run_id}",
        f"shared.redis_url={redis_server.url}",
        f'shared.video.roots=["{tmp_path}"]',
        "rollout.registry_ttl_s=60",
    )
    environ = {"TEMPSAMP_REDIS_PASSWORD": redis_server.password}
    broker = redis_server.broker(run_id)
    with replica("well", *settings, environ=environ) as running:
        await asyncio.to_thread(running.wait_until_ready)
        async with asyncio.timeout(20):
            while not await broker.replicas():  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.05)
        async with httpx.AsyncClient(timeout=20) as client:
            asked = asyncio.create_task(client.post(f"{running.url}/v1/generate", json=_ask(clip)))
            await asyncio.sleep(0.2)
            stopping = asyncio.create_task(asyncio.to_thread(running.stop))
            await asyncio.sleep(0.25)
            (status,) = await broker.replicas()
            assert status.phase == "draining"
            assert (await asked).status_code == 200
        assert await stopping < DRAIN_S + SLACK_S
        assert running.process.returncode == 0
        assert await broker.replicas() == []
    await broker.close()


def _ask(clip: ClipRef) -> object:
    question = ChatMessage(role="user", content=(VideoPart(), TextPart(text="When?")))
    return GenerateRequest(clip=clip, messages=(question,)).model_dump(mode="json")
