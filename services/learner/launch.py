"""The learner's processes on one node: `launch(Fleet, command) → exit code`, which is the ranks'.

Each rank is the command that was called, in an environment that says which rank it is (the names
are torchrun's, so `parallel` and torch read it alike); node 0 hosts the store where they meet.
SIGTERM and SIGINT are passed on, and waited for as long as the ranks take. When one fails, its
code is this process's, and the others are ended.
"""

import contextlib
import datetime
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from common.errors import ConfigError
from common.rest.address import host_port

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

logger = logging.getLogger(__name__)

LAUNCHER = "TEMPSAMP_LAUNCHER"
"""Environment of a rank: the process id of who started it."""
RUN_ID = "TORCHELASTIC_RUN_ID"
"""torch's sign that a process is a rank, here and under torchrun."""
OTHER_RANK_FAILED = 75
"""Exit code of a rank that ends because another one failed: that one's code is the learner's."""
POLL_S = 0.2
END_S = 10.0
"""For the other ranks once one has failed: alone they have nothing to save."""
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Fleet:
    """How many ranks there are, and which of them are started here.

    Attributes:
        ranks: of each node, >= 1.
        nodes: >= 1.
        node_rank: of this node, 0 to nodes - 1; node 0 has the learner's rank 0.
        meet: address of node 0 as all nodes reach it, HOST:PORT; may be None on a single node.
    """

    ranks: int
    nodes: int = 1
    node_rank: int = 0
    meet: str | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be."""
        if not 0 <= self.node_rank < self.nodes:
            wanted = f"0 to {self.nodes - 1} (--nodes {self.nodes})"
            raise ConfigError(f"--node-rank: found {self.node_rank}, wanted {wanted}")
        if self.nodes > 1 and self.meet is None:
            raise ConfigError("--meet: found nothing, wanted HOST:PORT of node 0 for --nodes > 1")
        _ = self.address

    @property
    def world_size(self) -> int:
        """Ranks of all nodes."""
        return self.nodes * self.ranks

    @property
    def address(self) -> tuple[str, int]:
        """Host and port where ranks meet; port 0: any that is free."""
        if self.meet is None:
            return LOOPBACK, 0
        with contextlib.suppress(ValueError):
            parts = urlsplit(f"//{self.meet}")
            if parts.hostname and parts.port and parts.netloc == self.meet and not parts.username:
                return parts.hostname, parts.port
        raise ConfigError(f"--meet: found {self.meet}, wanted HOST:PORT, such as node-1:29500")

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[str, int]]:
        """Where the ranks meet; on node 0 this hosts their store meanwhile.

        Raises:
            ConfigError: the port is taken.
        """
        host, port = self.address
        if self.node_rank > 0:
            yield host, port
            return
        # On a single node nobody else may reach it.
        bind = host if self.nodes == 1 and host == LOOPBACK else ""
        try:
            server = _listen(bind, port)
        except OSError as error:
            raise ConfigError(f"--meet: found port {port}, wanted a free one: {error}") from error
        port = server.getsockname()[1]
        store = _store(port, descriptor=server.detach())
        try:
            yield host, port
        finally:
            del store

    def environment(self, local_rank: int, *, host: str, port: int) -> dict[str, str]:
        """What makes a process a rank, over this process's own environment."""
        cores = len(os.sched_getaffinity(0))
        unless_set = {
            "OMP_NUM_THREADS": str(max(1, cores // self.ranks)),
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # as torchrun does: a hung collective ends
        }
        names: dict[str, object] = {
            "RANK": self.node_rank * self.ranks + local_rank,
            "LOCAL_RANK": local_rank,
            "GROUP_RANK": self.node_rank,
            "WORLD_SIZE": self.world_size,
            "LOCAL_WORLD_SIZE": self.ranks,
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
            RUN_ID: "tempsamp",
            "TORCHELASTIC_USE_AGENT_STORE": True,
            LAUNCHER: os.getpid(),
        }
        return {**unless_set, **os.environ, **{name: str(value) for name, value in names.items()}}


def is_rank() -> bool:
    """Whether a launcher of ours started this process."""
    return LAUNCHER in os.environ


def launch(
    fleet: Fleet,
    command: Sequence[str],
    *,
    shutdown_timeout_s: float | None = None,
    stopped_code: int = 0,
) -> int:
    """Run this node's ranks to their end.

    Args:
        command: each rank's, as words.
        shutdown_timeout_s: what ranks get after SIGTERM before they are killed; None: as long as
            they take.
        stopped_code: exit code after a signal that all ranks obeyed, 0 to 255.

    Returns:
        0, or `stopped_code`, when all ranks ended with 0; else the code of the first that failed,
        128 + the signal's number for one that was killed, 1 when a rank of another node failed.

    Raises:
        ConfigError: torchrun has started this process, or the port of --meet is taken.
    """
    if RUN_ID in os.environ:
        raise ConfigError(
            f"--ranks, --nodes: found {fleet.world_size} ranks in a rank of torchrun, "
            "wanted one launcher: leave out torchrun, or these options"
        )
    # Signals first: the store takes seconds to import, and a container's first process is sent
    # nothing that it does not listen to.
    with _Ranks(shutdown_timeout_s) as ranks, fleet.open() as (host, port):
        for local_rank in range(fleet.ranks):
            environment = fleet.environment(local_rank, host=host, port=port)
            ranks.start(command, environment)
        where = {"node_rank": fleet.node_rank, "world_size": fleet.world_size}
        logger.info(
            "ranks started", extra={"ranks": len(ranks), **where, "meet": host_port(host, port)}
        )
        code = ranks.wait()
        return stopped_code if code == 0 and ranks.was_asked else code


@dataclass
class _Ranks:
    """The processes; a context manager, inside which signals are passed on to them."""

    shutdown_timeout_s: float | None
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    """By rank."""
    _ended: "queue.SimpleQueue[tuple[str, int]]" = field(default_factory=queue.SimpleQueue)
    """Rank and code, in the order of their ends."""
    _asked: "queue.SimpleQueue[int]" = field(default_factory=queue.SimpleQueue)
    """Signals that came and are not passed on yet."""
    was_asked: bool = False
    """Whether a signal was passed on."""
    _kill_at_s: float = float("inf")
    _code: int | None = None
    _failed: bool = False

    def __len__(self) -> int:
        return len(self._processes)

    def __enter__(self) -> Self:
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._hear) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self._asked.put(number)

    def start(self, command: Sequence[str], environment: dict[str, str]) -> None:
        """Start a rank."""
        rank = environment["RANK"]
        process = subprocess.Popen(command, env=environment)
        self._processes[rank] = process
        # A thread each: two that end within one poll would be in no order.
        watch = threading.Thread(
            target=lambda: self._ended.put((rank, process.wait())), daemon=True
        )
        watch.start()

    def wait(self) -> int:
        """Until all have ended; the code of them all."""
        left = len(self._processes)
        while left:
            self._pass_on()
            self._kill_late()
            if self._code is not None:
                # Again and again: as long as a rank trains it takes one for a word to save.
                self._send(signal.SIGTERM)
            with contextlib.suppress(queue.Empty):
                rank, code = self._ended.get(timeout=POLL_S)
                left -= 1
                if code:
                    self._fail(rank, code)
        return (self._code or 1) if self._failed else 0

    def _pass_on(self) -> None:
        while not self._asked.empty():
            number = self._asked.get()
            name = signal.Signals(number).name
            logger.info("%s: passed on to the ranks", name, extra={"ranks": len(self)})
            self._send(number)
            self.was_asked = True
            if self.shutdown_timeout_s is not None:
                self._kill_within(self.shutdown_timeout_s)

    def _fail(self, rank: str, code: int) -> None:
        """The first that fails of itself gives the code; then the others are ended."""
        self._failed = True
        self._kill_within(END_S)
        if code == OTHER_RANK_FAILED or self._code is not None:
            return
        self._code = code if code > 0 else 128 - code
        how = f"ended with code {code}" if code > 0 else f"died of {signal.Signals(-code).name}"
        # Who dies of the signal that was passed on had nothing to save yet: no fault of the run.
        is_fault = not (self.was_asked and code in (-signal.SIGTERM, -signal.SIGINT))
        level = logging.CRITICAL if is_fault else logging.WARNING
        facts = {"exit_code": self._code}
        logger.log(level, "rank %s %s: ending the others", rank, how, extra=facts)

    def _kill_late(self) -> None:
        if time.monotonic() < self._kill_at_s:
            return
        self._kill_at_s = float("inf")
        late = [rank for rank, process in self._processes.items() if process.poll() is None]
        if late:
            # Without a failure it is SIGTERM that they had time for.
            knob = {} if self._failed else {"knob": "--shutdown-timeout"}
            logger.error("ranks have not ended in time: killed", extra={"ranks": late, **knob})
        if self._failed and self._code is None:
            self._code = 1  # not that of those who are killed now
        self._send(signal.SIGKILL)

    def _kill_within(self, seconds: float) -> None:
        self._kill_at_s = min(self._kill_at_s, time.monotonic() + seconds)

    def _send(self, number: int) -> None:
        for process in self._processes.values():
            process.send_signal(number)


def _listen(host: str, port: int) -> socket.socket:
    if host:
        return socket.create_server((host, port))
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=both)


def _store(port: int, *, descriptor: int) -> "TCPStore":
    """A store that takes a listening socket over and lives as long as this process holds it."""
    from torch._C._distributed_c10d import TCPStore

    return TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        timeout=datetime.timedelta(seconds=60),
        wait_for_workers=False,
        master_listen_fd=descriptor,
    )


def own_command() -> list[str]:
    """The command line of this process, to be started again."""
    return [sys.executable, *sys.orig_argv[1:]]
