"""What is minimised, in a learner on recorded groups. Real Redis and ranks, no vLLM."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.queue.ledger import FILE, StepLine, read_ledger
from tests.fixtures.learner.recorded_learner import RecordedRing
from tests.fixtures.servers.redis_server import RedisServer

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def ring(recorded_ring: RecordedRing) -> RecordedRing:
    return recorded_ring


def steps_of(ring: RecordedRing) -> list[dict[str, Any]]:
    lines = (ring.run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_batch_used_twice_is_published_once_and_its_clips_act(ring: RecordedRing) -> None:
    learner = ring.start(steps=3, updates_per_batch=2)
    learner.finish()
    lines = steps_of(ring)
    assert [line["learner/updates"] for line in lines] == [2.0, 2.0, 2.0]
    assert [line["policy_version"] for line in learner.said("published")] == [0, 1, 2, 3]
    assert any(line["learner/clip_fraction"] > 0 for line in lines), lines


@pytest.mark.chaos
def test_a_reference_spread_over_two_ranks_is_that_of_one(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    figures = {}
    for ranks in (1, 2):
        with RecordedRing(
            redis_server, run_id=f"kl-{ranks}-{tmp_path.name}", folder=tmp_path / str(ranks)
        ) as ring:
            ring.start(steps=3, ranks=ranks, updates_per_batch=2, **{"loss.kl_coef": 0.1}).finish()
            figures[ranks] = [line["learner/kl_nats"] for line in steps_of(ring)]
    assert figures[1][0] == pytest.approx(0.0, abs=1e-6)
    assert figures[1][2] > 0
    assert figures[2] == pytest.approx(figures[1], rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.chaos)])
def test_steps_in_which_all_groups_tie_go_on_without_an_update(
    ring: RecordedRing, ranks: int
) -> None:
    """They neither crash nor stall, and the ledger says that nothing was applied."""
    ring.tied.set()
    settings = {"advantage.zero_variance": "skip", "checkpoint_every": 1, "keep_checkpoints": 3}
    learner = ring.start(steps=3, ranks=ranks, **settings)
    learner.finish()
    lines = steps_of(ring)
    assert [line["learner/updates"] for line in lines] == [0.0, 0.0, 0.0]
    assert [line["advantage/groups_tied"] for line in lines] == [4.0, 4.0, 4.0]
    assert len(learner.said("nothing left to train on: this step changes no weights")) == 3
    assert ring.weights(1) == ring.weights(3)
    ledger = [line for line in read_ledger(ring.run_dir / FILE) if isinstance(line, StepLine)]
    assert [line.applied for line in ledger] == [False, False, False]
