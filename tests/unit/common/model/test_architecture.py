"""Sizes of models, against published counts, a real folder and transformers' own layers."""

import json
import math
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.model.architecture import PUBLISHED, Architecture, architecture_of

ROOT = Path(__file__).resolve().parents[4]
TINY = ROOT / "deploy/tiny-qwen3vl"


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8.292e9),
        ("Qwen/Qwen3-VL-4B-Instruct", 4.44e9),
        ("Qwen/Qwen3.5-4B", 4.54e9),
    ],
)
def test_parameters_are_as_many_as_published(model: str, published: float) -> None:
    assert PUBLISHED[model].parameters == pytest.approx(published, rel=2e-3)


def test_a_revision_changes_no_size() -> None:
    assert architecture_of("Qwen/Qwen3.5-4B@abc123") is PUBLISHED["Qwen/Qwen3.5-4B"]


def test_a_folder_has_as_many_parameters_as_its_weights() -> None:
    from safetensors import safe_open

    with safe_open(TINY / "model.safetensors", framework="np") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    # Learnt positions of the tower are no matrix that tokens are multiplied with.
    positions = next(name for name in matrices if "pos_embed" in name)
    counted = sum(math.prod(shape) for name, shape in matrices.items() if name != positions)
    assert architecture_of(str(TINY)).parameters == counted


def qwen3_5(**text: object) -> dict[str, object]:
    """A config.json of that family."""
    return {
        "model_type": "qwen3_5",
        "text_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "vocab_size": 512,
            "tie_word_embeddings": True,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            **text,
        },
        "vision_config": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "patch_size": 16},
    }


def written(folder: Path, document: object) -> Architecture:
    """The sizes of a folder with that config.json."""
    (folder / "config.json").write_text(json.dumps(document))
    return architecture_of(str(folder))


def test_layer_types_say_which_layers_have_keys(tmp_path: Path) -> None:
    assert written(tmp_path, qwen3_5()).full_attention_layers == 2
    kinds = ["full_attention", *["linear_attention"] * 7]
    assert written(tmp_path, qwen3_5(layer_types=kinds)).full_attention_layers == 1


def test_delta_nets_are_counted_as_transformers_builds_them(tmp_path: Path) -> None:
    import torch
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextModel

    document = qwen3_5()
    text = document["text_config"]
    assert isinstance(text, dict)
    with torch.device("meta"):
        model = Qwen3_5TextModel(Qwen3_5TextConfig(**text))
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    ours = written(tmp_path, document)
    assert ours.decoder_parameters + ours.root_parameters == matrices


def test_old_files_have_the_language_model_at_the_top(tmp_path: Path) -> None:
    document = {
        "model_type": "qwen2_5_vl",
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
        "vision_config": {"hidden_size": 1280, "spatial_patch_size": 14},
    }
    assert written(tmp_path, document) == PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"model_type": "llama"}', "found model_type 'llama', wanted one of qwen2_5_vl"),
        ('{"model_type": "qwen3_vl"}', "no sizes of a model in it: KeyError: 'vision_config'"),
        ("[]", "no sizes of a model in it"),
        ("{", "no sizes of a model in it"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError) as refused:
        architecture_of(str(tmp_path))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"found 'Qwen/Other', wanted a folder with config\.json"):
        architecture_of("Qwen/Other")


def test_a_folder_without_a_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: No such file"):
        architecture_of(str(tmp_path))
