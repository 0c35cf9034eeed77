"""The right to be a run's only learner: a lock on its folder, a lease in Redis, an epoch.

The lock keeps a second learner out of the folder; the lease keeps one with another folder, or on
another machine, waiting. Neither stops a learner that was frozen and wakes up after its lease: that
is what the epoch is for. It only grows; Redis refuses what an earlier one feeds, acknowledges or
resets, and the run folder itself says whose it is before a checkpoint is renamed into it.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

from common.config import Run
from common.errors import ConfigError, QueueError, RunLostError
from common.queue.broker import Broker, Hold
from common.queue.disk import check_folder
from services.learner.launch import OTHER_RANK_FAILED
from services.learner.parallel import Ranks

logger = logging.getLogger(__name__)

HOLD_TTL_S = 20.0
"""A learner elsewhere waits this long for one that died."""
RENEW_EVERY_S = 4.0
CONFIRM_PATIENCE_S = 2.0
LOCK = "learner.lock"
SHARED_DISK_PATIENCE_S = 5.0
"""A network file system may show another node's file a little later."""
POLL_S = 0.1


class _Owner(BaseModel):
    """Content of the lock file: the last learner that had this folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    holder: str
    epoch: int


class RunLease:
    """For rank 0. Locked, then taken, then kept by a thread until it is closed."""

    def __init__(self, run: Run, *, broker: Broker, runner: asyncio.Runner) -> None:
        """Take nothing yet; `broker` gets the epoch."""
        self._shared = run.shared
        self._path = run.learner.run_dir / LOCK
        where = f"{socket.gethostname()}:{run.learner.run_dir.resolve()}"
        self._holder = f"{secrets.token_hex(8)} {where}"
        self._broker = broker
        self._runner = runner
        self._lock: IO[bytes] | None = None
        self._before: _Owner | None = None
        self._closed, self._lost = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def epoch(self) -> int:
        """Of this learner: higher than that of any before; 0 until the run is taken."""
        return self._broker.fence.epoch

    def lock(self) -> None:
        """Lock the run folder until this process ends, however it ends.

        Raises:
            ConfigError: another learner of this machine works in it.
        """
        self._lock = lock_file(self._path)
        self._before = _owner(self._path)

    def try_take(self) -> Hold:
        """Take the run if it is free, or if its last learner worked in this folder: that one's lock
        is ours, so it has ended."""
        before = self._before
        hold = self._runner.run(
            self._broker.fence.take(
                self._holder,
                ttl_s=HOLD_TTL_S,
                dead=before.holder if before else "",
                at_least=before.epoch + 1 if before else 0,
            )
        )
        if hold.epoch:
            self._sign()
            self._thread = threading.Thread(target=self._keep, daemon=True)
            self._thread.start()
        return hold

    def confirm(self) -> None:
        """Go on only if the run is still ours.

        While Redis is away nobody can take the run there; the folder is asked all the same.

        Raises:
            RunLostError: another learner has taken it.
        """
        if not self._lost.is_set():
            renewing = self._renew(self._broker, patience_s=CONFIRM_PATIENCE_S)
            try:
                held = self._runner.run(renewing)
            except QueueError:
                held = True
            if not held:
                self._lost.set()
        owner = _owner(self._path)
        if self._lost.is_set() or owner != _Owner(holder=self._holder, epoch=self.epoch):
            raise RunLostError(
                f"shared.run_id: {self._shared.run_id!r} was taken over by another learner while "
                f"this one (epoch {self.epoch}) did not renew its lease for {HOLD_TTL_S:.0f} s: it "
                "ends here, without a checkpoint"
            )

    def close(self) -> None:
        """Give the run up for who comes next."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(RENEW_EVERY_S)
        if self.epoch:
            dropping = self._broker.fence.drop(self._holder, patience_s=CONFIRM_PATIENCE_S)
            try:
                self._runner.run(dropping)
            except QueueError as error:
                logger.warning("lease not given up, it ends by itself", extra={"error": str(error)})
        if self._lock is not None:
            self._lock.close()

    def _sign(self) -> None:
        assert self._lock is not None
        self._lock.seek(0)
        self._lock.truncate()
        owner = _Owner(holder=self._holder, epoch=self.epoch)
        self._lock.write(owner.model_dump_json().encode() + b"\n")
        self._lock.flush()
        os.fsync(self._lock.fileno())

    async def _renew(self, broker: Broker, *, patience_s: float) -> bool:
        return await broker.fence.renew(
            self._holder, epoch=self.epoch, ttl_s=HOLD_TTL_S, patience_s=patience_s
        )

    def _keep(self) -> None:
        """The thread: long steps, publishes and checkpoints keep the lease."""
        with asyncio.Runner() as runner:
            broker = Broker.of(self._shared, should_stop=self._closed.is_set)
            while not self._closed.wait(RENEW_EVERY_S):
                try:
                    held = runner.run(self._renew(broker, patience_s=RENEW_EVERY_S))
                except QueueError:
                    continue  # the broker has said so
                if not held:
                    logger.error("the run was taken over by another learner")
                    self._lost.set()
                    break
            runner.run(broker.close())


def lock_file(path: Path) -> IO[bytes]:
    """Locked until it is closed or this process ends; its content is kept.

    Raises:
        ConfigError: another process has it, or the folder cannot be written.
    """
    check_folder(path.parent, knob="learner.run_dir")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a+b")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(
            f"learner.run_dir: another learner is at work in {path.parent}: stop it, or choose "
            "another"
        ) from error
    return lock


def refuse_folders_apart(run_dir: Path, *, ranks: Ranks) -> None:
    """Go on only if all ranks see the folder that rank 0 has signed; a collective.

    Each rank writes its own shards of a checkpoint, which would look whole to rank 0 without those
    of a node that has a `run_dir` to itself.

    Raises:
        ConfigError: on rank 0; names the machines.
        SystemExit: on the others.
    """
    signed = ranks.broadcast_json(
        (run_dir / LOCK).read_text(encoding="utf-8") if ranks.is_main else None
    )
    host = None if _sees(run_dir / LOCK, signed) else socket.gethostname()
    apart = sorted({host for host in ranks.gather_json(host) if host})
    if not apart:
        return
    if not ranks.is_main:
        raise SystemExit(OTHER_RANK_FAILED)
    raise ConfigError(
        f"learner.run_dir: found {run_dir} without rank 0's files on {', '.join(apart)}, wanted "
        "one folder that all ranks see: put it on a disk that the nodes share"
    )


def _sees(path: Path, content: str) -> bool:
    """Whether a file has that content, or gets it soon."""
    deadline = time.monotonic() + SHARED_DISK_PATIENCE_S
    while True:
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == content:
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)


def _owner(path: Path) -> _Owner | None:
    try:
        return _Owner.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
