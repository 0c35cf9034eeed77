"""Room for a run on this machine: disk and memory, against estimates.

    Run + Architecture -> findings

The formulas are below; `tempsamp plan` has those of GPUs.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from common.config import Learner, Run
from common.model.architecture import Architecture
from jobs.doctor.finding import Finding

AREA = "machine"
MASTER_BYTES, ADAM_BYTES = 4, 8
"""A parameter's, in a checkpoint: float32 weights and AdamW's two moments."""
EXPORT_BYTES = {"float32": 4, "bfloat16": 2}
MARGIN = 1.1
"""Free space wanted over what is known to be needed."""


def checkpoint_bytes(learner: Learner, *, dtype: str, architecture: Architecture) -> int:
    """Estimate of one checkpoint: float32 masters and AdamW of what is trained, and the export.

    Adapters are counted as nothing beside the export.
    """
    whole = architecture.parameters
    trained = whole - (architecture.tower_parameters if learner.freeze_vision else 0)
    states = 0 if learner.lora is not None else trained * ADAM_BYTES + whole * MASTER_BYTES
    return states + whole * EXPORT_BYTES[dtype]


def checkpoints_kept(learner: Learner) -> int:
    """How many lie on the disk at once: the newest, the best, and one that is being written."""
    best = learner.keep_best and learner.validation.rows is not None
    return learner.keep_checkpoints + best + 1


def disk(run: Run, *, architecture: Architecture) -> Iterator[Finding]:
    """Room for the run's checkpoints where it writes."""
    free = shutil.disk_usage(_existing(run.learner.run_dir)).free
    one = checkpoint_bytes(run.learner, dtype=run.shared.dtype, architecture=architecture)
    yield disk_finding(free, one=one, kept=checkpoints_kept(run.learner), where=run.learner.run_dir)


def disk_finding(free: int, *, one: int, kept: int, where: Path) -> Finding:
    """Judge free bytes against what checkpoints take (an estimate)."""
    found = f"{_gb(free)} free for {where}; {kept} checkpoints of about {_gb(one)}"
    if free >= MARGIN * one * kept:
        return Finding(AREA, "disk", "ok", found)
    cure = "free some, lower learner.keep_checkpoints, or put learner.run_dir on another disk"
    return Finding(AREA, "disk", "fail" if free < one else "warn", found, cure)


def writable(run: Run) -> Iterator[Finding]:
    """Whether this user may write where the run writes."""
    folder = _existing(run.learner.run_dir)
    if os.access(folder, os.W_OK | os.X_OK):
        yield Finding(AREA, "run folder", "ok", str(run.learner.run_dir))
        return
    cure = f"let user {os.geteuid()} write to {folder}, or set learner.run_dir"
    yield Finding(AREA, "run folder", "fail", f"{folder} cannot be written", cure)


def memory(run: Run, *, architecture: Architecture) -> Iterator[Finding]:
    """Host memory that is free, against what both sides hold on a CPU, or stage on one."""
    yield memory_finding(available_bytes(), wanted=host_bytes(run, architecture=architecture))


def host_bytes(run: Run, *, architecture: Architecture) -> int:
    """Estimate of what one rank and one replica keep in this machine's memory, activations aside.

    On a CPU: masters, gradients and AdamW (16 B a parameter), the replica's weights and its cache.
    On GPUs: snapshots that are staged on the host.
    """
    count, size = architecture.parameters, EXPORT_BYTES[run.shared.dtype]
    needed = 0
    if run.learner.device == "cpu":
        needed += 16 * count
    elif run.learner.weight_staging == "host":
        needed += size * count
    if run.rollout.device == "cpu":
        needed += 2 * size * count + (run.rollout.kv_cache_bytes or 0)
    elif run.rollout.weight_staging == "host":
        needed += size * count
    return needed


def memory_finding(available: int | None, *, wanted: int) -> Finding:
    """Judge available bytes; None: the system does not say."""
    if available is None:
        return Finding(AREA, "memory", "ok", "not known on this system")
    found = f"{_gb(available)} free; one rank and one replica keep about {_gb(wanted)} in it"
    if available >= MARGIN * wanted:
        return Finding(AREA, "memory", "ok", found)
    cure = "end what else runs, take a smaller model, or keep learner and replica apart"
    return Finding(AREA, "memory", "fail" if available < wanted else "warn", found, cure)


def available_bytes() -> int | None:
    """What the kernel would give; what a container may take, if that is less."""
    try:
        facts = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    available = int(re.findall(r"MemAvailable:\s+(\d+)", facts)[0]) * 1024
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, int(limit) - used)


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
