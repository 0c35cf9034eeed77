"""A run has one learner."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import config
from common.config import Run
from common.errors import ConfigError, RunLostError
from services.learner.launch import OTHER_RANK_FAILED
from services.learner.state.lease import LOCK, RunLease, lock_file
from tests.fixtures.learner.ranks import RunRanks
from tests.fixtures.servers.places import ReadOnly
from tests.fixtures.servers.redis_server import RedisServer


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def run_in(folder: Path, server: RedisServer, run_id: str) -> Run:
    return config.parse(
        {
            "shared": {"run_id": run_id, "model": "none", "redis_url": server.url},
            "learner": {"rows": "none", "run_dir": str(folder), "steps": 1},
        },
        environ={"TEMPSAMP_REDIS_PASSWORD": server.password},
    )


class Open:
    """Opens leases on one Redis, each with a folder; forgets or closes them."""

    def __init__(
        self, server: RedisServer, run_id: str, folder: Path, runner: asyncio.Runner
    ) -> None:
        self.server, self.run_id, self.folder, self.runner = server, run_id, folder, runner
        self.opened: list[RunLease] = []

    def __call__(self, folder: str) -> RunLease:
        broker = self.server.broker(self.run_id)
        run = run_in(self.folder / folder, self.server, self.run_id)
        self.opened.append(RunLease(run, broker=broker, runner=self.runner))
        self.opened[-1].lock()
        return self.opened[-1]

    def kill(self, lease: RunLease) -> None:
        """As kill -9: the lock goes with the process, the lease in Redis stays."""
        lease._closed.set()
        assert lease._lock is not None
        lease._lock.close()


@pytest.fixture
def open_lease(
    redis_server: RedisServer, run_id: str, tmp_path: Path, runner: asyncio.Runner
) -> Iterator[Open]:
    opens = Open(redis_server, run_id, tmp_path, runner)
    yield opens
    for lease in opens.opened:
        lease.close()
        runner.run(lease._broker.close())


def test_second_learner_in_the_same_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    first = lock_file(tmp_path / "run" / LOCK)
    with pytest.raises(ConfigError, match="another learner is at work"):
        lock_file(tmp_path / "run" / LOCK)
    first.close()
    lock_file(tmp_path / "run" / LOCK).close()


def test_a_folder_that_cannot_be_written_is_refused_before_anything_loads(
    tmp_path: Path, read_only: ReadOnly
) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(ConfigError, match=r"learner\.run_dir: found .*run: Not a directory"):
        lock_file(tmp_path / "run" / LOCK)
    with (
        read_only.user(),
        pytest.raises(ConfigError, match=r"learner\.run_dir: .*Permission denied \(user"),
    ):
        lock_file(read_only.folder / "run" / LOCK)


def test_a_learner_elsewhere_waits_for_the_first_one_s_lease(open_lease: Open) -> None:
    first, second = open_lease("a"), open_lease("b")
    assert first.try_take().epoch == first.epoch > 0
    held = second.try_take()
    assert (held.epoch, second.epoch) == (0, 0)
    assert str(open_lease.folder / "a") in held.holder
    first.confirm()
    first.close()
    assert second.try_take().epoch > first.epoch
    second.confirm()


def test_one_that_was_killed_in_this_folder_is_not_waited_for(open_lease: Open) -> None:
    first = open_lease("a")
    first.try_take()
    open_lease.kill(first)
    second = open_lease("a")
    assert second.try_take().epoch > first.epoch


def test_one_that_wakes_up_after_another_took_over_stops(open_lease: Open) -> None:
    first, second = open_lease("a"), open_lease("b")
    first.try_take()
    first._closed.set()  # frozen: nothing renews it
    open_lease.runner.run(first._broker._connection.run("DEL", first._broker.fence._holder))
    assert second.try_take().epoch
    with pytest.raises(RunLostError, match="taken over by another learner"):
        first.confirm()
    second.confirm()


def test_the_folder_says_whose_it_is_while_redis_is_away(
    own_redis_server: RedisServer, run_id: str, tmp_path: Path, runner: asyncio.Runner
) -> None:
    opens = Open(own_redis_server, run_id, tmp_path, runner)
    lease = opens("a")
    lease.try_take()
    own_redis_server.kill()
    lease.confirm()
    (tmp_path / "a" / LOCK).write_text('{"holder": "another one", "epoch": 99999999999}\n')
    with pytest.raises(RunLostError):
        lease.confirm()
    lease.close()
    runner.run(lease._broker.close())


def test_a_thread_keeps_it_while_the_learner_is_busy(
    open_lease: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.learner.state.lease.HOLD_TTL_S", 0.3)
    monkeypatch.setattr("services.learner.state.lease.RENEW_EVERY_S", 0.05)
    first, second = open_lease("a"), open_lease("b")
    first.try_take()
    open_lease.runner.run(asyncio.sleep(1.0))
    assert not second.try_take().epoch
    first._closed.set()
    open_lease.runner.run(asyncio.sleep(0.5))
    assert second.try_take().epoch


@pytest.mark.parametrize("mode", ["shared", "apart"])
def test_ranks_go_on_only_in_the_folder_that_rank_0_signed(
    mode: str, run_ranks: RunRanks, tmp_path: Path
) -> None:
    run_ranks(2, "tests.fixtures.learner.folder_rank", str(tmp_path), mode, timeout_s=60)
    first, second = ((tmp_path / f"said-{rank}").read_text() for rank in range(2))
    if mode == "shared":
        assert (first, second) == ("", "")
        return
    assert f"without rank 0's files on {socket.gethostname()}" in first
    assert "learner.run_dir: found" in first
    assert second == f"code {OTHER_RANK_FAILED}"
