"""Optimizer steps of a tiny model: what changes weights, and what does not."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from common import config
from common.config import Run
from common.messages import ClipRef, ScoredGroup
from common.video.frames import load_frames
from services.learner import step
from services.learner.batching.batch import NO_WORK, TrainBatch, collate
from services.learner.model.policy import load_policy
from services.learner.model.vision import LoadFrames
from services.learner.objective.loss import policy_loss
from services.learner.parallel import Ranks, shard_model
from services.learner.step import Stepper
from tests.fixtures.learner.groups import clip_ref, one_each, scored_group
from tests.fixtures.learner.tiny_models import Architecture


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
    model: Path,
    ranks: Ranks,
    *,
    load_frames: LoadFrames = load_frames,
    dtype: str = "float32",
    **learner: Any,
) -> Stepper:
    """lr .01: one update is felt."""
    document = {
        "shared": {"run_id": "a", "model": str(model), "dtype": dtype},
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
    shard_model(policy, ranks=ranks, compute_dtype=getattr(torch, dtype))
    return Stepper.of(run, policy, start=model, ranks=ranks, load_frames=load_frames)


def batch_of(groups: list[ScoredGroup]) -> TrainBatch:
    advantages = [[-1.0, 0.5, 1.0]] * len(groups)
    return collate(groups, advantages, limits=one_each(groups))


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


def test_with_one_update_a_batch_the_clips_are_inert(
    model: Path, ranks: Ranks, groups: list[ScoredGroup]
) -> None:
    figures = stepper(model, ranks).step(batch_of(groups), number=1)
    assert figures["learner/updates"] == 1.0
    assert figures["learner/clip_fraction"] == 0.0


def test_from_the_second_update_on_ratios_are_to_the_policy_before_the_first(
    model: Path, ranks: Ranks, groups: list[ScoredGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def recorded(logprobs_GSR: torch.Tensor, **arguments: Any) -> Any:
        calls.append((logprobs_GSR.detach().clone(), arguments["old_logprobs_GSR"].clone()))
        return policy_loss(logprobs_GSR, **arguments)

    monkeypatch.setattr(step, "policy_loss", recorded)
    batch = batch_of(groups)
    figures = stepper(model, ranks, updates_per_batch=3).step(batch, number=1)
    assert figures["learner/updates"] == 3.0
    assert 0 < figures["learner/clip_fraction"] < 1
    count = len(batch.micro_batches)
    first, second, third = calls[:count], calls[count : 2 * count], calls[2 * count :]
    for before, *later in zip(first, second, third, strict=True):
        assert torch.equal(before[0], before[1])
        for new, old in later:
            assert torch.equal(old, before[0])
            assert not torch.equal(new, old)


def test_the_first_of_several_updates_is_that_of_a_batch_used_once(
    model: Path, ranks: Ranks, groups: list[ScoredGroup]
) -> None:
    """Figures are of the first one; the learning rate is the step's in all of them."""
    optimizer = {"lr": 0.01, "warmup_steps": 4}
    once, twice = (
        stepper(model, ranks, updates_per_batch=count, optimizer=optimizer) for count in (1, 2)
    )
    first, second = (made.step(batch_of(groups), number=2) for made in (once, twice))
    assert first["learner/lr"] == second["learner/lr"] == 0.005
    of_all = {"learner/clip_fraction", "learner/updates", "learner/grad_norm"}
    assert {k: v for k, v in first.items() if k not in of_all} == {
        k: v for k, v in second.items() if k not in of_all
    }
    before, after = weights(once), weights(twice)
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_update_that_is_not_finite_ends_its_step(
    model: Path, ranks: Ranks, groups: list[ScoredGroup]
) -> None:
    made = stepper(model, ranks, updates_per_batch=3)
    advantages = [[math.inf, 0.5, 1.0]] * len(groups)
    before = weights(made)
    figures = made.step(collate(groups, advantages, limits=one_each(groups)), number=1)
    assert figures["learner/updates"] == 0.0
    assert figures["learner/skipped_steps"] == 1.0
    assert figures["learner/grad_norm"] == -1.0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(made), strict=True))


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


def test_in_bfloat16_policy_and_reference_agree_before_the_first_update(
    model: Path, ranks: Ranks, groups: list[ScoredGroup]
) -> None:
    """The policy computes in bfloat16 from float32 masters, the reference is bfloat16 itself."""
    made = stepper(model, ranks, dtype="bfloat16", loss={"kl_coef": 0.1})
    assert made.step(batch_of(groups), number=1)["learner/kl_nats"] < 1e-6
    assert made.step(batch_of(groups), number=2)["learner/kl_nats"] > 1e-4
