"""Real processes as ranks, without a model: how they end is how their launcher ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest

from common.errors import ConfigError
from jobs.local.redis import free_port
from services.learner.launch import OTHER_RANK_FAILED, Fleet, _Ranks

ROOT = Path(__file__).parents[4]
PATIENCE_S = 60.0
ANOTHER_NODE = {"nodes": 2, "node_rank": 1, "meet": "127.0.0.1:1"}
"""Which hosts no store."""
LAUNCH = """
import json, logging, sys
from services.learner import launch
logging.basicConfig(level=logging.INFO, format="%(message)s")
fleet, how = launch.Fleet(**json.loads(sys.argv[1])), json.loads(sys.argv[3])
launch.END_S = how.pop("end_s", launch.END_S)
sys.exit(launch.launch(fleet, [sys.executable, "-c", sys.argv[2]], **how))
"""
MEET = """
import os, datetime
from torch.distributed import TCPStore
host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
store = TCPStore(host, port, is_master=False, timeout=datetime.timedelta(seconds=30))
store.add("here", 1)
say("rank", os.environ["RANK"], "local", os.environ["LOCAL_RANK"])
"""
HEAD = """
import os, signal, sys, time
rank = int(os.environ["LOCAL_RANK"])
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole lines, whoever else writes
"""
READY = "say('ready', os.getpid())\n"


class Launcher:
    """A launcher of two ranks that a script is; unless told, on a node that needs no torch."""

    def __init__(
        self, script: str, *, how: Mapping[str, float] = MappingProxyType({}), **fleet: object
    ) -> None:
        described = json.dumps({"ranks": 2, **(fleet or ANOTHER_NODE)})
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, described, HEAD + script, json.dumps(dict(how))],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if "TORCHELASTIC" not in name},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until(self, word: str, *, count: int = 2) -> list[str]:
        """Lines that begin with a word, once there are so many."""
        found: list[str] = []
        assert self.process.stdout is not None
        while len(found) < count:
            line = self.process.stdout.readline()
            assert line, "it has ended"
            found += [line.strip()] * line.startswith(word)
        return found

    def ranks(self) -> list[psutil.Process]:
        """Its children, once they are ready."""
        return [psutil.Process(int(line.split()[1])) for line in self.until("ready")]

    def end(self) -> tuple[int, str]:
        """Exit code, and the rest of what all wrote."""
        output, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, output


def codes(*wanted: str) -> str:
    """Each rank does its own."""
    return f"exec({list(wanted)!r}[rank])"


SLEEP = READY + "time.sleep(120)"
LEAVES_WELL = (
    "def leave(*_):\n    time.sleep(1.5)\n    say('saved')\n    os._exit(0)\n"
    "signal.signal(signal.SIGTERM, leave)\nsignal.signal(signal.SIGINT, leave)\n" + SLEEP
)
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_its_ranks_good_end_is_its_own(number: signal.Signals) -> None:
    launcher = Launcher(LEAVES_WELL)
    launcher.ranks()
    for _ in range(2):  # a second one changes nothing
        launcher.process.send_signal(number)
        launcher.until(f"{number.name}: passed on", count=1)
    code, output = launcher.end()
    assert code == 0, output
    assert output.splitlines() == ["saved"] * 2


@pytest.mark.parametrize("stops", [True, False])
def test_who_takes_0_for_a_finished_run_hears_another_code_after_a_signal(stops: bool) -> None:
    launcher = Launcher(LEAVES_WELL if stops else "pass", how={"stopped_code": 143})
    if stops:
        launcher.ranks()
        launcher.process.terminate()
    assert launcher.end()[0] == (143 if stops else 0)


def test_ranks_that_take_too_long_are_killed_if_that_is_wanted() -> None:
    launcher = Launcher(DEAF, how={"shutdown_timeout_s": 0.5})
    launcher.ranks()
    launcher.process.terminate()
    code, output = launcher.end()
    assert code == 128 + signal.SIGKILL
    assert "ranks have not ended in time: killed" in output


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        (codes("sys.exit(2)", SLEEP), 2),
        (codes(SLEEP, "sys.exit(3)"), 3),
        (codes(SLEEP, "time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)"), 137),
        (codes(f"sys.exit({OTHER_RANK_FAILED})", "time.sleep(1); sys.exit(2)"), 2),
        (codes(f"sys.exit({OTHER_RANK_FAILED})", "pass"), 1),
    ],
    ids=["rank 0", "rank 1", "killed", "one after the other", "of another node"],
)
def test_the_first_that_fails_of_itself_gives_the_code(script: str, wanted: int) -> None:
    code, output = Launcher(script).end()
    assert code == wanted, output
    assert "Traceback" not in output


@pytest.mark.parametrize(("ends_with", "wanted"), [(4, 4), (OTHER_RANK_FAILED, 1)])
def test_a_rank_that_does_not_hear_is_killed_when_another_has_failed(
    ends_with: int, wanted: int
) -> None:
    fails = f"time.sleep(1); say('fails'); sys.exit({ends_with})"
    launcher = Launcher(codes(DEAF, fails), how={"end_s": 2.0})
    launcher.until("fails", count=1)
    began = time.monotonic()
    code, output = launcher.end()
    assert code == wanted, output
    assert 1.0 < time.monotonic() - began < 40
    assert output.count("ranks have not ended in time: killed") == 1


def test_a_signal_before_there_are_ranks_is_kept_for_them() -> None:
    launcher = Launcher(SLEEP, nodes=1)
    process = psutil.Process(launcher.process.pid)
    deadline = time.monotonic() + PATIENCE_S
    while not hears(process, signal.SIGTERM):
        assert time.monotonic() < deadline
    assert not process.children()
    launcher.process.terminate()
    code, output = launcher.end()
    assert code == 128 + signal.SIGTERM, "they had nothing to save"
    assert "SIGTERM: passed on to the ranks" in output


@pytest.mark.parametrize(
    ("was_asked", "code", "level"),
    [
        (True, -signal.SIGTERM, "WARNING"),
        (False, -signal.SIGTERM, "CRITICAL"),
        (True, -signal.SIGKILL, "CRITICAL"),
        (False, 1, "CRITICAL"),
    ],
)
def test_the_first_that_fails_is_a_critical_line_unless_it_was_told_to_end(
    was_asked: bool, code: int, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    _Ranks(None, was_asked=was_asked)._fail("0", code)
    assert [record.levelname for record in caplog.records] == [level]


def hears(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_ranks_of_two_nodes_meet_where_node_0_is() -> None:
    host = "[::1]" if socket.has_dualstack_ipv6() else "127.0.0.1"
    meet = f"{host}:{free_port()}"
    wait = "while store.add('here', 0) < 4: time.sleep(0.05)\n"
    nodes = [
        Launcher(MEET + wait, nodes=2, node_rank=rank, meet=meet)
        for rank in (1, 0)  # node 1 waits for node 0
    ]
    ends = [node.end() for node in nodes]
    assert [code for code, _ in ends] == [0, 0], ends
    said = sorted(line for _, out in ends for line in out.splitlines() if line[:5] == "rank ")
    assert said == [
        *("rank 0 local 0", "rank 1 local 1"),
        *("rank 2 local 0", "rank 3 local 1"),
    ]


def test_nobody_reaches_the_store_of_a_single_node_from_outside() -> None:
    launcher = Launcher("say('port', os.environ['MASTER_PORT'])\n" + SLEEP, nodes=1)
    port = int(launcher.until("port", count=1)[0].split()[1])
    listening = psutil.Process(launcher.process.pid).net_connections()
    assert {c.laddr.ip for c in listening if c.laddr.port == port} == {"127.0.0.1"}
    launcher.process.terminate()
    assert launcher.end()[0] == 128 + signal.SIGTERM, "nobody saved anything"


@pytest.mark.parametrize(
    ("fleet", "said"),
    [
        ({"nodes": 2, "node_rank": 2}, r"--node-rank: found 2, wanted 0 to 1 \(--nodes 2\)"),
        ({"nodes": 2}, "--meet: found nothing, wanted HOST:PORT of node 0"),
        ({"meet": "node-1"}, "--meet: found node-1, wanted HOST:PORT, such as node-1:29500"),
        ({"meet": "node-1:x"}, "--meet: found node-1:x"),
        ({"meet": "http://node-1:1"}, "--meet: found http://node-1:1"),
        ({"meet": "node-1:0"}, "--meet: found node-1:0"),
    ],
)
def test_what_cannot_be_is_one_line(fleet: dict[str, int | str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Fleet(ranks=1, **fleet)  # type: ignore[arg-type]


def test_an_address_may_be_ipv6() -> None:
    fleet = Fleet(ranks=1, nodes=2, node_rank=1, meet="[fd00::1]:29500")
    assert fleet.address == ("fd00::1", 29500)


SCRIPT = Path(sys.executable).with_name("tempsamp")


def command_line(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, "learner", *words],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_mistake_is_said_once_and_before_anything_starts(tmp_path: Path) -> None:
    config = ["--config", str(ROOT / "deploy/configs/demo.toml")]
    for words, said in (
        (["--ranks", "3", "--config", str(tmp_path / "none.toml")], "none.toml"),
        (["--nodes", "2", *config], "--meet: found nothing"),
        (["--ranks", "2", *config, "--set", "shared.model=/nowhere"], "/nowhere"),
    ):
        found = command_line(*words)
        assert found.returncode == 2, found.stderr
        lines = [line for line in found.stderr.splitlines() if line.startswith("tempsamp: ")]
        assert len(lines) == 1
        assert said in lines[0]
        assert "Traceback" not in found.stderr


def test_ranks_are_the_command_that_was_called_and_one_of_them_refuses_it(tmp_path: Path) -> None:
    """Called as a module (`python -m tempsamp`) they train: tests/ring/test_learner.py."""
    (tmp_path / "run/checkpoints/step-000001").mkdir(parents=True)
    sets = (f"learner.run_dir={tmp_path / 'run'}", "shared.model=deploy/tiny-qwen3vl")
    words = [word for item in sets for word in ("--set", item)]
    config = ["--config", str(ROOT / "deploy/configs/demo.toml")]
    found = command_line("--ranks", "2", *config, *words)
    assert found.returncode == 2, found.stderr
    assert found.stderr.count("\ntempsamp: ") == 1
    assert "--resume" in found.stderr
    assert "rank 0 ended with code 2: ending the others" in found.stderr
    assert "Traceback" not in found.stderr


def test_one_launcher_is_enough() -> None:
    config = ["--config", str(ROOT / "deploy/configs/demo.toml")]
    found = command_line("--ranks", "2", *config, TORCHELASTIC_RUN_ID="none")
    assert found.returncode == 2
    assert "wanted one launcher: leave out torchrun, or these options" in found.stderr
