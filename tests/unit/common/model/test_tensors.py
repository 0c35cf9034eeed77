"""Tensors of a model folder that do not fit its config.json are refused by name, by both sides."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from common import config
from common.errors import ConfigError
from common.model.expected import refuse_unfit_model
from services.learner.model.policy import load_policy
from services.rollout import engine
from services.rollout.receiving.link import WorkerLinks
from tests.fixtures.learner.tiny_models import ARCHITECTURES, Architecture, write_tiny_model

INDEX = "model.safetensors.index.json"
EMBEDDINGS = "model.language_model.embed_tokens.weight"
Fault = Callable[[dict[str, Tensor]], object]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Architecture], Path]:
    """Architecture → folder of a tiny checkpoint, not to be changed."""

    @cache
    def folder(architecture: Architecture) -> Path:
        return write_tiny_model(tmp_path_factory.mktemp(architecture), architecture)

    return folder


@pytest.fixture(params=ARCHITECTURES)
def folder(
    request: pytest.FixtureRequest,
    originals: Callable[[Architecture], Path],
    tmp_path: Path,
) -> Path:
    """A copy of each architecture's checkpoint."""
    return shutil.copytree(originals(request.param), tmp_path / request.param)


def change(folder: Path, fault: Fault) -> None:
    """Rewrite the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    fault(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def tie(folder: Path) -> None:
    """Have config.json say that the head is the embeddings."""
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))


def embeddings(folder: Path) -> str:
    """What the file calls them: Qwen2.5-VL's files have older names."""
    names = load_file(folder / "model.safetensors")
    return next(name for name in names if name.endswith("embed_tokens.weight"))


def shard(folder: Path) -> dict[str, str]:
    """Cut the file in two with an index; returns its weight_map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in halves.items():
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, own in halves.items() for name in own}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def start_replica(folder: Path) -> None:
    """As a replica does until it would import vLLM."""
    shared = config.Shared(run_id="tensors", model=str(folder))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "_prepare_environment", lambda rollout: None)
        engine.Engine._load(shared, config.Rollout(), WorkerLinks(1))


def refusal(folder: Path) -> str:
    """The one line, the learner's and a replica's alike."""
    with pytest.raises(ConfigError) as replica:
        start_replica(folder)
    with pytest.raises(ConfigError) as learner:
        load_policy(folder)
    line = str(replica.value)
    assert str(learner.value) == line
    assert line.startswith("shared.model: found ")
    assert f"in {folder}" in line
    assert ", wanted " in line
    assert "\n" not in line
    return line


def test_whole_checkpoints_pass(folder: Path) -> None:
    refuse_unfit_model(folder)
    shard(folder)
    refuse_unfit_model(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change(folder, lambda tensors: tensors.pop("lm_head.weight"))
    assert "found no lm_head.weight in" in refusal(folder)


def test_many_missing_tensors_are_counted(folder: Path) -> None:
    def drop_a_layer(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".layers.1." in name]:
            del tensors[name]

    change(folder, drop_a_layer)
    line = refusal(folder)
    assert "found no model.language_model.layers.1." in line
    assert line.count(".layers.1.") == 5
    assert " more in " in line


def test_a_tensor_of_another_model_is_named(folder: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["model.language_model.layers.9.mlp.up_proj.weight"] = torch.zeros(2, 2)

    change(folder, add)
    assert (
        "found 1 tensor of another model (model.language_model.layers.9.mlp.up_proj.weight)"
    ) in refusal(folder)


def test_another_shape_is_named(folder: Path) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:7].clone()

    change(folder, cut)
    assert "found lm_head.weight of shape [7, 64] instead of [320, 64] in" in refusal(folder)


def test_a_tied_head_may_be_absent_or_equal_but_not_another(folder: Path) -> None:
    tie(folder)
    assert f"a lm_head.weight that differs from {EMBEDDINGS}, though config" in refusal(folder)
    source = embeddings(folder)

    def equal(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors[source].clone()

    change(folder, equal)
    refuse_unfit_model(folder)
    load_policy(folder)
    change(folder, lambda tensors: tensors.pop("lm_head.weight"))
    refuse_unfit_model(folder)
    policy = load_policy(folder)
    assert policy.model.lm_head.weight is policy.model.get_input_embeddings().weight


def test_buffers_and_what_nobody_loads_are_harmless(folder: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
        tensors["model.visual.rotary_pos_emb.inv_freq"] = torch.zeros(4)
        tensors["mtp.layers.0.mlp.up_proj.weight"] = torch.zeros(4)

    change(folder, add)
    refuse_unfit_model(folder)


def test_names_before_and_after_qwen2_5_vl_got_a_language_model_pass(
    originals: Callable[[Architecture], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(originals("qwen2_5_vl"), tmp_path / "model")
    older = load_file(folder / "model.safetensors")
    assert {"model.norm.weight", "visual.blocks.0.norm1.weight"} <= older.keys()

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            if name.startswith("visual."):
                tensors[f"model.{name}"] = tensors.pop(name)
            elif name.startswith("model."):
                tensors[name.replace("model.", "model.language_model.", 1)] = tensors.pop(name)

    change(folder, rename)
    refuse_unfit_model(folder)
    newer = dict(load_policy(folder).named_weights())
    assert torch.equal(newer["model.language_model.norm.weight"], older["model.norm.weight"])


@pytest.mark.parametrize("architecture", ["qwen3_vl", "qwen3_5"])
def test_other_architectures_have_no_older_names(
    architecture: Architecture, originals: Callable[[Architecture], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(originals(architecture), tmp_path / "model")

    def rename(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] = tensors.pop("model.language_model.norm.weight")

    change(folder, rename)
    line = refusal(folder)
    assert "no model.language_model.norm.weight; 1 tensor of another model (model.norm" in line


def test_an_index_that_names_an_absent_file_is_refused(folder: Path) -> None:
    weight_map = shard(folder)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"found no model-2\.safetensors in \S+, wanted all 2 fi"):
        start_replica(folder)
    with pytest.raises(ConfigError, match=r"found a damaged model-2\.safetensors"):
        load_policy(folder)
    # An index that hides the second file hides its tensors.
    own = {name: file for name, file in weight_map.items() if file == "model-1.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": own}))
    assert "found no " in refusal(folder)


def test_a_tensor_that_the_index_places_where_it_is_not_is_missing(folder: Path) -> None:
    weight_map = shard(folder)
    file = weight_map["lm_head.weight"]
    tensors = load_file(folder / file)
    del tensors["lm_head.weight"]
    save_file(tensors, folder / file, metadata={"format": "pt"})
    assert "found no lm_head.weight in" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 5, 300, -100])
def test_a_cut_file_is_refused(
    keep: int, originals: Callable[[Architecture], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(originals("qwen3_vl"), tmp_path / "model")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:keep])
    assert f"found a damaged model.safetensors in {folder}" in refusal(folder)


def test_quantized_and_unknown_models_are_a_replicas_business(
    originals: Callable[[Architecture], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(originals("qwen3_vl"), tmp_path / "model")
    change(folder, lambda tensors: tensors.pop("lm_head.weight"))
    config = json.loads((folder / "config.json").read_text())
    for changed in ({"quantization_config": {"quant_method": "fp8"}}, {"architectures": ["Other"]}):
        (folder / "config.json").write_text(json.dumps(config | changed))
        refuse_unfit_model(folder)
