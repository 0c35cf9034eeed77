"""The formulas against what one GPU showed: Qwen3-VL-4B, 16,002 + 8 x 256 tokens, one rank.

Nothing was published there, so rank 0's snapshot is left out of the comparison.
"""

import pytest

from common.config import Learner, Rollout, Shared
from common.model.architecture import PUBLISHED
from common.model.flops import forward_flop
from common.model.memory import CONTEXT_BYTES
from jobs.recipes.memory import ENGINE_BYTES, rank_memory, replica_memory
from jobs.recipes.times import Fleet, step_times
from jobs.recipes.tokens import GroupTokens

QWEN3_VL = PUBLISHED["Qwen/Qwen3-VL-4B-Instruct"]
TOKENS = GroupTokens(frames=398, visual=14_328, text=1674, answers=8, generated=8, answer=256)
SHARED = Shared(run_id="r", model="m", dtype="bfloat16")
GIB = 2**30


def learner(**settings: object) -> Learner:
    return Learner.model_validate(
        {"rows": "r", "run_dir": "d", "steps": 1, "gradient_checkpointing": "on"}
        | {"device_feature_cache_bytes": 0}
        | settings
    )


def test_a_step_with_adamw_takes_the_measured_memory() -> None:
    rank = rank_memory(
        SHARED, learner=learner(), architecture=QWEN3_VL, tokens=TOKENS, ranks=1, recomputed=1.0
    )
    assert rank.step - rank.snapshot - CONTEXT_BYTES == pytest.approx(76 * GIB, rel=0.02)


def test_a_backward_takes_at_most_a_third_less_than_estimated() -> None:
    rank = rank_memory(
        SHARED, learner=learner(), architecture=QWEN3_VL, tokens=TOKENS, ranks=1, recomputed=1.0
    )
    without_adamw = rank.backward - rank.snapshot - CONTEXT_BYTES - rank.states / 2
    assert 36 * GIB < without_adamw < 1.4 * 36 * GIB


def test_a_layer_keeps_what_checkpointing_was_measured_to_save() -> None:
    """3.3 GiB a layer."""
    kept = [
        rank_memory(
            SHARED,
            learner=learner(),
            architecture=QWEN3_VL,
            tokens=TOKENS,
            ranks=1,
            recomputed=recomputed,
        ).kept
        for recomputed in (0.0, 1.0)
    ]
    assert (kept[0] - kept[1]) / QWEN3_VL.layers == pytest.approx(3.3 * GIB, rel=0.15)


def test_flops_are_those_of_the_measured_step() -> None:
    forward = forward_flop(QWEN3_VL, prompt=16_002, answers=[256] * 8, scored=2048)
    assert 3 * forward == pytest.approx(683e12, rel=1e-3)


def test_ranks_share_states_and_keep_activations() -> None:
    one, four = (
        rank_memory(
            SHARED,
            learner=learner(),
            architecture=QWEN3_VL,
            tokens=TOKENS,
            ranks=ranks,
            recomputed=1.0,
        )
        for ranks in (1, 4)
    )
    assert four.states == one.states / 4
    assert (four.kept, four.inside, four.root) == (one.kept, one.inside, one.root)


@pytest.mark.parametrize("freeze", [True, False])
def test_ranks_share_a_reference_model_and_its_tower_is_the_policy_s_if_frozen(
    freeze: bool,
) -> None:
    found = [
        rank_memory(
            SHARED,
            learner=learner(loss={"kl_coef": kl}, freeze_vision=freeze),
            architecture=QWEN3_VL,
            tokens=TOKENS,
            ranks=8,
            recomputed=1.0,
        ).replicated
        for kl in (0.0, 0.04)
    ]
    tower = 0 if freeze else 2 * QWEN3_VL.tower_parameters
    assert found[1] - found[0] == 2 * QWEN3_VL.language_parameters / 8 + tower


def test_a_trained_tower_is_sharded_instead_of_replicated() -> None:
    frozen, trained = (
        rank_memory(
            SHARED,
            learner=learner(freeze_vision=freeze),
            architecture=QWEN3_VL,
            tokens=TOKENS,
            ranks=1,
            recomputed=1.0,
        )
        for freeze in (True, False)
    )
    assert (frozen.replicated, trained.replicated) == (2 * QWEN3_VL.tower_parameters, 0)
    assert trained.states - frozen.states == 16 * QWEN3_VL.tower_parameters


BUCKET = 2**26
MODEL = 2 * QWEN3_VL.parameters


@pytest.mark.parametrize(
    ("settings", "ranks", "wanted"),
    [
        ({}, 1, MODEL),
        ({}, 4, MODEL + 2 * BUCKET),
        # 2 % of values at 4 bytes each, of 2 bytes a value.
        ({"publish": "delta"}, 1, MODEL + 0.04 * 2 * QWEN3_VL.language_parameters + BUCKET),
        ({"weight_staging": "host"}, 1, 4 * BUCKET),
        ({"weight_staging": "host"}, 4, 6 * BUCKET),
    ],
)
def test_what_travels_stands_once_on_rank_0(
    settings: dict[str, str], ranks: int, wanted: float
) -> None:
    rank = rank_memory(
        SHARED,
        learner=learner(bucket_bytes=BUCKET, **settings),
        architecture=QWEN3_VL,
        tokens=TOKENS,
        ranks=ranks,
        recomputed=1.0,
    )
    assert rank.snapshot == pytest.approx(wanted)
    assert rank.peak > rank.snapshot + CONTEXT_BYTES


@pytest.mark.parametrize(
    ("place", "parallel", "wanted"),
    [
        ("device", 1, MODEL),
        ("device", 2, 2 * MODEL),  # each worker receives the whole model
        ("host", 1, 4 * BUCKET),
        ("host", 2, 8 * BUCKET),
    ],
)
def test_new_weights_land_beside_those_that_serve(place: str, parallel: int, wanted: float) -> None:
    rollout = Rollout.model_validate(
        {"weight_staging": place, "tensor_parallel": parallel, "gpu_memory_utilization": 0.9}
    )
    replica = replica_memory(
        rollout, architecture=QWEN3_VL, tokens=TOKENS, gpu_bytes=96e9, bucket_bytes=BUCKET
    )
    assert replica.staging == wanted
    room = parallel * (0.9 * 96e9 - ENGINE_BYTES)
    assert replica.cache == pytest.approx(room - replica.weights - replica.staging)


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({"max_staleness": 1}, "beside"),
        ({"max_staleness": 0}, "between"),
        ({"max_staleness": 1, "overlap_publish": "off"}, "between"),
    ],
)
def test_a_version_travels_beside_the_next_step_or_between_steps(
    settings: dict[str, object], how: str
) -> None:
    fleet = Fleet(
        learner_gpus=1, rollout_gpus=1, gpu_memory_gb=96, gpu_tflops=148, gpu_bandwidth_gbs=4000
    )
    whole, delta = (
        step_times(
            learner=learner(device="cuda", publish=publish, **settings),
            rollout=Rollout(),
            architecture=QWEN3_VL,
            tokens=TOKENS,
            fleet=fleet,
            recomputed=1.0,
        )
        for publish in ("full", "delta")
    )
    work_s = max(whole.learner_s, whole.rollout_s)
    assert whole.publish_s == pytest.approx(2 * QWEN3_VL.language_parameters / 3.9e9)
    assert delta.publish_s == pytest.approx(0.04 * whole.publish_s)
    assert whole.step_s == work_s + (whole.publish_s if how == "between" else 0.0)


def test_each_update_of_a_batch_takes_its_time() -> None:
    """The vision tower's part is taken once."""
    fleet = Fleet(
        learner_gpus=8, rollout_gpus=8, gpu_memory_gb=96, gpu_tflops=148, gpu_bandwidth_gbs=4000
    )
    once, twice, thrice = (
        step_times(
            learner=learner(updates_per_batch=count),
            rollout=Rollout(),
            architecture=QWEN3_VL,
            tokens=TOKENS,
            fleet=fleet,
            recomputed=1.0,
        ).learner_s
        for count in (1, 2, 3)
    )
    assert once < twice < 2 * once
    assert thrice - twice == pytest.approx(twice - once)
