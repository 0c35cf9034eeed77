"""`tempsamp status` and `tempsamp drain` beside replicas' real processes and a real Redis."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from common import config
from common.config import Run, bearer
from common.messages import ReplicaStatus
from services.learner.status import serving
from services.rollout.app import create_app
from services.rollout.replica import Replica
from tests.contract.rollout.test_process import Process, replica
from tests.fixtures.pages.documents import ROOT
from tests.fixtures.replicas.stub_replica import load
from tests.fixtures.servers.redis_server import RedisServer
from tests.fixtures.wire import prompt_request, replica_status

TOKENS = {"TEMPSAMP_CONTROL_TOKEN": "for-control", "TEMPSAMP_GENERATE_TOKEN": "for-generate"}


class Ring:
    """A run of one Redis."""

    def __init__(self, redis: RedisServer, run_id: str) -> None:
        self.settings = (
            f"shared.run_id={run_id}",
            f"shared.redis_url={redis.url}",
            # One that is killed stays listed for as long as a test looks, however slow it is.
            "rollout.registry_ttl_s=120",
        )
        self.environ = {"TEMPSAMP_REDIS_PASSWORD": redis.password, **TOKENS}
        self.redis, self.run_id = redis, run_id

    def run(self, *more: str) -> Run:
        return config.load(
            ROOT / "deploy/configs/demo.toml",
            overrides=[*self.settings, *more],
            environ=self.environ,
        )

    def tempsamp(
        self, *words: str, environ: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """A command with this run's file, as a user runs it."""
        arguments = [item for setting in self.settings for item in ("--set", setting)]
        return subprocess.run(
            [
                *(sys.executable, "-m", "tempsamp", words[0]),
                *("--config", "deploy/configs/demo.toml", *arguments, *words[1:]),
            ],
            cwd=ROOT,
            env={**os.environ, **self.environ, "COLUMNS": "200", **(environ or {})},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def wait_for(self, count: int) -> None:
        """Until so many replicas are registered."""

        async def names() -> int:
            broker = self.redis.broker(self.run_id)
            try:
                return len(await broker.replicas())
            finally:
                await broker.close()

        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            if asyncio.run(names()) == count:
                return
            time.sleep(0.05)
        raise AssertionError(f"not {count} replicas")


@pytest.fixture
def ring(redis_server: RedisServer, run_id: str) -> Ring:
    return Ring(redis_server, run_id)


@pytest.fixture
def two(ring: Ring) -> Iterator[tuple[Process, Process]]:
    """Replicas `a-…` and `b-…`, registered."""
    with (
        replica("well", *ring.settings, "rollout.replica=a", environ=ring.environ) as a,
        replica("well", *ring.settings, "rollout.replica=b", environ=ring.environ) as b,
    ):
        ring.wait_for(2)
        yield a, b


def test_a_drained_replica_ends_with_0_and_the_other_stays(
    ring: Ring, two: tuple[Process, Process]
) -> None:
    drained = ring.tempsamp("drain", "a-")
    assert drained.returncode == 0, drained.stderr
    assert [line.split(" ", 1)[1] for line in drained.stdout.splitlines()] == ["drains", "is gone"]
    assert two[0].process.wait(20) == 0
    assert two[1].process.poll() is None
    ring.wait_for(1)


def test_by_url_no_run_file_is_needed(ring: Ring, two: tuple[Process, Process]) -> None:
    drained = subprocess.run(
        [sys.executable, "-m", "tempsamp", "drain", two[1].url],
        cwd=ROOT,
        env={**os.environ, **TOKENS},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (drained.returncode, drained.stdout) == (0, f"{two[1].url} drains\n")
    assert two[1].process.wait(20) == 0


def test_what_cannot_be_drained_is_one_line(ring: Ring, two: tuple[Process, Process]) -> None:
    unknown = ring.tempsamp("drain", "c")
    assert unknown.returncode == 2
    assert unknown.stderr.count("\n") == 1
    assert "found 0 replicas" in unknown.stderr
    ambiguous = ring.tempsamp("drain", "")
    assert "found 2 replicas" in ambiguous.stderr
    refused = ring.tempsamp("drain", "a-", environ={"TEMPSAMP_CONTROL_TOKEN": "for-generate"})
    assert refused.returncode == 2
    assert "does not know the token" in refused.stderr
    by_url = subprocess.run(
        [sys.executable, "-m", "tempsamp", "drain", two[0].url],
        cwd=ROOT,
        env={**os.environ, "TEMPSAMP_CONTROL_TOKEN": "for-generate"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "403; set TEMPSAMP_TOKEN or TEMPSAMP_CONTROL_TOKEN" in by_url.stderr
    assert [one.process.poll() for one in two] == [None, None]


def test_nothing_there_is_exit_code_1_and_leaves_nothing_in_redis(ring: Ring) -> None:
    shown = ring.tempsamp("status")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith("tempsamp: found no replica and no learner of run")

    async def keys() -> object:
        broker = ring.redis.broker(ring.run_id)
        try:
            return await broker._connection.run("KEYS", f"tempsamp:{ring.run_id}:*")
        finally:
            await broker.close()

    assert asyncio.run(keys()) == []
    away = ring.tempsamp("status", "--set", "shared.redis_url=redis://127.0.0.1:1")
    assert away.returncode == 2
    assert away.stderr.count("\n") == 1
    assert "start it, or correct shared.redis_url" in away.stderr


def test_status_shows_replicas_learner_and_queues(
    ring: Ring,
    two: tuple[Process, Process],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="services.learner.status")

    async def feed() -> None:
        broker = ring.redis.broker(ring.run_id)
        await broker.wait_ready()
        await broker.feed_prompt(prompt_request(1))
        await broker.close()

    asyncio.run(feed())
    os.kill(two[1].process.pid, signal.SIGKILL)
    with serving(ring.run("learner.metrics_port=0", f"learner.run_dir={tmp_path}")) as status:
        status.ready(7)
        status.stepped(
            {
                "step": 8,
                "policy_version": 8,
                "learner/step_s": 2.0,
                "intake/staleness_steps_mean": 0.5,
            }
        )
        (url,) = [r.__dict__["url"] for r in caplog.records if r.message == "listening"]
        shown = ring.tempsamp("status", "--learner", url)
        found = json.loads(ring.tempsamp("status", "--learner", url, "--json").stdout)
    assert shown.returncode == 0, shown.stderr
    assert "training, step 8, version 8, staleness 0.50 steps" in shown.stdout
    assert "1 prompts wait" in shown.stdout
    assert "no answer" in shown.stdout
    assert "ConnectError" in shown.stdout
    assert found["learner"]["staleness_steps_mean"] == 0.5
    assert found["queues"]["prompts_waiting"] == 1
    by_name = {entry["status"]["replica"][0]: entry for entry in found["replicas"]}
    assert by_name["a"]["report"]["generates_in_work"] == 0
    assert by_name["a"]["status"]["phase"] == "syncing"
    assert by_name["b"]["report"] is None
    assert "Connect" in by_name["b"]["unreachable"]


def test_an_address_of_the_registry_is_told_no_token_before_it_proved_to_know_it(
    ring: Ring,
) -> None:
    """Whoever can write to Redis can have a replica listed."""
    told: list[str | None] = []

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.append(self.headers["Authorization"])
            identity = {"replica": "c", "url": url, "proof": "5e" * 32}
            body = json.dumps(identity).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asyncio.run(_list(ring, replica_status("c").model_copy(update={"url": url})))
        found = json.loads(ring.tempsamp("status", "--json").stdout)
        drained = ring.tempsamp("drain", "c")
        server.shutdown()
    assert "does not know the token" in found["replicas"][0]["unreachable"]
    assert drained.returncode == 2
    assert "does not know the token" in drained.stderr
    assert told == [None, None]


async def _list(ring: Ring, status: ReplicaStatus) -> None:
    broker = ring.redis.broker(ring.run_id)
    await broker.announce(status, ttl_s=60)
    await broker.close()


async def test_the_route_answers_before_the_process_ends() -> None:
    ended: list[bool] = []
    run = config.load(ROOT / "deploy/configs/demo.toml", environ={"TEMPSAMP_TOKEN": "secret"})
    drained = Replica(run, url="http://r", end=lambda: ended.append(True))
    load(drained, object()).version = 3
    transport = httpx.ASGITransport(create_app(drained))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://r", headers=bearer("secret")
    ) as client:
        for _ in range(2):
            answer = await client.post("/v1/drain")
            assert (answer.status_code, answer.json()["phase"]) == (202, "draining")
        assert (await client.get("/v1/status")).json()["status"]["phase"] == "draining"
        assert (await client.get("/readyz?serving=true")).status_code == 503
    assert ended == [True, True]
