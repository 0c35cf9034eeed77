"""What adapters of a plan count is what a model gets."""

from pathlib import Path

import pytest

from common import config
from common.config import Learner, Lora
from common.model.adapters import trained
from common.model.architecture import architecture_of
from jobs.recipes.memory import rank_memory
from jobs.recipes.tokens import group_tokens
from services.learner.model.policy import load_policy
from tests.fixtures.learner.tiny_models import ARCHITECTURES, Architecture, write_tiny_model

ROOT = Path(__file__).resolve().parents[4]
RECIPE = ROOT / "deploy/configs/timelens_tempsamp_qwen3_5_4b.toml"
TARGETS = (("all-linear",), ("q_proj", "mlp.down_proj"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_of_the_decoder_are_counted_one_by_one(
    architecture: Architecture, tmp_path: Path
) -> None:
    folder = write_tiny_model(tmp_path, architecture)
    for targets in TARGETS:
        lora = Lora(rank=3, target_modules=targets)
        learner = Learner(rows=tmp_path, run_dir=tmp_path, steps=1, lora=lora)
        policy = load_policy(folder, adapters=lora)
        adapters = policy.adapters
        assert adapters is not None
        found = trained(architecture_of(str(folder)), learner)
        assert found.parameters == sum(p.numel() for p in policy.parameters() if p.requires_grad)
        weights = policy.named_weights()
        assert found.changing == sum(p.numel() for name, p in weights if name in adapters)


def test_a_rank_with_adapters_by_hand() -> None:
    """Qwen3.5-4B, rank 16, 4 ranks; layers as in `test_recipes`.

    Outputs and inputs of all linear layers: an MLP 3 x (2560 + 9216) = 35,328, full attention (2560
    + 8192) + 2 x (2560 + 1024) + (4096 + 2560) = 24,576, a delta net (2560 + 8192) + (2560 + 4096)
    + 2 x (2560 + 32) + (4096 + 2560) = 29,248.
    """
    run = config.load(RECIPE, overrides=["learner.lora.rank=16", "learner.loss.kl_coef=0.01"])
    architecture = architecture_of(run.shared.model)
    found = trained(architecture, run.learner)
    assert found.parameters == 16 * (32 * 35_328 + 8 * 24_576 + 24 * 29_248) == 32_464_896
    assert found.changing == architecture.decoder_parameters
    tokens = group_tokens(run.shared, architecture=architecture)
    rank = rank_memory(
        run.shared,
        learner=run.learner,
        architecture=architecture,
        tokens=tokens,
        ranks=4,
        recomputed=1.0,
    )
    assert rank.states == (16 * 32_464_896 + 2 * architecture.language_parameters) / 4
    assert rank.temporaries == 4 * 32_464_896 / 4
    assert rank.root == 2 * architecture.root_parameters
    assert rank.replicated == 2 * architecture.tower_parameters, "no second model"


def test_the_figures_of_the_page_are_those_of_a_plan() -> None:
    ranks = []
    for overrides in (["learner.lora.rank=16"], []):
        run = config.load(RECIPE, overrides=overrides)
        architecture = architecture_of(run.shared.model)
        tokens = group_tokens(run.shared, architecture=architecture)
        ranks.append(
            rank_memory(
                run.shared,
                learner=run.learner,
                architecture=architecture,
                tokens=tokens,
                ranks=1,
                recomputed=1.0,  # "auto" comes to that on one card of 96 GB
            )
        )
    (backward, whole_backward), (step, whole_step) = (
        [f"{size / 1e9:.1f}" for size in sizes]
        for sizes in ([r.backward for r in ranks], [r.step for r in ranks])
    )
    page = " ".join((ROOT / "docs/cluster.md").read_text(encoding="utf-8").split())
    assert f"{backward} GB in backward instead of {whole_backward}" in page
    assert f"{step} in AdamW's step instead of {whole_step}" in page
