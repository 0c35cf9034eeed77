"""`tempsamp doctor` of a machine: each check breaks by exactly what it looks at."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import config
from common.config import Run
from common.errors import ConfigError, QueueError
from common.model.architecture import architecture_of
from jobs.doctor import machine, room
from jobs.doctor.finding import Finding, exit_code, findings_of, one_line
from jobs.doctor.machine import Gpu, Torch
from tests.fixtures.pages.documents import ROOT

DEMO = ROOT / "deploy/configs/demo.toml"
TINY = architecture_of(str(ROOT / "deploy/tiny-qwen3vl"))
GB = 10**9


def run(*settings: str) -> Run:
    return config.load(DEMO, overrides=settings)


def only(found: Iterator[Finding]) -> Finding:
    (finding,) = found
    return finding


@pytest.mark.parametrize(
    ("level", "code"), [(["ok"], 0), (["ok", "warn"], 1), (["fail", "warn"], 2), ([], 0)]
)
def test_the_worst_line_is_the_exit_code(level: list[str], code: int) -> None:
    assert exit_code(Finding("a", "b", one, "c") for one in level) == code  # type: ignore[arg-type]


def test_an_error_in_a_check_is_a_failure_in_its_own_words() -> None:
    def check() -> Iterator[Finding]:
        yield Finding("redis", "version", "ok", "7")
        raise QueueError("Redis\nis gone")

    first, second = findings_of("redis", check)
    assert first.level == "ok"
    assert (second.level, second.found) == ("fail", "Redis is gone")


def test_a_users_mistake_is_a_failure_too() -> None:
    def check() -> Iterator[Finding]:
        raise ConfigError("shared.x: found 1, wanted 2")
        yield

    (found,) = findings_of("model", check)
    assert (found.area, found.found) == ("model", "shared.x: found 1, wanted 2")


def test_a_long_text_is_cut() -> None:
    assert one_line("a" * 50, most_chars=10) == "aaaaaaaaa…"


def test_another_python_fails_and_names_the_wanted_one() -> None:
    assert machine.python_finding("3.12.4", wanted=">=3.11,<3.14").level == "ok"
    found = machine.python_finding("3.9.1", wanted=">=3.11,<3.14")
    assert (found.level, found.found) == ("fail", "3.9.1, wanted >=3.11,<3.14")
    assert "make setup" in found.cure
    assert only(machine.python()).level == "ok"


def test_a_package_of_another_version_or_none_is_named() -> None:
    import numpy

    there = numpy.__version__
    fits = machine.packages_finding({"numpy": f"{there}+cpu"}, lock="cpu.lock")
    assert fits.level == "ok"
    found = machine.packages_finding({"numpy": "0.1", "no-such": "2"}, lock="cpu.lock")
    assert found.level == "warn"
    assert found.found == f"numpy {there} (wanted 0.1), no-such is not there (wanted 2)"


def test_pins_of_other_interpreters_do_not_count() -> None:
    lock = (
        "# made\n--extra-index-url x\nnumpy==2.1\ntorch==2.13.0+cpu\nold==1; python_version < '3'\n"
    )
    assert machine.pins(lock) == {"numpy": "2.1", "torch": "2.13.0+cpu"}
    assert len(machine.pins((machine.LOCKS / "cpu.lock").read_text())) > 100


def test_an_image_without_locks_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LOCKS", tmp_path)
    assert "not compared" in only(machine.packages()).found


def test_without_redis_server_local_runs_are_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(machine.redis_server()).level == "ok"

    def none() -> Path:
        raise QueueError("no redis-server")

    monkeypatch.setattr(machine, "find_redis_server", none)
    assert only(machine.redis_server()).level == "warn"


CUDA = ("learner.device=cuda", "rollout.device=cuda", "shared.dtype=bfloat16")
H20 = Gpu("NVIDIA H20", 96 * GB, "580.95.05")


def test_the_listing_of_the_driver_is_read() -> None:
    listing = "NVIDIA H20, 97871, 550.54.15\nNVIDIA, odd, 80, 470.1\n\n"
    first, second = machine.gpus_of(listing)
    assert first == Gpu("NVIDIA H20", 97871 * 2**20, "550.54.15")
    assert (second.name, second.driver) == ("NVIDIA, odd", "470.1")


CUDA_13, CUDA_12 = Torch("13.0", reaches=True), Torch("12.9", reaches=True)


def gpus(run: Run, *, installed: list[Gpu], torch: Torch = CUDA_13) -> list[Finding]:
    return list(machine.gpus(run, installed=installed, ask=lambda: torch))


def test_a_run_on_cpus_wants_no_gpu_and_asks_no_torch() -> None:
    def ask() -> Torch:
        raise AssertionError

    assert only(machine.gpus(run(), installed=[], ask=ask)).level == "ok"
    assert list(machine.compiler(run())) == []


def test_a_run_on_gpus_fails_without_one() -> None:
    (found,) = gpus(run(*CUDA), installed=[])
    assert found.level == "fail"
    assert "learner.device and rollout.device" in found.found


def test_a_torch_of_the_cpu_is_told_from_one_that_reaches_no_gpu() -> None:
    cpu = Torch(None, reaches=False, said="Torch not compiled with CUDA enabled")
    _, found = gpus(run(*CUDA), installed=[H20], torch=cpu)
    assert (found.level, "DEVICE=cuda" in found.cure) == ("fail", True)
    lost = Torch("13.0", reaches=False, said="Error 802: system not yet\ninitialized")
    _, found = gpus(run(*CUDA), installed=[H20], torch=lost)
    assert found.found.endswith("reaches none of them: Error 802: system not yet initialized")
    assert "CUDA_VISIBLE_DEVICES (" in found.cure
    assert "nvidia-fabricmanager" in found.cure


def test_a_driver_is_judged_by_what_torch_was_built_for() -> None:
    assert [one.level for one in gpus(run(*CUDA), installed=[H20])] == ["ok", "ok"]
    assert machine.driver_finding("560.35.03", torch=CUDA_12).level == "ok"
    assert machine.driver_finding("470.82", torch=Torch("12.9", reaches=False)).level == "fail"


def test_an_old_driver_is_the_one_failure_and_names_the_wanted_one() -> None:
    old = Gpu("NVIDIA H20", 96 * GB, "560.35.03")
    (found,) = gpus(run(*CUDA), installed=[old], torch=Torch("13.0", reaches=False))
    assert (found.level, found.name) == ("fail", "driver")
    assert found.found == "560.35.03, wanted 580 or later for torch's CUDA 13.0"
    assert "install a newer driver" in found.cure


def test_an_old_driver_that_torch_runs_on_passes() -> None:
    old = Gpu("NVIDIA H20", 96 * GB, "560.35.03")
    first, second = gpus(run(*CUDA), installed=[old])
    assert (first.level, second.level) == ("ok", "ok")
    assert "forward compatibility" in first.found


def test_torch_is_asked_for_its_release_of_cuda() -> None:
    torch = machine.installed_torch()
    assert torch.said or torch.reaches


@pytest.mark.parametrize(
    ("path", "named", "has_header", "found"),
    [
        (None, None, True, "no gcc, no clang"),
        (None, "icx", True, "no icx (CC)"),
        ("/usr/bin/gcc", None, False, "no HEADER"),
        (None, None, False, "no gcc, no clang, no HEADER"),
    ],
)
def test_what_triton_needs_to_compile_is_named(
    path: str | None, named: str | None, has_header: bool, found: str, tmp_path: Path
) -> None:
    header = tmp_path / "Python.h"
    if has_header:
        header.touch()
    judged = machine.compiler_finding(path, named=named, header=header)
    assert (judged.level, judged.found) == ("fail", found.replace("HEADER", str(header)))
    assert re.search(r"install gcc and python3\.\d+-dev ", judged.cure)


def test_a_compiler_and_the_header_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.touch(mode=0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda *_: str(tmp_path))
    found = only(machine.compiler(run(*CUDA)))
    assert (found.level, found.found) == ("ok", f"{compiler}, {tmp_path / 'Python.h'}")


def test_a_name_that_no_other_machine_can_use_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = {"node-1": "127.0.1.1"}
    monkeypatch.setattr(machine, "loopback_behind", hidden.get)
    assert list(machine.names(run())) == []
    found = only(machine.names(run("learner.host=node-1", "rollout.host=10.0.0.2")))
    assert (found.level, found.name) == ("warn", "learner.host")
    assert found.found.startswith("node-1 is 127.0.1.1 here")
    assert "/etc/hosts" in found.cure


# --- room ----------------------------------------------------------------------------------


def test_a_checkpoint_is_masters_adam_and_the_export() -> None:
    whole = run("learner.freeze_vision=false").learner
    count = TINY.parameters
    assert room.checkpoint_bytes(whole, dtype="float32", architecture=TINY) == 16 * count
    frozen = room.checkpoint_bytes(run().learner, dtype="bfloat16", architecture=TINY)
    assert frozen == 14 * count - 8 * TINY.tower_parameters
    adapted = run("learner.lora.rank=4").learner
    assert room.checkpoint_bytes(adapted, dtype="bfloat16", architecture=TINY) == 2 * count


def test_the_best_version_needs_a_place_too() -> None:
    assert room.checkpoints_kept(run().learner) == 3
    assert room.checkpoints_kept(run("learner.validation.rows=v.jsonl").learner) == 4


@pytest.mark.parametrize(("free", "level"), [(34, "ok"), (20, "warn"), (9, "fail")])
def test_a_full_disk_is_seen(free: int, level: str) -> None:
    found = room.disk_finding(free * GB, one=10 * GB, kept=3, where=Path("runs/a"))
    assert found.level == level
    assert f"{free}.0 GB free for runs/a; 3 checkpoints of about 10.0 GB" in found.found


def test_the_disk_of_a_folder_that_is_not_there_yet_is_that_of_its_parent(tmp_path: Path) -> None:
    asked = run(f"learner.run_dir={tmp_path}/a/b")
    assert only(room.disk(asked, architecture=TINY)).level == "ok"
    assert only(room.writable(asked)).level == "ok"


def test_a_folder_that_cannot_be_written_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.doctor.room.os.access", lambda *_: False)
    found = only(room.writable(run(f"learner.run_dir={tmp_path}/a")))
    assert (found.level, found.found) == ("fail", f"{tmp_path} cannot be written")


@pytest.mark.parametrize(("free", "level"), [(12, "ok"), (10.5, "warn"), (9, "fail")])
def test_too_little_memory_is_seen(free: float, level: str) -> None:
    assert room.memory_finding(int(free * GB), wanted=10 * GB).level == level


def test_a_system_that_does_not_tell_its_memory_passes() -> None:
    assert room.memory_finding(None, wanted=1).level == "ok"


@pytest.mark.parametrize(
    ("settings", "bytes_a_parameter"),
    [
        ((), 16 + 8),
        (CUDA, 0),
        ((*CUDA, "learner.weight_staging=host", "rollout.weight_staging=host"), 4),
    ],
)
def test_host_memory_counts_what_is_kept_there(
    settings: tuple[str, ...], bytes_a_parameter: int
) -> None:
    asked = run(*settings)
    cache = (asked.rollout.kv_cache_bytes or 0) if asked.rollout.device == "cpu" else 0
    wanted = bytes_a_parameter * TINY.parameters + cache
    assert room.host_bytes(asked, architecture=TINY) == wanted


def test_what_a_container_may_take_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/meminfo": "MemAvailable:    2000000 kB\n"}
    files |= {"/sys/fs/cgroup/memory.max": "900000", "/sys/fs/cgroup/memory.current": "100000"}
    kept: Callable[..., str] = Path.read_text

    def read(path: Path, **how: str) -> str:
        return files[str(path)] if str(path) in files else kept(path, **how)

    monkeypatch.setattr(Path, "read_text", read)
    assert room.available_bytes() == 800_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert room.available_bytes() == 2_000_000 * 1024
