"""What is minimised, in a learner on recorded groups. Real Redis and ranks, no vLLM."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.queue.ledger import FILE, StepLine, read_ledger
from tests.fixtures.learner.recorded_learner import RecordedRing
from tests.fixtures.servers.redis_server import RedisServer

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def ring(redis_server: RedisServer, run_id: str, tmp_path: Path) -> Iterator[RecordedRing]:
    with RecordedRing(redis_server, run_id=run_id, folder=tmp_path) as ring:
        yield ring


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
