"""A demo that runs, as chaos sees it: its processes by role, the steps that it makes, who is ready.

    with Ring(run, command) as ring: ring.find("engine"); ring.look(); ring.steps

Everything is seen from outside: the process table, the logs, /readyz. Only processes that the demo
started are known here, by their ancestors and by the mark that they carry.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from common.rest import direct
from jobs.chaos.schedule import Victim
from jobs.demo.run import replica_names
from jobs.local.spawning import MARK, carriers, end_rest, is_running, marked, spawn

logger = logging.getLogger(__name__)

WORDS: Mapping[Victim, str] = {
    "redis": "redis-server",
    "reward": "tempsamp reward serve",
    "rollout": "tempsamp rollout serve",
    "learner": "tempsamp learner",
}
"""In the command lines of the demo's own children; settings name other services too."""
PARENTS: Mapping[Victim, Victim] = {"engine": "rollout", "rank": "learner"}
NO_ENGINE = "resource_tracker"
"""In the command line of the helper that Python starts beside other processes."""
LISTENING: Mapping[Victim, str] = {"rollout": "rollout", "engine": "rollout", "reward": "reward"}
"""Victims whose replacement has to answer that it is ready, and in which service."""
PROBE_TIMEOUT_S = 0.5
GONE_S = 5.0
STOP_S = 60.0


@dataclass
class Log:
    """A log that grows; what it says since the last look."""

    path: Path
    _read: int = 0

    def new(self) -> list[dict[str, Any]]:
        """JSON lines that were written since; a log that was put aside begins anew."""
        if not self.path.exists():
            return []
        if self.path.stat().st_size < self._read:
            self._read = 0
        with self.path.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(end)
        return [line for text in whole.split(b"\n") if (line := _parsed(text))]


@dataclass
class Ring:
    """One demo; a context manager that leaves nothing of it behind."""

    run_dir: Path
    command: Sequence[str]
    replicas: int = 1
    ranks: int = 1
    steps: int = 0
    """Optimizer steps that were seen, those that were done again included."""
    reached: int = 0
    """The highest number of a step so far."""
    urls: dict[str, str] = field(default_factory=dict)
    """Child → where its latest life listens."""
    _seen: dict[int, float] = field(default_factory=dict)
    """Process id → when it was created, of all that the demo ever started."""

    def __enter__(self) -> Self:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        environment = marked({**os.environ, "COLUMNS": "200"})
        self.mark = environment[MARK]
        self.output = self.run_dir / "demo.log"
        self.demo: subprocess.Popen[bytes] = spawn(self.command, environment, self.output)
        logs = self.run_dir / "logs"
        self._learner = Log(logs / "learner.log")
        self._services = {
            name: Log(logs / f"{name}.log") for name in ("reward", *replica_names(self.replicas))
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        end_rest(self.demo, mark=self.mark)
        for process in self._survivors():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    @property
    def is_over(self) -> bool:
        """Whether the demo has ended."""
        return self.demo.poll() is not None

    def look(self) -> None:
        """See what happened since the last look; to be called often."""
        for line in self._learner.new():
            if line.get("event") == "step":
                self.steps += 1
                self.reached = max(self.reached, line["step"])
        for name, log in self._services.items():
            for line in log.new():
                if line.get("event") == "listening":
                    self.urls[name] = line["url"]
        for process in self._below():
            self._seen.setdefault(process.pid, process.create_time())

    def find(self, victim: Victim) -> list[psutil.Process]:
        """The processes of a role, oldest first; none while they are being started again."""
        if victim == "rank" and self.ranks == 1:
            return self.find("learner")  # it has no launcher
        if (above := PARENTS.get(victim)) is not None:
            return [
                process
                for parent in self.find(above)
                for process in _children(parent)
                if _is_below(process, victim)
            ]
        try:
            children = _children(psutil.Process(self.demo.pid))
        except psutil.NoSuchProcess:
            return []
        return [child for child in children if _has(child, WORDS[victim])]

    def wanted(self, victim: Victim) -> int:
        """Processes of a role in a whole ring."""
        return {"rollout": self.replicas, "engine": self.replicas, "rank": self.ranks}.get(
            victim, 1
        )

    def is_ready(self, service: str) -> bool:
        """Whether all of a service answer that they are ready."""
        names = replica_names(self.replicas) if service == "rollout" else [service]
        return all(_is_ready(self.urls.get(name)) for name in names)

    def stop(self) -> None:
        """End the demo as Ctrl-C does; what it leaves behind stays."""
        if not self.is_over:
            self.demo.send_signal(signal.SIGINT)
            try:
                self.demo.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.demo.kill()
                self.demo.wait()

    def orphans(self) -> list[str]:
        """Command lines of what still runs though the demo has ended."""
        deadline = time.monotonic() + GONE_S
        while (left := self._survivors()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [f"{process.pid} {' '.join(_words(process))[:200]}" for process in left]

    def tail(self) -> str:
        """The end of what the demo wrote."""
        return "\n".join(
            self.output.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        )

    def _below(self) -> list[psutil.Process]:
        try:
            return list(psutil.Process(self.demo.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def _survivors(self) -> list[psutil.Process]:
        """vLLM writes its name over its environment, so a mark alone does not find all."""
        found = {process.pid: process for process in carriers(self.mark)}
        for pid, created_s in self._seen.items():
            try:
                process = psutil.Process(pid)
                if process.create_time() == created_s:
                    found[pid] = process
            except psutil.NoSuchProcess:
                continue
        found.pop(self.demo.pid, None)
        return [process for process in found.values() if is_running(process)]


def send(process: psutil.Process, number: signal.Signals) -> bool:
    """Send a signal; False if the process has just ended."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def _is_ready(url: str | None) -> bool:
    if url is None:
        return False
    try:
        with direct.client(timeout=PROBE_TIMEOUT_S) as client:
            return client.get(f"{url}/readyz").is_success
    except httpx.HTTPError:
        return False


def _children(parent: psutil.Process) -> list[psutil.Process]:
    try:
        return list(parent.children())
    except psutil.NoSuchProcess:
        return []


def _is_below(process: psutil.Process, victim: Victim) -> bool:
    if victim == "rank":
        return _has(process, "tempsamp learner")
    return not _has(process, NO_ENGINE)


def _has(process: psutil.Process, words: str) -> bool:
    return words in " ".join(_words(process))


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _parsed(text: bytes) -> dict[str, Any] | None:
    if not text.startswith(b"{"):
        return None
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
