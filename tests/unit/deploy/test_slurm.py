"""deploy/slurm/tempsamp.sbatch with stand-ins for Slurm: what it would start, and how it ends."""

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common import config
from jobs.local.redis import find_redis_server, free_port
from tests.fixtures.deploy import slurm
from tests.fixtures.pages.command_lines import leaf, unknown_options

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "deploy/slurm/tempsamp.sbatch"
RECIPE = ROOT / "deploy/configs/timelens_tempsamp_qwen3_5_4b.toml"
TOKEN, PASSWORD = "t0ken" * 6, "passw0rd" * 4
PATIENCE_S = 30.0


class Job:
    """A job on stand-in nodes."""

    def __init__(self, folder: Path, nodes: str, environ: dict[str, str]) -> None:
        self.folder = folder
        self.record = folder / "record"
        self.record.touch()
        self.process = subprocess.Popen(
            ["bash", SCRIPT, RECIPE, "--set", "learner.steps=7"],
            env={
                "PATH": f"{folder / 'venv/bin'}:{os.environ['PATH']}",
                "HOME": str(folder),
                "RECORD": str(self.record),
                "STATE": str(folder / "state"),
                "SLURM_SUBMIT_DIR": str(ROOT),
                "SLURM_JOB_ID": "4711",
                "SLURM_JOB_NODELIST": nodes,
                "SLURM_GPUS_ON_NODE": "8",
                "SLURM_CPUS_ON_NODE": "64",
                "TEMPSAMP_VENV": str(folder / "venv"),
                "TEMPSAMP_STATE": str(folder / "state"),
                "TEMPSAMP_SECRETS": str(folder / "secrets.env"),
                "TEMPSAMP_RESTART_S": "0.1",
                **environ,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def started(self, what: str, *words: str) -> list[dict[str, Any]]:
        """Records of a program whose arguments begin so."""
        found = slurm.records(self.record)
        return [r for r in found if r["what"] == what and r["argv"][: len(words)] == list(words)]

    def wait_for(self, what: str, *words: str, count: int = 1) -> list[dict[str, Any]]:
        """As `started`, once there are so many."""
        end = time.monotonic() + PATIENCE_S
        while len(found := self.started(what, *words)) < count:
            assert time.monotonic() < end, f"{what} {words}: {len(found)} of {count}"
            time.sleep(0.05)
        return found

    def say(self, name: str) -> None:
        """Tell the stand-ins something."""
        (self.folder / "state" / name).touch()

    def wait_until_training(self) -> None:
        """Until rank 0 of the learner is at work."""
        end = time.monotonic() + PATIENCE_S
        while not (self.folder / "state/training").exists():
            assert time.monotonic() < end
            time.sleep(0.05)

    def finish(self) -> tuple[int, str]:
        """Exit code and output."""
        output, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, output

    def left_behind(self) -> list[int]:
        """Of the processes that were started, those that still run."""
        pids = [record["pid"] for record in slurm.records(self.record)]
        return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


Start = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts jobs; ends what is left of them."""
    slurm.install(tmp_path / "venv/bin")
    secrets = tmp_path / "secrets.env"
    secrets.write_text(f"TEMPSAMP_TOKEN={TOKEN}\nTEMPSAMP_REDIS_PASSWORD={PASSWORD}\n")
    secrets.chmod(0o600)
    jobs: list[Job] = []

    def make(nodes: str = "a", **environ: str) -> Job:
        jobs.append(Job(tmp_path, nodes, environ))
        return jobs[-1]

    yield make
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):  # the group: who restarts others goes as well
            os.killpg(job.process.pid, signal.SIGKILL)
        job.process.wait()
        if job.process.stdout:
            job.process.stdout.close()


def devices(records: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """(host, CUDA_VISIBLE_DEVICES) → how many processes."""
    return Counter((record["HOST"], record["CUDA_VISIBLE_DEVICES"]) for record in records)


def launched(learner: dict[str, Any]) -> tuple[str, ...]:
    """Ranks, nodes, this node's number, where they meet."""
    words = learner["argv"]
    names = ("--ranks", "--nodes", "--node-rank", "--meet")
    return tuple(words[words.index(name) + 1] for name in names)


def test_one_node_is_halved(start: Start) -> None:
    job = start("a")
    learners = job.wait_for("tempsamp", "learner")
    replicas = job.wait_for("tempsamp", "rollout", count=4)
    assert devices(learners) == {("a", "0,1,2,3"): 1}
    assert devices(replicas) == {("a", str(gpu)): 1 for gpu in (4, 5, 6, 7)}
    assert launched(learners[0]) == ("4", "1", "0", "a:22135")


def test_on_two_nodes_the_first_trains(start: Start) -> None:
    job = start("a+b")
    assert devices(job.wait_for("tempsamp", "learner")) == {("a", "0,1,2,3,4,5,6,7"): 1}
    replicas = job.wait_for("tempsamp", "rollout", count=8)
    assert devices(replicas) == {("b", str(gpu)): 1 for gpu in range(8)}


def test_a_learner_of_two_nodes_has_rank_0_on_the_first(start: Start) -> None:
    job = start("a+b+c", TEMPSAMP_LEARNER_NODES="2", TEMPSAMP_LEARNER_GPUS="6")
    learners = job.wait_for("tempsamp", "learner", count=2)
    assert {learner["HOST"]: launched(learner) for learner in learners} == {
        "a": ("6", "2", "0", "a:22135"),
        "b": ("6", "2", "1", "a:22135"),
    }
    assert devices(learners) == {(host, "0,1,2,3,4,5"): 1 for host in "ab"}
    replicas = job.wait_for("tempsamp", "rollout", count=12)
    assert Counter(r["HOST"] for r in replicas) == {"a": 2, "b": 2, "c": 8}


def test_tensor_parallel_replicas_take_neighbouring_gpus(start: Start) -> None:
    job = start("a", TEMPSAMP_TENSOR_PARALLEL="2", TEMPSAMP_LEARNER_GPUS="3")
    replicas = job.wait_for("tempsamp", "rollout", count=2)
    assert devices(replicas) == {("a", "3,4"): 1, ("a", "5,6"): 1}
    assert "rollout.tensor_parallel=2" in replicas[0]["argv"]


def test_commands_parse_and_their_settings_are_valid(start: Start) -> None:
    job = start("a+b")
    job.wait_for("tempsamp", "learner")
    job.wait_for("tempsamp", "rollout", count=8)
    job.wait_for("tempsamp", "reward")
    seen = set()
    for record in job.started("tempsamp"):
        command, words = leaf(record["argv"])
        assert unknown_options(command, words) == set()
        seen.add(command.name)
        sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        run = config.load(RECIPE, overrides=sets, environ={})
        assert run.learner.steps == 7
        assert run.shared.redis_url == "redis://a:22133/0"
        assert run.shared.reward_url == "http://a:22134"
        if command.name == "learner":
            assert run.learner.host == "a"
            assert "--resume" in words
        if command.name == "serve" and "rollout.port=0" in sets:
            assert (run.rollout.host, run.rollout.advertise_host) == ("0.0.0.0", "b")
            assert run.rollout.replica == f"b-gpu{record['CUDA_VISIBLE_DEVICES']}"
    assert seen == {"learner", "serve", "plan"}


def test_secrets_stand_in_no_command_line(start: Start) -> None:
    job = start("a+b")
    job.wait_for("tempsamp", "learner")
    for record in job.wait_for("tempsamp", "rollout", count=8):
        assert record["TEMPSAMP_TOKEN"] == TOKEN
    job.wait_for("redis-server")
    everything = job.record.read_text().replace(f'"TEMPSAMP_TOKEN": "{TOKEN}"', "")
    assert TOKEN not in everything
    assert PASSWORD not in everything


def test_the_end_of_the_learner_is_the_end_of_the_job(start: Start) -> None:
    job = start("a")
    job.wait_until_training()
    job.wait_for("tempsamp", "rollout", count=4)
    job.say("finish")
    code, output = job.finish()
    assert code == 0, output
    assert job.left_behind() == []
    assert job.started("scontrol", "requeue") == []
    stops = [r["argv"] for r in job.started("service stops")]
    assert len(stops) == 6
    assert stops[-1] == ["-"], "Redis ends last"


def test_a_learner_that_fails_is_started_again_a_few_times_and_not_queued(start: Start) -> None:
    job = start("a", LEARNER="3", TEMPSAMP_LEARNER_RESTARTS="2")
    job.wait_until_training()
    job.say("finish")
    code, output = job.finish()
    assert code == 3, output
    lives = job.started("tempsamp", "learner")
    assert len(lives) == 3
    assert all("--resume" in life["argv"] for life in lives)
    said = [line for line in output.splitlines() if "the learner ended" in line]
    assert said == [
        f"tempsamp.sbatch: the learner ended with 3, starting it again ({left} more)"
        for left in (2, 1)
    ]
    assert job.started("scontrol", "requeue") == []
    assert job.left_behind() == []


def test_a_setting_that_a_rank_refuses_ends_the_job(start: Start) -> None:
    job = start("a", LEARNER="2")
    job.wait_until_training()
    job.say("finish")
    code, output = job.finish()
    assert code == 2, output
    assert len(job.started("tempsamp", "learner")) == 1


@pytest.mark.chaos
def test_sigterm_between_two_lives_of_the_learner_is_heard(start: Start) -> None:
    job = start("a", LEARNER="3", TEMPSAMP_RESTART_S="20")
    job.wait_until_training()
    job.say("finish")
    assert job.process.stdout is not None
    while "starting it again" not in job.process.stdout.readline():
        pass
    job.process.send_signal(signal.SIGTERM)
    code, output = job.finish()
    assert code == 0, output
    assert len(job.started("tempsamp", "learner")) == 1
    assert len(job.started("scontrol", "requeue")) == 1
    assert job.left_behind() == []


def test_sigterm_reaches_the_learner_on_every_node_and_the_job_is_queued_again(
    start: Start,
) -> None:
    job = start("a+b", TEMPSAMP_LEARNER_NODES="2", TEMPSAMP_LEARNER_GPUS="4")
    job.wait_until_training()
    job.wait_for("tempsamp", "learner", count=2)
    job.process.send_signal(signal.SIGTERM)
    code, output = job.finish()
    assert code == 0, output
    assert sorted(r["HOST"] for r in job.started("learner stops")) == ["a", "b"]
    (requeued,) = job.started("scontrol", "requeue")
    assert requeued["argv"] == ["requeue", "4711"]
    assert job.left_behind() == []


def test_a_replica_that_ends_is_started_again(start: Start) -> None:
    job = start("a", CRASH="5")
    replicas = job.wait_for("tempsamp", "rollout", count=5)
    assert devices(replicas) == {("a", "4"): 1, ("a", "5"): 2, ("a", "6"): 1, ("a", "7"): 1}


def test_a_real_redis_takes_the_settings(start: Start, tmp_path: Path) -> None:
    from redis import Redis
    from redis.exceptions import ConnectionError as NotYetError

    port = free_port()
    job = start("a", REDIS_SERVER=str(find_redis_server()), TEMPSAMP_PORT=str(port))
    job.wait_until_training()
    with Redis(port=port, password=PASSWORD) as redis:
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                info = redis.info()
                break
            except NotYetError:
                assert time.monotonic() < end
                time.sleep(0.05)
        assert info["aof_enabled"] == 1
        assert redis.config_get("save") == {"save": ""}
    assert (tmp_path / "state/redis/appendonly.aof").exists()


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"TEMPSAMP_SECRETS": "/nowhere"}, "TEMPSAMP_SECRETS: found no file /nowhere"),
        ({"TEMPSAMP_LEARNER_NODES": "2"}, "TEMPSAMP_LEARNER_NODES: found 2, wanted 1 to 1"),
        ({"TEMPSAMP_LEARNER_GPUS": "9"}, "TEMPSAMP_LEARNER_GPUS: found 9, wanted 1 to 8"),
        ({"TEMPSAMP_VENV": "/nowhere"}, "TEMPSAMP_VENV: found no /nowhere/bin/tempsamp"),
        ({"PLAN": "1"}, "the plan does not fit"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    start: Start, environ: dict[str, str], said: str
) -> None:
    job = start("a", **environ)
    code, output = job.finish()
    assert (code, len(output.splitlines())) == (2, 1), output
    assert said in output
    assert job.started("srun") == []


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (f"TEMPSAMP_TOKEN={TOKEN}\nTEMPSAMP_REDIS_PASSWORD={PASSWORD}\n", 0o644, "found mode 644"),
        (f"TEMPSAMP_TOKEN={TOKEN}\n", 0o600, "TEMPSAMP_REDIS_PASSWORD: wanted letters and digits"),
        (f"TEMPSAMP_TOKEN='a b'\nTEMPSAMP_REDIS_PASSWORD={PASSWORD}\n", 0o600, "TEMPSAMP_TOKEN:"),
    ],
)
def test_secrets_are_private_and_whole(
    start: Start, tmp_path: Path, content: str, mode: int, said: str
) -> None:
    secrets = tmp_path / "secrets.env"
    secrets.write_text(content)
    secrets.chmod(mode)
    code, output = start("a").finish()
    assert code == 2
    assert said in output
    assert TOKEN not in output


@pytest.mark.parametrize("script", sorted((ROOT / "deploy/slurm").iterdir()), ids=lambda p: p.name)
def test_scripts_are_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
