"""Adapters learn as PEFT's own do, and leave as the weights that PEFT would merge."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config import Lora
from common.errors import ConfigError
from common.messages import ScoredGroup
from services.learner.batching.batch import MicroBatch, collate
from services.learner.model.policy import Policy, load_policy
from services.learner.parallel import Ranks, shard_model, whole_weights
from tests.fixtures.learner.groups import clip_ref, limits, scored_group
from tests.fixtures.learner.learner_rank import fill_adapters
from tests.fixtures.learner.tiny_models import ARCHITECTURES, Architecture

ModelFolder = Callable[[Architecture], Path]
SETTINGS = Lora(rank=4, alpha=8.0)
CLEAR_NATS = 1e-2


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    found: Architecture = request.param
    return found


@pytest.fixture
def model(architecture: Architecture, tiny_model: ModelFolder) -> Path:
    return tiny_model(architecture)


@pytest.fixture
def batch(
    architecture: Architecture, tiny_model: ModelFolder, clip_paths: tuple[Path, Path]
) -> MicroBatch:
    return batch_of(architecture, tiny_model, clip_paths)


def batch_of(
    architecture: Architecture, tiny_model: ModelFolder, clip_paths: tuple[Path, Path]
) -> MicroBatch:
    model = tiny_model(architecture)
    group: ScoredGroup = scored_group(
        model,
        clip_ref(clip_paths[0], architecture=architecture),
        video_token_id=load_policy(model).model.config.video_token_id,
        answer_lengths=(3, 5, 2),
    )
    (batch,) = collate([group], [[1.0, -1.0, 2.0]], limits=limits()).micro_batches
    return batch


def adapted(model: Path, **settings: Any) -> Policy:
    """Adapters that change something."""
    policy = load_policy(model, adapters=SETTINGS, **settings)
    fill_adapters(policy)
    return policy


def merged_by_peft(model: Path, policy: Policy, folder: Path) -> dict[str, Tensor]:
    """What PEFT makes of the saved adapter and the untouched checkpoint."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    assert policy.adapters is not None
    policy.adapters.save(folder, policy.adapters.whole_tensors(), model=str(model))
    base = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, folder)
    return dict(loaded.merge_and_unload().named_parameters())


def gradients(policy: Policy) -> dict[str, Tensor]:
    return {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}


def test_scores_are_those_of_the_merged_weights(
    model: Path, batch: MicroBatch, ranks: Ranks
) -> None:
    policy, merged = adapted(model), load_policy(model)
    with torch.no_grad():
        before = merged(batch).logprobs_GSR
        weights = dict(whole_weights(policy, dtype=torch.float32, ranks=ranks))
        assert weights.keys() == dict(merged.named_weights()).keys()
        for name, parameter in merged.named_weights():
            parameter.copy_(weights[name])
        found, wanted = policy(batch).logprobs_GSR, merged(batch).logprobs_GSR
    assert torch.allclose(found, wanted, atol=1e-4)
    assert (found - before).abs().max() > CLEAR_NATS


def test_weights_leave_as_peft_merges_them_bit_for_bit(
    model: Path, ranks: Ranks, tmp_path: Path
) -> None:
    policy = adapted(model)
    wanted = merged_by_peft(model, policy, tmp_path / "adapter")
    found = dict(whole_weights(policy, dtype=torch.float32, ranks=ranks))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_a_bfloat16_checkpoint_is_kept_in_bfloat16_and_merged_in_float32(
    ranks: Ranks, tiny_model: ModelFolder, clip_paths: tuple[Path, Path], tmp_path: Path
) -> None:
    start = load_policy(tiny_model("qwen3_vl"))
    start.model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        (tmp_path / "model" / name).write_text((tiny_model("qwen3_vl") / name).read_text())
    policy = adapted(tmp_path / "model")
    wanted = merged_by_peft(tmp_path / "model", policy, tmp_path / "adapter")
    shard_model(policy, ranks=ranks, compute_dtype=torch.bfloat16)
    kept = {parameter.dtype: parameter.requires_grad for parameter in policy.parameters()}
    assert kept == {torch.bfloat16: False, torch.float32: True}
    for name, tensor in whole_weights(policy, dtype=torch.float32, ranks=ranks):
        assert torch.equal(tensor, wanted[name]), name
    batch = batch_of("qwen3_vl", tiny_model, clip_paths)
    scores_GSR = policy(batch).logprobs_GSR
    scores_GSR.sum().backward()
    gap_nats = (scores_GSR - adapted(tmp_path / "model")(batch).logprobs_GSR).abs().max().item()
    assert 0 < gap_nats < 0.5, "computed in bfloat16"
    with_gradient = [p for p in policy.parameters() if p.grad is not None]
    assert {p.grad.dtype for p in with_gradient} == {torch.float32}
    assert len(with_gradient) == sum(p.requires_grad for p in policy.parameters())


def test_only_adapters_learn_and_all_of_them(model: Path, batch: MicroBatch) -> None:
    losses, found = [], []
    for recomputed in (0.0, 1.0):
        policy = adapted(model, recomputed=recomputed)
        loss = policy(batch).logprobs_GSR.sum()
        loss.backward()
        losses.append(loss.item())
        found.append(gradients(policy))
    assert losses[0] == losses[1]
    assert policy.adapters is not None
    assert len(found[0]) == 2 * len(policy.adapters)
    assert all(".lora_" in name and gradient.any() for name, gradient in found[0].items())
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_policy_without_adapters_is_the_start_checkpoint(
    model: Path, batch: MicroBatch
) -> None:
    policy, start = adapted(model), load_policy(model)
    with torch.no_grad():
        with_adapters = policy(batch).logprobs_GSR
        assert torch.equal(policy.unadapted(batch).logprobs_GSR, start(batch).logprobs_GSR)
        assert torch.equal(policy(batch).logprobs_GSR, with_adapters)
    policy(batch).logprobs_GSR.sum().backward()
    assert len(gradients(policy)) == sum(p.requires_grad for p in policy.parameters())


def test_fresh_adapters_change_nothing(model: Path, batch: MicroBatch) -> None:
    fresh, start = load_policy(model, adapters=SETTINGS), load_policy(model)
    with torch.no_grad():
        assert torch.equal(fresh(batch).logprobs_GSR, start(batch).logprobs_GSR)


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_the_tower_has_adapters_if_it_is_trained(
    model: Path, batch: MicroBatch, *, freeze_vision: bool
) -> None:
    policy = adapted(model, freeze_vision=freeze_vision)
    policy(batch).logprobs_GSR.sum().backward()
    trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in trained)
    assert any("visual" in name for name in trained) is not freeze_vision
    assert gradients(policy).keys() == trained


def test_target_modules_are_ends_of_names(tiny_model: ModelFolder) -> None:
    settings = Lora(target_modules=("q_proj", "mlp.down_proj"))
    adapters = load_policy(tiny_model("qwen3_5"), adapters=settings).adapters
    assert adapters is not None
    assert len(adapters) == 1 + 3, "one layer with attention, three with an MLP"
    assert "model.language_model.layers.0.mlp.down_proj.weight" in adapters
    assert "model.language_model.layers.1.self_attn.q_proj.weight" in adapters
    assert "model.language_model.layers.1.self_attn.k_proj.weight" not in adapters


@pytest.mark.parametrize("wanted", ["query", "proj", "lm_head", "qkv"])
def test_a_target_that_matches_nothing_is_refused_with_what_there_is(
    tiny_model: ModelFolder, wanted: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_policy(tiny_model("qwen3_5"), adapters=Lora(target_modules=("q_proj", wanted)))
    assert str(refused.value) == (
        f"learner.lora.target_modules: found {wanted!r}, wanted ends of names of the decoder's "
        "linear layers: down_proj, gate_proj, in_proj_a, in_proj_b, in_proj_qkv, in_proj_z, "
        "k_proj, o_proj, out_proj, q_proj, up_proj, v_proj"
    )
