"""A learner that trains adapters, on recorded groups: killed, resumed, refused. Real Redis."""

from pathlib import Path

import pytest

from tests.fixtures.learner.recorded_learner import RecordedRing

pytestmark = pytest.mark.timeout(600)
ADAPTERS = {"lora.rank": 4, "loss.kl_coef": 0.01}


@pytest.fixture
def ring(recorded_ring: RecordedRing) -> RecordedRing:
    return recorded_ring


@pytest.mark.chaos
def test_adapters_of_two_ranks_are_resumed_once_and_with_the_same_settings(
    ring: RecordedRing, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    ring.start(ranks=2, steps=6, run_dir=str(whole), **ADAPTERS).finish()
    first = ring.start(ranks=2, steps=6, **ADAPTERS)
    first.wait_for("checkpoint", step=3)
    first.kill()
    other = ring.start(steps=6, resume=True, **ADAPTERS | {"lora.rank": 8})
    other.finish(code=2)
    assert other.said("training adapters")[0]["layers"] == 14
    assert "  learner.lora.rank: found 8, wanted 4\n" in other.text
    second = ring.start(ranks=2, steps=6, resume=True, **ADAPTERS)
    second.finish()
    assert second.said("resumed")
    assert ring.weights(6) == ring.weights(6, run_dir=whole)
    adapters = [folder / "checkpoints/step-000006/adapter" for folder in (whole, ring.run_dir)]
    one, two = ((folder / "adapter_model.safetensors").read_bytes() for folder in adapters)
    assert one == two


def test_a_target_that_there_is_not_is_one_line(ring: RecordedRing) -> None:
    learner = ring.start(steps=1, **{"lora.target_modules": ["query"]})
    learner.finish(code=2)
    last = learner.text.splitlines()[-1]
    assert "learner.lora.target_modules: found 'query', wanted ends of names" in last
    assert "Traceback" not in learner.text
