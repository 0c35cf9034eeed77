"""This machine, before anything of a run is looked at: Python, packages, redis-server, GPUs.

installed things -> findings
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from common.config import Run
from common.errors import QueueError
from common.rest.address import loopback_behind
from jobs.doctor.finding import Finding, one_line
from jobs.local.redis import find_redis_server

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "deploy/locks"
AREA = "machine"
SHOWN_PACKAGES = 4
OLDEST_DRIVERS = {12: 525, 13: 580}
"""Release of CUDA → the first of NVIDIA's driver branches that runs it."""
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


def names(run: Run) -> Iterator[Finding]:
    """Names by which other machines are to reach this one, and cannot."""
    hosts = {
        "learner.host": run.learner.host,
        "rollout.host": run.rollout.host,
        "reward.host": run.reward.host,
    }
    for knob, host in hosts.items():
        if (address := loopback_behind(host)) is not None:
            found = f"{host} is {address} here: no other machine reaches what listens there"
            cure = (
                f"set it to an address of this machine, or take {host} off that line of /etc/hosts"
            )
            yield Finding(AREA, knob, "warn", found, cure)


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


@dataclass(frozen=True, slots=True)
class Torch:
    """What the installed torch says of itself."""

    cuda: str | None
    """Release of CUDA that it is built for, such as 13.0; None: for none."""
    reaches: bool
    """Whether it reaches a card."""
    said: str = ""
    """Why not, in its own words."""

    @property
    def oldest_driver(self) -> int:
        """Of NVIDIA's; 0 without CUDA, or with a release that this module does not know."""
        return OLDEST_DRIVERS.get(int((self.cuda or "0").partition(".")[0]), 0)


def gpus(run: Run, *, installed: Sequence[Gpu], ask: Callable[[], Torch]) -> Iterator[Finding]:
    """Cards and driver, where the run wants any.

    Args:
        installed: what the driver lists.
        ask: `installed_torch`, which takes seconds.
    """
    if not (wants := _wanting(run)):
        found = f"none wanted; {len(installed)} here" if installed else "none wanted, none here"
        yield Finding(AREA, "GPUs", "ok", found)
        return
    if not installed:
        cure = f"run on a machine that has one, or set {' and '.join(wants)} = 'cpu'"
        yield Finding(AREA, "GPUs", "fail", f"none, wanted one for {' and '.join(wants)}", cure)
        return
    torch = ask()
    # First: above an old driver torch reaches no card, whatever else is mended.
    driver = driver_finding(installed[0].driver, torch=torch)
    yield driver
    names = ", ".join(f"{gpu.name} ({gpu.memory_bytes / 1e9:.0f} GB)" for gpu in installed)
    if torch.reaches:
        yield Finding(AREA, "GPUs", "ok", names)
    elif driver.level == "ok":
        found = f"{names}, and torch reaches none of them: {one_line(torch.said)}"
        yield Finding(AREA, "GPUs", "fail", found, _cure(torch))


def driver_finding(driver: str, *, torch: Torch) -> Finding:
    """Judge a version of NVIDIA's driver by what torch was built for."""
    if int(driver.partition(".")[0]) >= (oldest := torch.oldest_driver):
        return Finding(AREA, "driver", "ok", driver)
    found = f"{driver}, wanted {oldest} or later for torch's CUDA {torch.cuda}"
    if torch.reaches:
        return Finding(AREA, "driver", "ok", f"{found}; forward compatibility makes up for it")
    cure = "install a newer driver on the host; docs/cluster.md (Drivers) has two other ways"
    return Finding(AREA, "driver", "fail", found, cure)


def _cure(torch: Torch) -> str:
    if torch.cuda is None:
        return "install the CUDA lock (`make setup DEVICE=cuda`)"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    return (
        f"look at CUDA_VISIBLE_DEVICES ({visible}), at whether /dev/nvidia* may be opened, and on "
        "nodes with NVSwitch at nvidia-fabricmanager, which has to run in the driver's version"
    )


def _wanting(run: Run) -> list[str]:
    devices = {"learner.device": run.learner.device, "rollout.device": run.rollout.device}
    return [knob for knob, device in devices.items() if device == "cuda"]


ASKED = """
import json, torch
said = ""
try:
    torch.cuda.init()
except (RuntimeError, AssertionError) as error:
    said = str(error)
print(json.dumps([torch.version.cuda, torch.cuda.is_available(), said]))
"""


def installed_torch() -> Torch:
    """Asked in a process of its own: a CUDA context must not stay in this one."""
    asked = [sys.executable, "-c", ASKED]
    done = subprocess.run(asked, capture_output=True, encoding="utf-8", timeout=120, check=False)
    if done.returncode != 0:
        return Torch(None, reaches=False, said="".join(done.stderr.splitlines()[-1:]))
    cuda, reaches, said = json.loads(done.stdout.splitlines()[-1])
    return Torch(cuda, reaches=reaches, said=said)


def compiler(run: Run) -> Iterator[Finding]:
    """What Triton builds its launchers with, at the first kernel of learner or replica."""
    if not _wanting(run):
        return
    named = os.environ.get("CC")
    path = shutil.which(named) if named else shutil.which("gcc") or shutil.which("clang")
    scheme = sysconfig.get_default_scheme()
    # Debian's own interpreter names a folder that its packages leave empty; Triton knows.
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    header = Path(sysconfig.get_path("include", scheme)) / "Python.h"
    yield compiler_finding(path, named=named, header=header)


def compiler_finding(path: str | None, *, named: str | None, header: Path) -> Finding:
    """Judge a C compiler, which CC may name, and Python's header."""
    if path is not None and header.is_file():
        return Finding(AREA, "C compiler", "ok", f"{path}, {header}")
    lacks = [] if path else [f"no {named} (CC)" if named else "no gcc, no clang"]
    lacks += [] if header.is_file() else [f"no {header}"]
    version = ".".join(map(str, sys.version_info[:2]))
    cure = (
        f"install gcc and python{version}-dev (python{version}-devel on RHEL): without them "
        "Triton's first kernel fails"
    )
    return Finding(AREA, "C compiler", "fail", ", ".join(lacks), cure)
