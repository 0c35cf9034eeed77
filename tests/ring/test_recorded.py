"""The learner on recorded groups: signals, crashes, refusals. Real Redis and ranks, no vLLM."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from redis import Redis

from common.queue.ledger import FILE, read_ledger
from jobs.audit.findings import Audit, audit
from jobs.local.redis import free_port
from tests.fixtures.learner.recorded_learner import (
    NUM_ROWS,
    WRITE_S,
    LearnerProcess,
    RecordedRing,
)
from tests.fixtures.learner.warm import Warm
from tests.fixtures.servers.redis_server import RedisServer

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def ring(recorded_ring: RecordedRing) -> RecordedRing:
    return recorded_ring


def last_published(learner: LearnerProcess) -> int:
    return max(line["policy_version"] for line in learner.said("published"))


def assert_saved(ring: RecordedRing, learner: LearnerProcess) -> None:
    folder = ring.run_dir / f"checkpoints/step-{last_published(learner):06d}"
    assert (folder / "run_state.json").exists(), learner.text[-3000:]


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_one_rank_saves_and_exits_0(
        self, ring: RecordedRing, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While a checkpoint is written: that one first, then the last one."""
        monkeypatch.setenv(WRITE_S, "1")
        learner = ring.start(steps=10_000, checkpoint_every=2)
        learner.wait_for("published", policy_version=3)
        learner.process.send_signal(number)
        learner.finish()
        assert learner.said(f"{number.name}: stopping with a checkpoint")
        assert_saved(ring, learner)
        saved = [line["step"] for line in learner.said("checkpoint")]
        assert saved[0] == 2
        assert saved == sorted(saved)
        assert [name for name in checkpoints(ring) if not name[-6:].isdigit()] == []

    @pytest.mark.chaos
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_launcher_of_two_ranks_passes_it_on_and_ends_as_they_do(
        self, ring: RecordedRing, number: signal.Signals
    ) -> None:
        learner = ring.start(ranks=2, steps=10_000, checkpoint_every=0)
        learner.wait_for("published", policy_version=2)
        learner.process.send_signal(number)
        learner.finish()
        assert learner.said(f"{number.name}: passed on to the ranks")
        assert learner.said(f"{number.name}: stopping with a checkpoint")
        assert_saved(ring, learner)
        assert "Traceback" not in learner.text

    @pytest.mark.chaos
    def test_rank_1_alone_while_rank_0_waits_for_groups(self, ring: RecordedRing) -> None:
        learner = ring.start(ranks=2, steps=10_000, checkpoint_every=0)
        learner.wait_for("published", policy_version=2)
        ring.paused.set()
        os.kill(learner.ranks()[1], signal.SIGTERM)
        learner.finish()
        assert learner.said("another rank was signalled: stopping with a checkpoint")
        assert_saved(ring, learner)

    @pytest.mark.chaos
    def test_one_of_two_nodes_is_enough(self, ring: RecordedRing) -> None:
        meet = ("--nodes", "2", "--meet", f"127.0.0.1:{free_port()}")
        first, second = (
            ring.start(
                options=(*meet, "--node-rank", str(node)),
                log=f"node-{node}",
                steps=10_000,
                checkpoint_every=0,
            )
            for node in range(2)
        )
        first.wait_for("published", policy_version=2)
        second.process.send_signal(signal.SIGTERM)
        for node in (second, first):
            node.finish()
            assert len(node.said("ranks started")) == 1
            assert "Traceback" not in node.text
        assert_saved(ring, first)

    def test_below_torchrun_ranks_save_as_well_though_it_ends_with_1(
        self, ring: RecordedRing
    ) -> None:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        launch = [sys.executable, *torchrun]
        learner = ring.start(launch=launch, steps=10_000, checkpoint_every=0)
        learner.wait_for("published", policy_version=2)
        learner.process.send_signal(signal.SIGTERM)
        learner.finish(code=1)
        assert_saved(ring, learner)
        assert learner.text.count("Traceback") == 1, "torchrun's own"
        assert "SignalException" in learner.text.splitlines()[-1]

    @pytest.mark.chaos
    def test_ranks_end_when_their_launcher_is_killed(self, ring: RecordedRing) -> None:
        learner = ring.start(ranks=2, steps=10_000, checkpoint_every=0)
        learner.wait_for("published", policy_version=2)
        ranks = [psutil.Process(pid) for pid in learner.ranks()]
        assert len(ranks) == 2
        learner.process.kill()
        learner.finish(code=-signal.SIGKILL)
        _, alive = psutil.wait_procs(ranks, timeout=20)
        assert not alive
        assert learner.said("the launcher is gone, this rank ends too")


def checkpoints(ring: RecordedRing) -> list[str]:
    return sorted(path.name for path in (ring.run_dir / "checkpoints").iterdir())


class TestCheckpoints:
    def test_a_damaged_newest_one_is_put_aside_and_the_one_before_resumed(
        self, ring: RecordedRing
    ) -> None:
        ring.start(steps=6, checkpoint_every=3).finish()
        assert checkpoints(ring) == ["step-000003", "step-000006"]
        (ring.run_dir / "checkpoints/step-000006/run_state.json").write_text("")
        (ring.run_dir / "checkpoints/step-000005.partial").mkdir()
        with (ring.run_dir / "metrics.jsonl").open("a") as file:
            file.write('{"step": 7, "tor')
        learner = ring.start(steps=8, checkpoint_every=3, resume=True)
        learner.finish()
        (said,) = learner.said("checkpoint is not whole, trying the one before")
        assert said["fault"].startswith("run_state.json: found 0 bytes")
        assert learner.said("resumed")[0]["step"] == 3
        assert learner.said("damaged lines left out")
        assert checkpoints(ring) == ["step-000006", "step-000006.damaged", "step-000008"]

    @pytest.mark.chaos
    @pytest.mark.parametrize("ranks", [1, 2])
    def test_of_other_settings_are_not_resumed(self, ring: RecordedRing, ranks: int) -> None:
        ring.start(steps=2).finish()
        learner = ring.start(steps=4, resume=True, max_staleness=2, ranks=ranks)
        learner.finish(code=2)
        assert learner.text.count("  learner.max_staleness: found 2, wanted 1\n") == 1
        assert "Traceback" not in learner.text
        assert checkpoints(ring) == ["step-000002"]

    def test_none_that_is_whole_is_one_line(self, ring: RecordedRing) -> None:
        ring.start(steps=2).finish()
        (ring.run_dir / "checkpoints/step-000002/manifest.json").unlink()
        learner = ring.start(steps=3, resume=True)
        learner.finish(code=1)
        assert "found no whole checkpoint" in learner.text.splitlines()[-1]
        assert "Traceback" not in learner.text

    @pytest.mark.chaos
    @pytest.mark.parametrize("ranks", [1, 2])
    def test_a_disk_that_takes_no_more_is_one_line_and_earlier_ones_stay(
        self, ring: RecordedRing, ranks: int
    ) -> None:
        ring.start(steps=3, checkpoint_every=3).finish()
        before = ring.weights(3)
        # Files of more than 100 KiB cannot be written: the log can, shards cannot.
        bash = ["bash", "-c", 'ulimit -f 100; exec "$@"', "bash", sys.executable]
        learner = ring.start(steps=9, checkpoint_every=3, resume=True, launch=bash, ranks=ranks)
        learner.finish(code=1)
        (line,) = [line for line in learner.text.splitlines() if line.startswith("tempsamp: ")]
        assert line.startswith("tempsamp: CheckpointError: learner.run_dir: no checkpoint in ")
        assert re.search(r"found [\d,]+ MB free", line)
        assert "Traceback" not in learner.text
        assert checkpoints(ring) == ["step-000003"]
        assert ring.weights(3) == before
        ring.start(steps=6, checkpoint_every=3, resume=True).finish()
        assert checkpoints(ring) == ["step-000003", "step-000006"]


class TestOneLearner:
    @pytest.mark.chaos
    def test_one_that_was_frozen_while_another_took_over_changes_nothing(
        self, ring: RecordedRing, tmp_path: Path
    ) -> None:
        first = ring.start(steps=100_000, checkpoint_every=0)
        first.wait_for("published", policy_version=2)
        os.killpg(first.process.pid, signal.SIGSTOP)
        second = ring.start(steps=3, run_dir=str(tmp_path / "other"), checkpoint_every=0)
        waits = second.wait_for("waiting for the run: another learner has it")
        assert str(ring.run_dir) in waits["holder"]
        assert waits["lease_left_s"] < 20
        second.finish()
        epochs = [learner.said("the run is ours")[0]["epoch"] for learner in (first, second)]
        assert epochs[0] < epochs[1]
        assert (tmp_path / "other/checkpoints/step-000003").is_dir()
        os.killpg(first.process.pid, signal.SIGCONT)
        first.finish(code=1)
        # Redis at its next write or its own lease: whichever it asks first after it wakes up.
        last = first.text.splitlines()[-1]
        assert "tempsamp: RunLostError: " in last
        assert "taken over" in last
        assert not (ring.run_dir / "checkpoints").exists()

    @pytest.mark.chaos
    def test_one_that_waits_for_another_still_hears_signals(
        self, ring: RecordedRing, tmp_path: Path
    ) -> None:
        first = ring.start(steps=100_000)
        first.wait_for("published", policy_version=1)
        second = ring.start(ranks=2, steps=3, run_dir=str(tmp_path / "other"))
        second.wait_for("waiting for the run: another learner has it")
        for pid in second.ranks():
            os.kill(pid, signal.SIGTERM)
        second.finish()
        assert not (tmp_path / "other/checkpoints").exists()
        first.process.send_signal(signal.SIGTERM)
        first.finish()

    def test_one_that_was_killed_is_resumed_in_its_folder_at_once(self, ring: RecordedRing) -> None:
        first = ring.start(steps=100_000, checkpoint_every=2)
        first.wait_for("published", policy_version=4)
        first.kill()
        second = ring.start(steps=6, resume=True, checkpoint_every=2)
        second.finish()
        assert not second.said("waiting for the run: another learner has it")


def audited(ring: RecordedRing) -> Audit:
    rows = (ring.folder / "rows.jsonl").read_bytes()
    ids = [str(number) for number in range(1, NUM_ROWS + 1)]
    lines = list(read_ledger(ring.run_dir / FILE))
    return audit(lines, rows=ids, rows_sha256=hashlib.sha256(rows).hexdigest())


def partial(ring: RecordedRing) -> list[Path]:
    """Checkpoints that are half written."""
    return list(ring.run_dir.glob("checkpoints/*.partial"))


class TestKilled:
    """SIGKILL at three random points, most of them while a checkpoint is written: what a resumed
    run comes to is what it would have been."""

    STEPS = 24
    WRITE_S = "0.5"
    """Longer than the three steps between two checkpoints."""

    @pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.chaos)])
    def test_final_weights_are_the_same_bits_and_every_row_was_trained_once(
        self, ring: RecordedRing, tmp_path: Path, ranks: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The same ring: two encodings of one clip need not be equal.
        whole = tmp_path / "whole"
        # And a Python of its own: another seed of hashes than the one that is killed has.
        launch = [sys.executable]
        ring.start(ranks=ranks, steps=self.STEPS, run_dir=str(whole), launch=launch).finish()
        wanted = ring.weights(self.STEPS, run_dir=whole)
        seed = time.time_ns()
        points = random.Random(seed)
        half_written: list[Path] = []
        for number in range(3):
            # On a machine whose steps take longer two kills may have met none.
            waits = number == 2 and not half_written
            monkeypatch.setenv(WRITE_S, "3" if waits else self.WRITE_S)
            learner = ring.start(ranks=ranks, steps=self.STEPS, resume=number > 0)
            version = points.randint(7 * number + 2, 7 * number + 8)
            learner.wait_for("published", policy_version=version)
            time.sleep(points.uniform(0, 0.1))
            if waits:
                learner.wait_until(lambda: bool(partial(ring)))
            learner.kill()
            half_written += partial(ring)
        monkeypatch.delenv(WRITE_S)
        last = ring.start(ranks=ranks, steps=self.STEPS, resume=True)
        last.finish()
        assert half_written, f"seed {seed}"
        assert last.said("resumed"), f"seed {seed}"
        assert ring.weights(self.STEPS) == wanted, f"seed {seed}"
        found = audited(ring)
        assert (found.step, found.num_unproven, found.violations) == (self.STEPS, 0, [])
        assert [epoch.is_finished for epoch in found.epochs][:4] == [True] * 4
        assert all(len(epoch.steps) == NUM_ROWS for epoch in found.epochs[:4])


class TestLedger:
    def test_a_command_proves_it_and_names_a_line_that_was_taken_out(
        self, ring: RecordedRing
    ) -> None:
        ring.start(steps=10, checkpoint_every=3).finish()
        command = [sys.executable, "-m", "tempsamp", "audit", str(ring.run_dir)]

        def prove() -> subprocess.CompletedProcess[str]:
            return subprocess.run(command, capture_output=True, text=True, check=False)

        proven = prove()
        assert proven.returncode == 0, proven.stderr
        assert "proven up to the checkpoint of step 10" in proven.stdout
        ledger = ring.run_dir / FILE
        lines = ledger.read_text().splitlines(keepends=True)
        (step,) = [line for line in lines if '"kind":"step","step":3,' in line]
        ledger.write_text("".join(line for line in lines if line != step))
        refused = prove()
        assert refused.returncode == 1
        for group in json.loads(step)["groups"]:
            line = f"tempsamp: epoch 0 row {group['row_id']}: neither trained on nor listed\n"
            assert line in refused.stderr

    @pytest.mark.chaos
    def test_a_run_that_redis_has_forgotten_is_resumed_and_proven(self, ring: RecordedRing) -> None:
        ring.start(steps=4, checkpoint_every=2).finish()
        with Redis.from_url(ring.server.url, password=ring.server.password) as redis:
            keys = redis.keys(f"tempsamp:{ring.run_id}:*")
            assert len(keys) >= 4
            redis.delete(*keys)
        ring.start(steps=10, checkpoint_every=2, resume=True).finish()
        found = audited(ring)
        assert (found.step, found.num_unproven, found.violations) == (10, 0, [])

    def test_lines_after_the_checkpoint_are_cut_when_it_is_resumed(
        self, ring: RecordedRing
    ) -> None:
        ring.start(steps=4, checkpoint_every=2).finish()
        ledger = ring.run_dir / FILE
        sealed = ledger.read_bytes()
        with ledger.open("a") as file:
            file.write(sealed.decode().splitlines(keepends=True)[1] + '{"kind": "st')
        ring.start(steps=6, checkpoint_every=2, resume=True).finish()
        assert ledger.read_bytes().startswith(sealed)
        assert audited(ring).violations == []


class TestWaits:
    @pytest.mark.chaos
    def test_for_groups_says_so_and_hears_signals(self, ring: RecordedRing) -> None:
        ring.paused.set()
        learner = ring.start(steps=3)
        line = learner.wait_for("waiting for groups")
        assert (line["found"], line["wanted"], line["outstanding_prompts"]) == (0, 4, 8)
        assert line["replicas"] == "none"
        learner.process.send_signal(signal.SIGTERM)
        learner.finish()

    def test_redis_that_stays_away_does_not_cost_the_steps(
        self, own_redis_server: RedisServer, warm: Warm, run_id: str, tmp_path: Path
    ) -> None:
        with RecordedRing(own_redis_server, run_id=run_id, folder=tmp_path, warm=warm) as ring:
            learner = ring.start(steps=100_000, checkpoint_every=0)
            learner.wait_for("published", policy_version=2)
            ring.paused.set()
            own_redis_server.kill()
            learner.wait_for("waiting for redis")
            learner.process.send_signal(signal.SIGTERM)
            learner.finish()
            assert_saved(ring, learner)
            assert "Traceback" not in learner.text
            own_redis_server.start_again()
