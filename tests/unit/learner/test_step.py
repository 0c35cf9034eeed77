"""Optimizer steps of a tiny model: what changes weights, and what does not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from common import config
from common.config import Run
from common.messages import ClipRef, ScoredGroup
from common.video.frames import load_frames
from services.learner import parallel
from services.learner.batching.batch import NO_WORK, TrainBatch, collate
from services.learner.model.policy import load_policy
from services.learner.model.vision import LoadFrames
from services.learner.parallel import Ranks
from services.learner.step import Stepper
from tests.fixtures.learner.groups import clip_ref, scored_group
from tests.fixtures.learner.tiny_models import Architecture

TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    started = parallel.start_ranks("cpu", timeout_s=TIMEOUT_S)
    yield started
    started.close()


@pytest.fixture
def model(tiny_model: Callable[[Architecture], Path]) -> Path:
    return tiny_model("qwen3_vl")


@pytest.fixture
def groups(model: Path, clip_paths: tuple[Path, Path]) -> list[ScoredGroup]:
    video_token_id = AutoConfig.from_pretrained(model).video_token_id
    return [
        scored_group(
            model,
            clip_ref(path, architecture="qwen3_vl"),
            video_token_id=video_token_id,
            answer_lengths=(3, 5, 2),
            seed=seed,
        )
        for seed, path in enumerate(clip_paths)
    ]


def stepper(
    model: Path, ranks: Ranks, *, load_frames: LoadFrames = load_frames, **learner: Any
) -> Stepper:
    """lr .01: one update is felt."""
    document = {
        "shared": {"run_id": "a", "model": str(model)},
        "learner": {
            "rows": "r",
            "run_dir": "d",
            "steps": 9,
            "optimizer": {"lr": 0.01},
            **learner,
        },
    }
    run: Run = config.parse(document, environ={})
    policy = load_policy(model, freeze_vision=run.learner.freeze_vision, load_frames=load_frames)
    return Stepper.of(run, policy, start=model, ranks=ranks, load_frames=load_frames)


def batch_of(groups: list[ScoredGroup]) -> TrainBatch:
    advantages = [[-1.0, 0.5, 1.0]] * len(groups)
    return collate(groups, advantages, micro_batch_groups=1)


def weights(stepper: Stepper) -> list[torch.Tensor]:
    return [p.detach().clone() for p in stepper.policy.parameters() if p.requires_grad]


def test_a_step_without_work_changes_nothing_and_says_so(
    model: Path, ranks: Ranks, groups: list[ScoredGroup], caplog: pytest.LogCaptureFixture
) -> None:
    made = stepper(model, ranks)
    assert made.step(batch_of(groups), number=1)["learner/updates"] == 1.0
    before = weights(made)
    figures = made.step(NO_WORK, number=2)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(made), strict=True))
    assert figures["learner/updates"] == figures["learner/policy_loss"] == 0.0
    assert figures["learner/lr"] == 0.01
    assert "nothing left to train on" in caplog.text
    usual = made.step(batch_of(groups), number=3)
    assert figures.keys() == usual.keys(), "a step's line has the same keys"


def test_policy_and_reference_decode_and_encode_each_clip_once(
    model: Path, ranks: Ranks, groups: list[ScoredGroup]
) -> None:
    decoded = []

    def counted(clip: ClipRef) -> Any:
        decoded.append(clip.uri)
        return load_frames(clip)

    made = stepper(model, ranks, load_frames=counted, loss={"kl_coef": 0.1})
    assert made.reference is not None
    encoded = []
    tower = made.policy.tower
    tower.register_forward_hook(lambda *_: encoded.append(1))
    first = made.step(batch_of(groups), number=1)
    second = made.step(batch_of(groups), number=2)
    assert len(decoded) == len(encoded) == len(groups)
    assert made.reference.tower is tower, "one tower in memory"
    assert first["learner/kl_nats"] == pytest.approx(0.0, abs=1e-7)
    assert second["learner/kl_nats"] > 1e-4, "the policy has left its start"


def test_the_reference_of_a_trained_tower_has_its_own(
    model: Path, ranks: Ranks, groups: list[ScoredGroup]
) -> None:
    made = stepper(model, ranks, loss={"kl_coef": 0.1}, freeze_vision=False)
    assert made.reference is not None
    assert made.reference.tower is not made.policy.tower
    assert not any(p.requires_grad for p in made.reference.parameters())
