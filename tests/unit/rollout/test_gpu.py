"""Claims of GPUs, by real processes; only the cards are pretended."""

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import pytest

from common import config
from common.config import Rollout
from common.errors import ConfigError, EngineError
from services.rollout import gpu
from services.rollout.gpu import Gpu, LockFiles, claim, nvidia_smi, visible

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 60.0
pytestmark = pytest.mark.timeout(TIMEOUT_S)
CARDS = [Gpu(index, f"GPU-{index}a-0") for index in range(7)]
NAMES = [card.device for card in CARDS]
REPLICA = """
import asyncio, multiprocessing, os, sys, time
from common import logs
from services.rollout import gpu
from tests.unit.rollout.test_gpu import CARDS, engine, rollout

if __name__ == "__main__":
    folder, name, num_cards, wanted, engines = sys.argv[1:]
    logs.configure("rollout", run_id="test")
    gpu.RETRY_EVERY_S = 0.02
    settings = rollout(folder, tensor_parallel=int(wanted))
    asyncio.run(gpu.claim(settings, replica=name, gpus=lambda: CARDS[:int(num_cards)]))
    started = []
    for method in filter(None, [engines]):
        reader, writer = multiprocessing.Pipe()
        multiprocessing.get_context(method).Process(target=engine, args=(writer,)).start()
        started.append(str(reader.recv()))
    print(os.environ["CUDA_VISIBLE_DEVICES"], *started, flush=True)
    time.sleep(600)
"""


def engine(ready: Connection) -> None:
    """What vLLM's processes do with their replica's claim, but it does not end with the replica."""
    gpu.keep_claimed()
    ready.send(os.getpid())
    time.sleep(600)


def rollout(folder: str | Path, **settings: object) -> Rollout:
    return Rollout.model_validate(
        {"gpu": "claim", "device": "cuda", "gpu_lock_dir": folder, **settings}
    )


@dataclass(frozen=True)
class Claimer:
    """A process that claims, says what it got and keeps it."""

    process: subprocess.Popen[str]

    def claimed(self) -> list[str]:
        """CUDA_VISIBLE_DEVICES, and the process id of its engine; waits for the claim."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def held(self) -> str:
        """Who holds what, as it says while it waits."""
        assert self.process.stderr is not None
        line = json.loads(self.process.stderr.readline())
        assert line["event"] == "waiting for free GPUs"
        return str(line["held"])

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(TIMEOUT_S)


Start = Callable[..., Claimer]


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    folder = tmp_path / "locks"
    folder.mkdir()
    return folder


@pytest.fixture
def start(tmp_path: Path, locks: Path) -> Iterator[Start]:
    """Starts claimers, which end with the test."""
    script = tmp_path / "replica.py"
    script.write_text(REPLICA)
    with contextlib.ExitStack() as owned:

        def started(name: str, *, cards: int, wanted: int = 1, engines: str = "") -> Claimer:
            process = subprocess.Popen(
                [sys.executable, str(script), str(locks), name, str(cards), str(wanted), engines],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            owned.enter_context(process)
            owned.callback(process.kill)
            return Claimer(process)

        yield started


def claim_once(folder: Path, *, num_cards: int = 1, **settings: object) -> dict[str, str]:
    """The environment after a claim in this process, which does not wait."""
    environ: dict[str, str] = {}
    made = rollout(folder, gpu_wait_s=1e-3, **settings)
    asyncio.run(claim(made, replica="here", gpus=lambda: CARDS[:num_cards], environ=environ))
    return environ


class TestReplicas:
    def test_seven_get_seven_gpus_and_the_eighth_one_that_was_killed(self, start: Start) -> None:
        replicas = [start(f"replica-{i}", cards=7) for i in range(7)]
        claimed = [replica.claimed()[0] for replica in replicas]
        assert sorted(claimed) == NAMES
        eighth = start("replica-7", cards=7)
        held = eighth.held()
        for i, device in enumerate(claimed):
            pid = replicas[i].process.pid
            assert f"{device}: replica-{i} (pid {pid} on {socket.gethostname()})" in held
        replicas[3].kill()
        assert eighth.claimed() == [claimed[3]]

    def test_two_that_want_two_of_three_do_not_hold_one_each(self, start: Start) -> None:
        first = start("first", cards=3, wanted=2)
        assert first.claimed() == [f"{NAMES[0]},{NAMES[1]}"]
        second = start("second", cards=3, wanted=2)
        assert second.held()
        third = start("third", cards=3)
        assert third.claimed() == [NAMES[2]]
        first.kill()
        assert second.claimed() == [f"{NAMES[0]},{NAMES[1]}"]

    def test_many_that_want_two_each_start_at_once(self, start: Start) -> None:
        replicas = [start(f"replica-{i}", cards=6, wanted=2) for i in range(3)]
        claimed = ",".join(replica.claimed()[0] for replica in replicas)
        assert sorted(claimed.split(",")) == NAMES[:6]

    @pytest.mark.parametrize("method", ["spawn", "fork"])
    def test_gpu_is_taken_until_the_engine_of_a_killed_replica_has_ended(
        self, start: Start, locks: Path, method: str
    ) -> None:
        replica = start("killed", cards=1, engines=method)
        device, engine_pid = replica.claimed()
        replica.kill()
        try:
            waiting = start("next", cards=1)
            assert f"{device}: killed (pid {replica.process.pid} on " in waiting.held()
            with pytest.raises(EngineError, match=r"found no 1 free of 1 GPUs in 0\.001 s"):
                claim_once(locks)
        finally:
            os.kill(int(engine_pid), signal.SIGKILL)
        assert waiting.claimed() == [device]

    def test_engine_does_not_start_on_a_gpu_that_another_replica_is_taking(
        self, locks: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = locks / "card.lock"
        monkeypatch.setenv(gpu.CLAIMED, json.dumps([str(path)]))
        with path.open("w") as taken:
            fcntl.flock(taken, fcntl.LOCK_EX)
            with pytest.raises(EngineError, match=r"card\.lock: another replica has claimed"):
                gpu.keep_claimed()


class TestWaiting:
    def test_it_ends_after_gpu_wait_s(self, start: Start, locks: Path) -> None:
        assert start("holder", cards=1).claimed()
        with pytest.raises(EngineError, match=r"\(rollout\.gpu_wait_s\); GPU-0a-0: holder \(pid"):
            claim_once(locks)

    def test_served_replica_says_it_is_alive_and_ends_at_sigterm(
        self, start: Start, locks: Path, tmp_path: Path
    ) -> None:
        holder = start("holder", cards=1)
        assert holder.claimed()
        nvidia_smi_that(tmp_path, f"echo 'GPU 0: NVIDIA H20 (UUID: {NAMES[0]})'")
        options = ["device=cuda", "gpu=claim", f"gpu_lock_dir={locks}", "port=0"]
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tempsamp", "rollout", "serve"),
                *("--config", "deploy/configs/demo.toml", "--set", "shared.run_id=test"),
                *("--set", "shared.model=deploy/tiny-qwen3vl"),
                *(word for option in options for word in ("--set", f"rollout.{option}")),
            ],
            cwd=ROOT,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                assert process.stderr is not None
                seen: dict[str, dict[str, str]] = {}
                while "waiting for free GPUs" not in seen:
                    line = json.loads(process.stderr.readline())
                    seen[line["event"]] = line
                url = seen["listening"]["url"]
                assert httpx.get(f"{url}/healthz", trust_env=False).is_success
                assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 503
                assert "holder (pid" in seen["waiting for free GPUs"]["held"]
                process.send_signal(signal.SIGTERM)
                assert process.wait(TIMEOUT_S) == 0
            finally:
                process.kill()


class TestFiles:
    def test_machines_that_share_a_folder_do_not_meet(self, locks: Path) -> None:
        here = LockFiles.of(rollout(locks), replica="here")
        there = replace(here, machine="another")
        assert here.take(CARDS[:1], 1) == there.take(CARDS[:1], 1) == CARDS[:1]
        assert here.take(CARDS[:1], 1) == []

    def test_containers_of_a_machine_meet_whatever_their_host_names(
        self, start: Start, locks: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert start("holder", cards=1).claimed()
        monkeypatch.setattr(socket, "gethostname", lambda: "0f3c9a7be1d2")
        with pytest.raises(EngineError, match="found no 1 free"):
            claim_once(locks)

    def test_torn_file_of_a_holder_is_no_error(self, locks: Path) -> None:
        files = LockFiles.of(rollout(locks), replica="here")
        assert files.take(CARDS[:1], 1)
        files.path(CARDS[0]).write_text('{"replica": "he')
        assert files.holders(CARDS[:1]) == f"{NAMES[0]}: nobody known"

    def test_folder_has_to_be_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"gpu_lock_dir: found no folder .*absent, wanted"):
            claim_once(tmp_path / "absent")

    def test_folder_has_to_take_files(self, locks: Path) -> None:
        (locks / f"{gpu.BOOT_ID.read_text().strip()}.turn.lock").mkdir()
        with pytest.raises(EngineError, match=r"rollout\.gpu_lock_dir: found .*: Is a directory"):
            claim_once(locks)


class TestWhichGpus:
    def test_claim_tells_vllm_and_its_processes(self, locks: Path) -> None:
        environ = claim_once(locks, num_cards=7, tensor_parallel=2)
        assert environ["CUDA_VISIBLE_DEVICES"] == f"{NAMES[0]},{NAMES[1]}"
        assert [Path(path).exists() for path in json.loads(environ[gpu.CLAIMED])] == [True, True]

    def test_cards_without_uuid_go_by_number(self, locks: Path) -> None:
        environ = {"CUDA_VISIBLE_DEVICES": "3,5"}
        cards = [Gpu(index) for index in range(7)]
        asyncio.run(claim(rollout(locks), replica="x", gpus=lambda: cards, environ=environ))
        assert environ["CUDA_VISIBLE_DEVICES"] == "3"
        assert environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"

    @pytest.mark.parametrize(
        ("allowed", "indices"),
        [
            (None, [0, 1, 2, 3, 4, 5, 6]),
            ("5,2", [5, 2]),
            (" GPU-3a , 3,1", [3, 1]),
            ("", []),
            ("-1", []),
        ],
    )
    def test_only_those_that_the_environment_allows(
        self, allowed: str | None, indices: list[int]
    ) -> None:
        assert [card.index for card in visible(CARDS, allowed)] == indices

    @pytest.mark.parametrize("allowed", ["7", "GPU-", "GPU-9", "MIG-1", "all"])
    def test_name_of_no_gpu_is_refused(self, allowed: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(f"found {allowed!r}, wanted one of")):
            visible(CARDS, allowed)

    def test_more_than_are_visible_are_refused_at_once(self, locks: Path) -> None:
        with pytest.raises(ConfigError, match=r"tensor_parallel: found 4, wanted at most 2, the"):
            claim_once(locks, num_cards=2, tensor_parallel=4)


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"gpu_lock_dir": None}, r"wanted rollout\.gpu_lock_dir, a folder that all replicas"),
            ({"device": "cpu"}, r"rollout\.device is 'cpu', wanted rollout\.device = \"cuda\""),
        ],
    )
    def test_claim_needs_a_folder_and_cuda(self, settings: dict[str, str], words: str) -> None:
        with pytest.raises(ValueError, match=f"rollout.gpu: found 'claim'.*{words}"):
            rollout("locks", **settings)

    def test_gpus_are_given_by_default(self) -> None:
        assert config.Rollout().gpu == "given"


def nvidia_smi_that(folder: Path, commands: str) -> None:
    """Put a program of that name into a folder."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{commands}\n")
    program.chmod(0o755)


class TestNvidiaSmi:
    @pytest.fixture(autouse=True)
    def _path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))

    def test_its_list_is_read(self, tmp_path: Path) -> None:
        listed = (
            "GPU 0: NVIDIA H20 (UUID: GPU-8f6d1c3a-0d52-4b57-2a6b-0f2f3f0f9c11)\n"
            "  MIG 1g.12gb     Device  0: (UUID: MIG-0d52a4b5-8f6d-5c3a-9b6b-0f2f3f0f9c11)\n"
            "GPU 10: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-2222-3333-4444-555555555555)\n"
            "GPU 11: Some card of an old driver\n"
        )
        nvidia_smi_that(tmp_path, f"cat <<'END'\n{listed}END")
        (tmp_path / "cat").symlink_to("/bin/cat")
        assert nvidia_smi() == [
            Gpu(0, "GPU-8f6d1c3a-0d52-4b57-2a6b-0f2f3f0f9c11"),
            Gpu(10, "GPU-11111111-2222-3333-4444-555555555555"),
            Gpu(11, None),
        ]

    def test_without_it_there_is_a_remedy(self) -> None:
        with pytest.raises(EngineError, match=r"found no nvidia-smi, .* set rollout\.gpu = \"giv"):
            nvidia_smi()

    def test_its_own_words_are_kept(self, tmp_path: Path) -> None:
        nvidia_smi_that(tmp_path, "echo 'No devices were found'; exit 6")
        with pytest.raises(EngineError, match="nvidia-smi -L failed: No devices were found; give"):
            nvidia_smi()

    def test_it_may_not_hang(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        nvidia_smi_that(tmp_path, "exec /bin/sleep 60")
        monkeypatch.setattr(gpu, "LIST_TIMEOUT_S", 0.2)
        with pytest.raises(EngineError, match="gave no answer in"):
            nvidia_smi()
