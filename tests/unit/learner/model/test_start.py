"""A policy that starts without memory and is filled by rank 0 equals one that is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule

from services.learner.model import start
from services.learner.parallel import Ranks
from tests.fixtures.learner.ranks import RunRanks
from tests.fixtures.learner.start_rank import assert_starts_as_loaded
from tests.fixtures.learner.tiny_models import ARCHITECTURES, Architecture

ROOT = Path(__file__).parents[4]
DEADLINE_S = 150
ModelFolder = Callable[[Architecture], Path]


@pytest.fixture(scope="module")
def models(tiny_model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Each architecture in float32, and one that is tied, sharded and in bfloat16."""
    tied = tmp_path_factory.mktemp("tied") / "model"
    shutil.copytree(tiny_model("qwen3_vl"), tied)
    settings = json.loads((tied / "config.json").read_text())
    settings["tie_word_embeddings"] = settings["text_config"]["tie_word_embeddings"] = True
    (tied / "config.json").write_text(json.dumps(settings))
    (tied / "generation_config.json").write_text(json.dumps({"temperature": 0.25, "top_k": 7}))
    tensors = load_file(tied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()
    (tied / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in files.items():
        part = {name: tensors[name].to(torch.bfloat16) for name in own}
        save_file(part, tied / file, metadata={"format": "pt"})
    weight_map = {name: file for file, own in files.items() for name in own}
    (tied / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return [*(tiny_model(architecture) for architecture in ARCHITECTURES), tied]


def test_two_ranks_start_as_a_direct_load(models: list[Path], run_ranks: RunRanks) -> None:
    run_ranks(2, "tests.fixtures.learner.start_rank", *map(str, models), timeout_s=DEADLINE_S)


@pytest.mark.parametrize("number", range(4))
def test_one_rank_starts_as_a_direct_load(number: int, models: list[Path], ranks: Ranks) -> None:
    assert_starts_as_loaded(models[number], ranks, freeze_vision=True)


@pytest.mark.parametrize("number", range(4))
def test_what_is_given_memory_is_filled(number: int, models: list[Path], ranks: Ranks) -> None:
    """Memory comes with whatever it held, here NaN: nothing of it may be left."""
    policy = start.load_policy(models[number], empty=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        start._give_memory(policy, torch.device("cpu"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(parameter.isnan().all() for parameter in policy.parameters())
    start._fill(policy, models[number], {}, ranks=ranks)
    named = [*policy.named_parameters(), *policy.named_buffers()]
    assert [name for name, value in named if value.isnan().any()] == []


@pytest.mark.parametrize(("dtype", "is_sharded"), [("bfloat16", False), ("float32", True)])
def test_one_rank_shards_what_has_masters_in_another_dtype(
    dtype: str, is_sharded: bool, models: list[Path], ranks: Ranks
) -> None:
    """A frozen reference has none: it is the model as it is loaded."""
    kept = getattr(torch, dtype)
    policy = start.start_policy(models[0], ranks=ranks, compute_dtype=torch.bfloat16, dtype=kept)
    assert isinstance(policy, FSDPModule) == is_sharded
    assert {p.dtype for p in policy.decoder_layers.parameters()} == {kept}
