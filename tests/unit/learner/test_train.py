"""The loop on recorded groups: signals, crashes, refusals. Real Redis, real ranks, no vLLM."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.recorded_learner import LearnerProcess, RecordedRing
from tests.fixtures.redis_server import RedisServer


@pytest.fixture
def ring(redis_server: RedisServer, run_id: str, tmp_path: Path) -> Iterator[RecordedRing]:
    with RecordedRing(redis_server, run_id=run_id, folder=tmp_path) as ring:
        yield ring


def last_published(learner: LearnerProcess) -> int:
    return max(line["policy_version"] for line in learner.said("published"))


def assert_saved(ring: RecordedRing, learner: LearnerProcess) -> None:
    folder = ring.run_dir / f"checkpoints/step-{last_published(learner):06d}"
    assert (folder / "run_state.json").exists(), learner.text[-3000:]


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_one_rank_saves_and_exits_0(self, ring: RecordedRing, number: signal.Signals) -> None:
        learner = ring.start(steps=10_000, checkpoint_every=0)
        learner.wait_for("published", policy_version=2)
        learner.process.send_signal(number)
        learner.finish()
        assert learner.said(f"{number.name}: stopping with a checkpoint")
        assert_saved(ring, learner)

    def test_all_of_two_ranks_as_torchrun_passes_it_on(self, ring: RecordedRing) -> None:
        learner = ring.start(ranks=2, steps=10_000, checkpoint_every=0)
        learner.wait_for("published", policy_version=2)
        for pid in learner.ranks():
            os.kill(pid, signal.SIGTERM)
        learner.finish()
        assert_saved(ring, learner)

    def test_rank_1_alone_while_rank_0_waits_for_groups(self, ring: RecordedRing) -> None:
        learner = ring.start(ranks=2, steps=10_000, checkpoint_every=0)
        learner.wait_for("published", policy_version=2)
        ring.paused.set()
        os.kill(learner.ranks()[1], signal.SIGTERM)
        learner.finish()
        assert learner.said("another rank was signalled: stopping with a checkpoint")
        assert_saved(ring, learner)

    def test_torchrun_itself_ends_with_1_though_its_ranks_saved(self, ring: RecordedRing) -> None:
        learner = ring.start(ranks=2, steps=10_000, checkpoint_every=0)
        learner.wait_for("published", policy_version=2)
        learner.process.send_signal(signal.SIGTERM)
        learner.finish(code=1)
        assert_saved(ring, learner)
        assert learner.text.count("Traceback") == 1, "torchrun's own"
        assert "SignalException" in learner.text.splitlines()[-1]
