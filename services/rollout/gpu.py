"""Which GPUs a replica uses: those it is given, or free ones that it claims before vLLM loads.

    await claim(run.rollout, replica=name)   # `rollout.gpu = "claim"`: sets CUDA_VISIBLE_DEVICES

`rollout.gpu_lock_dir` holds a file for each GPU. A replica locks it (flock) exclusively, writes who
it is, and keeps it locked, shared, while it lives; so do vLLM's processes (`keep_claimed`), which a
killed replica leaves behind for a moment with the card's memory. A GPU is free when nobody at all
holds its file, and the kernel lets go of locks whatever way a process ends.

Files are named after the running kernel and not after the host: containers of one machine have
names of their own and have to meet, machines that share the folder must not. The folder belongs on
a disk of the machine all the same: over NFS a lock needs the server, and one of a machine that
broke down stays until the server gives it up. What is locked here binds replicas alone; keep the
learner's GPUs out by CUDA_VISIBLE_DEVICES. A card that MIG divides counts as one.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import Rollout
from common.errors import ConfigError, EngineError
from common.logs import NowAndThen

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
CLAIMED = "TEMPSAMP_GPU_LOCKS"
"""Tells vLLM's processes which files their replica holds: a JSON list of paths."""
LIST_TIMEOUT_S = 60.0
"""A driver without persistence mode takes seconds for each card."""
RETRY_EVERY_S = 1.0
SPEAK_EVERY_S = 30.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Differs between machines and boots, and is the same in all containers of one machine."""
LISTED = re.compile(r"^GPU (\d+): .*?(?:\(UUID: (GPU-[\w-]+)\))?$", re.MULTILINE)


@dataclass(frozen=True)
class Gpu:
    """One card of this machine."""

    index: int
    """Its number in nvidia-smi, which orders by PCI bus."""
    uuid: str | None = None

    @property
    def device(self) -> str:
        """How CUDA_VISIBLE_DEVICES names it."""
        return self.uuid or str(self.index)


def nvidia_smi() -> list[Gpu]:
    """Every card that the driver shows to this process.

    Raises:
        EngineError: nvidia-smi is not there, fails or hangs.
    """
    remedy = '; give each replica its GPU by CUDA_VISIBLE_DEVICES and set rollout.gpu = "given"'
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=LIST_TIMEOUT_S,
            check=True,
        )
    except FileNotFoundError as error:
        raise EngineError(
            f"rollout.gpu: found no nvidia-smi, wanted it to count this machine's GPUs{remedy}"
        ) from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip()
        raise EngineError(f"rollout.gpu: nvidia-smi -L failed: {said}{remedy}") from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"rollout.gpu: nvidia-smi -L gave no answer in {LIST_TIMEOUT_S:.0f} s{remedy}"
        ) from error
    return [Gpu(int(index), uuid or None) for index, uuid in LISTED.findall(listed.stdout)]


def visible(gpus: Sequence[Gpu], allowed: str | None) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES allows, in its order; all of them when it is not set.

    Raises:
        ConfigError: it names one that is not there.
    """
    if allowed is None:
        return list(gpus)
    names = (name.strip() for name in allowed.split(","))
    return list(dict.fromkeys(_named(name, gpus) for name in names if name not in ("", "-1")))


def _named(name: str, gpus: Sequence[Gpu]) -> Gpu:
    """By number, or by UUID, of which CUDA takes any beginning that is unique."""
    matching = [
        gpu
        for gpu in gpus
        if name == str(gpu.index) or (name.startswith("GPU-") and gpu.device.startswith(name))
    ]
    if len(matching) != 1:
        known = ", ".join(f"{gpu.index} ({gpu.device})" for gpu in gpus) or "none"
        raise ConfigError(f"{VISIBLE}: found {name!r}, wanted one of this machine's GPUs: {known}")
    return matching[0]


async def claim(
    rollout: Rollout,
    *,
    replica: str,
    gpus: Callable[[], Sequence[Gpu]] = nvidia_smi,
    environ: MutableMapping[str, str] = os.environ,
) -> None:
    """Claim `rollout.tensor_parallel` free GPUs until this process and vLLM's end, all or none.

    Waits for as many as long as `rollout.gpu_wait_s` says, and says who holds them.

    Args:
        replica: name that others read in the files.
        gpus: counts the cards of this machine.
        environ: where CUDA_VISIBLE_DEVICES is read, and set to what was claimed.

    Raises:
        ConfigError: fewer are visible than wanted, or there is no lock folder.
        EngineError: they cannot be counted or locked, or none was free in time.
    """
    wanted = rollout.tensor_parallel
    seen = visible(await asyncio.to_thread(gpus), environ.get(VISIBLE))
    if len(seen) < wanted:
        raise ConfigError(
            f"rollout.tensor_parallel: found {wanted}, wanted at most {len(seen)}, the GPUs that "
            f"this process sees ({VISIBLE} {environ.get(VISIBLE, 'is not set')})"
        )
    files = LockFiles.of(rollout, replica=replica)
    claimed = await _claimed(files, seen, wanted=wanted, wait_s=rollout.gpu_wait_s)
    environ[VISIBLE] = ",".join(gpu.device for gpu in claimed)
    environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # What the numbers are: nvidia-smi's.
    environ[CLAIMED] = json.dumps([os.fspath(files.path(gpu)) for gpu in claimed])
    logger.info("claimed GPUs", extra={"gpus": environ[VISIBLE]})


async def _claimed(
    files: "LockFiles", gpus: Sequence[Gpu], *, wanted: int, wait_s: float | None
) -> list[Gpu]:
    started, word = time.monotonic(), NowAndThen(SPEAK_EVERY_S)
    while not (claimed := files.take(gpus, wanted)):
        if wait_s is not None and time.monotonic() - started > wait_s:
            raise EngineError(
                f"found no {wanted} free of {len(gpus)} GPUs in {wait_s:g} s (rollout.gpu_wait_s); "
                f"{files.holders(gpus)}"
            )
        if word.is_due():
            holders = files.holders(gpus)
            logger.info("waiting for free GPUs", extra={"wanted": wanted, "held": holders})
        await asyncio.sleep(RETRY_EVERY_S)
    return claimed


@dataclass(frozen=True)
class LockFiles:
    """The lock folder, as one replica uses it."""

    folder: Path
    machine: str
    """What this machine's files begin with."""
    replica: str

    @classmethod
    def of(cls, rollout: Rollout, *, replica: str) -> "LockFiles":
        """Raises ConfigError without a folder: one made here would be shared with nobody."""
        folder = rollout.gpu_lock_dir
        if folder is None or not folder.is_dir():
            raise ConfigError(
                f"rollout.gpu_lock_dir: found no folder {folder}, wanted one that all replicas of "
                "this machine share"
            )
        return cls(folder.resolve(), BOOT_ID.read_text(encoding="utf-8").strip(), replica)

    def path(self, gpu: Gpu) -> Path:
        """The file that stands for a GPU. It is never deleted: who waits may have it open."""
        return self.folder / f"{self.machine}.{gpu.device}.lock"

    def take(self, gpus: Sequence[Gpu], wanted: int) -> list[Gpu]:
        """Lock the first `wanted` free ones, for good; none when there are fewer.

        Replicas take turns, so that two that want two each never hold one each.
        """
        held: list[tuple[Gpu, int]] = []
        with self._turn() as is_mine:
            for gpu in gpus if is_mine else ():
                if len(held) < wanted and (lock := self._take(gpu)) is not None:
                    held.append((gpu, lock))
            if len(held) == wanted:
                return [gpu for gpu, _ in held]
            for _, lock in held:
                os.close(lock)
        return []

    def holders(self, gpus: Sequence[Gpu]) -> str:
        """Who last claimed each, in words."""
        return "; ".join(f"{gpu.device}: {self._holder(gpu)}" for gpu in gpus)

    def _holder(self, gpu: Gpu) -> str:
        try:
            who = json.loads(self.path(gpu).read_text(encoding="utf-8"))
            return f"{who['replica']} (pid {who['pid']} on {who['host']})"
        except (OSError, ValueError, TypeError, KeyError):
            return "nobody known"

    @contextlib.contextmanager
    def _turn(self) -> Iterator[bool]:
        lock = self._open(self.folder / f"{self.machine}.turn.lock")
        try:
            yield self._flock(lock, fcntl.LOCK_EX)
        finally:
            os.close(lock)

    def _take(self, gpu: Gpu) -> int | None:
        """A descriptor that holds the GPU while it is open; None when somebody holds it."""
        lock = self._open(self.path(gpu))
        if not self._flock(lock, fcntl.LOCK_EX):
            os.close(lock)
            return None
        who = {"replica": self.replica, "pid": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(who).encode(), 0)
        # Shared from now on, for vLLM's processes to join; nobody comes between in our turn.
        self._flock(lock, fcntl.LOCK_SH)
        return lock

    def _open(self, path: Path) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._unusable(error) from error

    def _flock(self, lock: int, kind: int) -> bool:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._unusable(error) from error
        return True

    def _unusable(self, error: OSError) -> EngineError:
        return EngineError(
            f"rollout.gpu_lock_dir: found {self.folder}: {error.strerror}, wanted a folder in "
            "which this user can write and lock files"
        )


def keep_claimed() -> None:
    """In a process of vLLM: hold what its replica claimed, until this process ends as well.

    Raises:
        EngineError: the replica is gone, and another one has its GPU.
    """
    for path in json.loads(os.environ.get(CLAIMED, "[]")):
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EngineError(f"{path}: another replica has claimed this engine's GPU") from error
