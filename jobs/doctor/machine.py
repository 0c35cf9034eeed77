"""This machine, before anything of a run is looked at: Python, packages, redis-server, GPUs.

installed things -> findings
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from common.config import Run
from common.errors import QueueError
from jobs.doctor.finding import Finding
from jobs.local.redis import find_redis_server

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "deploy/locks"
AREA = "machine"
SHOWN_PACKAGES = 4
MIN_DRIVER = 525
"""Of NVIDIA's: the oldest that runs CUDA 12."""
_SMI = ("name", "memory.total", "driver_version")


def python() -> Iterator[Finding]:
    """The interpreter against what the package was made for."""
    wanted = metadata.metadata("tempsamp")["Requires-Python"] or ""
    found = ".".join(map(str, sys.version_info[:3]))
    yield python_finding(found, wanted=wanted)


def python_finding(found: str, *, wanted: str) -> Finding:
    """Judge a version of Python."""
    if SpecifierSet(wanted).contains(Version(found)):
        return Finding(AREA, "python", "ok", f"{found} ({sys.executable})")
    cure = "make the environment with such a Python: `PYTHON=python3.11 make setup`"
    return Finding(AREA, "python", "fail", f"{found}, wanted {wanted}", cure)


def packages() -> Iterator[Finding]:
    """What is installed against its lock: that of the CPU has a torch of its own."""
    lock = LOCKS / f"{'cpu' if '+cpu' in (_installed('torch') or '') else 'cuda'}.lock"
    if not lock.is_file():
        found = f"no {lock.name} beside the code (an image has none): not compared"
        yield Finding(AREA, "packages", "ok", found)
        return
    yield packages_finding(pins(lock.read_text(encoding="utf-8")), lock=lock.name)


def pins(lock: str) -> dict[str, str]:
    """Name → version of a lock's text, as far as they are for this interpreter."""
    lines = (line.partition(" #")[0].strip() for line in lock.splitlines())
    made = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    return {
        pin.name: next(iter(pin.specifier)).version
        for pin in made
        if pin.marker is None or pin.marker.evaluate()
    }


def packages_finding(wanted: Mapping[str, str], *, lock: str) -> Finding:
    """Compare installed distributions with pins; local parts of versions (+cpu) do not count."""
    differ = [
        f"{name} {version or 'is not there'} (wanted {wanted[name]})"
        for name, version in ((name, _installed(name)) for name in wanted)
        if version is None or Version(version).public != Version(wanted[name]).public
    ]
    if not differ:
        return Finding(AREA, "packages", "ok", f"{len(wanted)} as {lock} pins them")
    more = len(differ) - SHOWN_PACKAGES
    found = ", ".join(differ[:SHOWN_PACKAGES]) + (f" and {more} more" if more > 0 else "")
    cure = f"`make setup` installs {lock}; other versions are untested"
    return Finding(AREA, "packages", "warn", found, cure)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def redis_server() -> Iterator[Finding]:
    """The binary that local runs and the comparison of the two engines start."""
    try:
        yield Finding(AREA, "redis-server", "ok", str(find_redis_server()))
    except QueueError as error:
        cure = "install one of them, or use --no-engines: a run on other machines needs none here"
        yield Finding(AREA, "redis-server", "warn", str(error), cure)


# --- GPUs -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card, as the driver names it."""

    name: str
    memory_bytes: int
    driver: str


def gpus_of(listing: str) -> list[Gpu]:
    """Lines of `nvidia-smi --query-gpu=name,memory.total,driver_version` in MiB."""
    found = []
    for line in filter(None, map(str.strip, listing.splitlines())):
        name, memory_mib, driver = (part.strip() for part in line.rsplit(",", 2))
        found.append(Gpu(name, int(memory_mib) * 2**20, driver))
    return found


def installed_gpus() -> list[Gpu]:
    """Of this machine; none without a driver."""
    if (smi := shutil.which("nvidia-smi")) is None:
        return []
    asked = [smi, f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, encoding="utf-8", timeout=30, check=False)
    return gpus_of(done.stdout) if done.returncode == 0 else []


def gpus(run: Run, *, installed: Sequence[Gpu], sees_cuda: bool) -> Iterator[Finding]:
    """Cards and driver, where the run wants any.

    Args:
        installed: what the driver lists.
        sees_cuda: whether torch reaches a card.
    """
    wants = [f"{side}.device" for side in ("learner", "rollout") if _device(run, side) == "cuda"]
    if not wants:
        found = f"none wanted; {len(installed)} here" if installed else "none wanted, none here"
        yield Finding(AREA, "GPUs", "ok", found)
        return
    if not installed:
        cure = f"run on a machine that has one, or set {' and '.join(wants)} = 'cpu'"
        yield Finding(AREA, "GPUs", "fail", f"none, wanted one for {' and '.join(wants)}", cure)
        return
    names = ", ".join(f"{gpu.name} ({gpu.memory_bytes / 1e9:.0f} GB)" for gpu in installed)
    if not sees_cuda:
        cure = (
            "install the CUDA lock (`make setup DEVICE=cuda`), and look at CUDA_VISIBLE_DEVICES "
            f"({os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})"
        )
        yield Finding(AREA, "GPUs", "fail", f"{names}, and torch reaches none of them", cure)
        return
    yield Finding(AREA, "GPUs", "ok", names)
    yield driver_finding(installed[0].driver)


def driver_finding(driver: str) -> Finding:
    """Judge a version of NVIDIA's driver."""
    if int(driver.partition(".")[0]) >= MIN_DRIVER:
        return Finding(AREA, "driver", "ok", driver)
    cure = "install a newer driver on the host; no container brings one"
    return Finding(AREA, "driver", "fail", f"{driver}, wanted {MIN_DRIVER} or later", cure)


def _device(run: Run, side: str) -> str:
    return str(getattr(run, side).device)


def torch_sees_cuda() -> bool:
    """Asked in a process of its own: a CUDA context must not stay in this one."""
    asked = [
        sys.executable,
        "-c",
        "import json, torch; print(json.dumps(torch.cuda.is_available()))",
    ]
    done = subprocess.run(asked, capture_output=True, encoding="utf-8", timeout=120, check=False)
    return done.returncode == 0 and bool(json.loads(done.stdout.splitlines()[-1]))
