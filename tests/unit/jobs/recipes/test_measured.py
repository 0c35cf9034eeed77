"""The formulas against what one GPU showed: Qwen3-VL-4B, 16,002 + 8 x 256 tokens, one rank."""

import pytest

from common.config import Learner, Shared
from jobs.recipes.architecture import PUBLISHED
from jobs.recipes.memory import CONTEXT_BYTES, rank_memory
from jobs.recipes.times import forward_flop
from jobs.recipes.tokens import GroupTokens

QWEN3_VL = PUBLISHED["Qwen/Qwen3-VL-4B-Instruct"]
TOKENS = GroupTokens(frames=398, visual=14_328, text=1674, answers=8, generated=8, answer=256)
SHARED = Shared(run_id="r", model="m", dtype="bfloat16")
GIB = 2**30


def learner(**settings: object) -> Learner:
    return Learner.model_validate(
        {"rows": "r", "run_dir": "d", "steps": 1, "gradient_checkpointing": True}
        | {"micro_batch_groups": 1}
        | settings
    )


def test_a_step_with_adamw_takes_the_measured_memory() -> None:
    rank = rank_memory(SHARED, learner=learner(), architecture=QWEN3_VL, tokens=TOKENS, ranks=1)
    assert rank.step - CONTEXT_BYTES == pytest.approx(76 * GIB, rel=0.02)


def test_a_backward_takes_at_most_a_third_less_than_estimated() -> None:
    rank = rank_memory(SHARED, learner=learner(), architecture=QWEN3_VL, tokens=TOKENS, ranks=1)
    without_adamw = rank.backward - CONTEXT_BYTES - rank.states / 2
    assert 36 * GIB < without_adamw < 1.4 * 36 * GIB


def test_a_layer_keeps_what_checkpointing_was_measured_to_save() -> None:
    """3.3 GiB a layer."""
    kept = [
        rank_memory(
            SHARED,
            learner=learner(gradient_checkpointing=checkpointing),
            architecture=QWEN3_VL,
            tokens=TOKENS,
            ranks=1,
        ).kept
        for checkpointing in (False, True)
    ]
    assert (kept[0] - kept[1]) / QWEN3_VL.layers == pytest.approx(3.3 * GIB, rel=0.15)


def test_flops_are_those_of_the_measured_step() -> None:
    forward = forward_flop(QWEN3_VL, prompt=16_002, answers=8, answer=256, scored=2048)
    assert 3 * forward == pytest.approx(683e12, rel=1e-3)


def test_ranks_share_states_and_keep_activations() -> None:
    one, four = (
        rank_memory(SHARED, learner=learner(), architecture=QWEN3_VL, tokens=TOKENS, ranks=ranks)
        for ranks in (1, 4)
    )
    assert four.states == one.states / 4
    assert (four.kept, four.inside, four.root) == (one.kept, one.inside, one.root)


def test_a_reference_model_stands_whole_on_each_rank() -> None:
    found = [
        rank_memory(
            SHARED,
            learner=learner(loss={"kl_coef": kl}),
            architecture=QWEN3_VL,
            tokens=TOKENS,
            ranks=8,
        ).replicated
        for kl in (0.0, 0.04)
    ]
    assert found[1] - found[0] == 2 * QWEN3_VL.parameters


def test_a_trained_tower_is_sharded_instead_of_replicated() -> None:
    frozen, trained = (
        rank_memory(
            SHARED,
            learner=learner(freeze_vision=freeze),
            architecture=QWEN3_VL,
            tokens=TOKENS,
            ranks=1,
        )
        for freeze in (True, False)
    )
    assert (frozen.replicated, trained.replicated) == (2 * QWEN3_VL.tower_parameters, 0)
    assert trained.states - frozen.states == 16 * QWEN3_VL.tower_parameters
