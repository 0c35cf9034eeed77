"""Phases and pools of a whole run: exact when it is killed, true in the ledger. No vLLM."""

import hashlib
import json
from pathlib import Path

import pytest

from common.queue.ledger import FILE, read_ledger
from jobs.audit.findings import audit
from tests.fixtures.learner.recorded_learner import NUM_ROWS, RecordedRing

pytestmark = pytest.mark.timeout(300)

STEPS = 16
CURRICULUM = {
    "phases": [
        {"strategy": "sft", "steps": 4},
        {"epochs": 1, "max_tokens": 64, "format_weight": 0.0},
        {"mode": "think", "epochs": 1},
        {"mode": "answer", "strategy": "none"},
    ],
    "pool": {"drop_solved": 0.5, "drop_hopeless": 0.45},
    "steps": STEPS,
    "checkpoint_every": 3,
    "keep_checkpoints": 9,
}


@pytest.fixture
def ring(recorded_ring: RecordedRing) -> RecordedRing:
    return recorded_ring


def phases(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["learner/phase"] for line in lines]


@pytest.mark.chaos
def test_a_run_killed_within_phases_ends_with_the_same_bits_and_a_true_ledger(
    ring: RecordedRing, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    ring.start(run_dir=str(whole), **CURRICULUM).finish()
    assert sorted(set(phases(whole))) == [1.0, 2.0, 3.0, 4.0]
    assert phases(whole) == sorted(phases(whole))
    first = ring.start(**CURRICULUM)
    first.wait_for("published", policy_version=7)
    first.kill()
    second = ring.start(resume=True, **CURRICULUM)
    second.finish()
    assert second.said("resumed")[0]["step"] in (3, 6)
    assert phases(ring.run_dir) == phases(whole)
    assert ring.weights(STEPS) == ring.weights(STEPS, run_dir=whole)
    rows = (ring.folder / "rows.jsonl").read_bytes()
    found = audit(
        list(read_ledger(ring.run_dir / FILE)),
        rows=[str(number) for number in range(1, NUM_ROWS + 1)],
        rows_sha256=hashlib.sha256(rows).hexdigest(),
    )
    assert found.violations == []
    left_out = [len(epoch.left_out) for epoch in found.epochs]
    assert left_out[0] == 0
    assert any(left_out), "the pool did something"
    for epoch in found.epochs:
        if epoch.is_finished:
            assert len(epoch.steps) + len(epoch.left_out) == NUM_ROWS
    plain = {**CURRICULUM, "phases": [], "pool": {}, "run_dir": str(tmp_path / "plain")}
    ring.start(**plain).finish()
    assert ring.weights(3, run_dir=whole) != ring.weights(3, run_dir=tmp_path / "plain")


@pytest.mark.chaos
def test_other_phases_are_not_resumed(ring: RecordedRing) -> None:
    short = {**CURRICULUM, "steps": 2}
    ring.start(**short).finish()
    learner = ring.start(resume=True, **{**short, "phases": [], "steps": 4})
    learner.finish(code=2)
    assert "learner.phases: found []" in learner.text


def test_a_run_ends_early_where_validation_stopped_to_improve(ring: RecordedRing) -> None:
    ring.start(steps=2).finish()
    lines = ({"step": n, "policy_version": n, "val/miou": 0.4 - n / 100} for n in range(3))
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (ring.run_dir / "validation.jsonl").write_text(text)
    validation = {"rows": str(ring.folder / "rows.jsonl"), "every": 100}
    settings = {"steps": 9, "validation": validation}
    learner = ring.start(resume=True, early_stop={"patience": 2}, **settings)
    learner.finish()
    assert learner.said("early stop")[0]["policy_version"] == 2
    assert not (ring.run_dir / "checkpoints/step-000003").exists()
    lines_after = (ring.run_dir / "metrics.jsonl").read_text().splitlines()
    assert len(lines_after) == 2
