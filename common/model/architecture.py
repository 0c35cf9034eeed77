"""Sizes of a model without its weights: `shared.model` → `Architecture`, parameter counts.

A folder's config.json is read where there is one; else a table of published constants helps, of the
models that deploy/configs names. Nothing is fetched. `tokens`, `memory` and `times` count with it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from common.errors import ConfigError

Family = Literal["qwen2_5_vl", "qwen3_vl", "qwen3_5"]
"""`model_type` of config.json."""
MERGE = 2
"""Patches along each side that become one token of the language model."""
TEMPORAL_PATCH = 2
"""Frames in one patch."""
CHANNELS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """The vision tower."""

    depth: int
    hidden: int
    intermediate: int
    patch_px: int
    deepstack: int = 0
    """Levels that are merged beside the last one, each by a merger of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What arithmetic needs to know of a checkpoint; biases and norms are left out (< 0.1 %)."""

    family: Family
    hidden: int
    layers: int
    full_attention_layers: int
    """Of `layers`, those with keys and values; the others are gated delta nets (Qwen3.5)."""
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    """Whether the head is the embedding."""
    tower: Tower
    linear_key_heads: int = 0
    linear_value_heads: int = 0
    linear_head_dim: int = 0

    @property
    def factor(self) -> int:
        """Sides of frames are multiples of it (`shared.video.factor`)."""
        return self.tower.patch_px * MERGE

    @property
    def query_width(self) -> int:
        """Of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def mlp_parameters(self) -> int:
        """Of one layer."""
        return 3 * self.hidden * self.intermediate

    @property
    def attention_parameters(self) -> int:
        """Of one layer with keys and values; Qwen3.5 has an output gate as wide as the query."""
        gate = self.query_width if self.family == "qwen3_5" else 0
        return self.hidden * (2 * self.query_width + gate + 2 * self.key_width)

    @property
    def linear_parameters(self) -> int:
        """Of one gated delta net: queries, keys, values, gate, two numbers a head, output."""
        key = self.linear_key_heads * self.linear_head_dim
        value = self.linear_value_heads * self.linear_head_dim
        return self.hidden * (2 * key + 3 * value + 2 * self.linear_value_heads)

    @property
    def decoder_parameters(self) -> int:
        """Of all layers, without embedding and head: what every token is multiplied with."""
        linear = self.layers - self.full_attention_layers
        return (
            self.layers * self.mlp_parameters
            + self.full_attention_layers * self.attention_parameters
            + linear * self.linear_parameters
        )

    @property
    def root_parameters(self) -> int:
        """Embedding and head: FSDP's root group, gathered for a whole forward and backward."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden

    @property
    def tower_parameters(self) -> int:
        """Blocks, patch embedding and mergers; Qwen2.5-VL's MLP is gated."""
        tower = self.tower
        matrices = 3 if self.family == "qwen2_5_vl" else 2
        block = tower.hidden * (4 * tower.hidden + matrices * tower.intermediate)
        merged = MERGE**2 * tower.hidden
        merger = merged * (merged + self.hidden)
        patch = CHANNELS * TEMPORAL_PATCH * tower.patch_px**2 * tower.hidden
        return tower.depth * block + (1 + tower.deepstack) * merger + patch

    @property
    def language_parameters(self) -> int:
        """Everything but the tower."""
        return self.decoder_parameters + self.root_parameters

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.language_parameters + self.tower_parameters

    @property
    def kv_bytes_a_token(self) -> int:
        """Keys and values in bfloat16, over all layers that have them."""
        return 2 * self.full_attention_layers * self.key_width * 2

    @property
    def state_bytes_a_sequence(self) -> int:
        """State of the gated delta nets in float32, whatever the sequence's length."""
        linear = self.layers - self.full_attention_layers
        return linear * self.linear_value_heads * self.linear_head_dim**2 * 4


_TOWER_OF_4B = Tower(depth=24, hidden=1024, intermediate=4096, patch_px=16)
PUBLISHED: Mapping[str, Architecture] = MappingProxyType(
    {
        # config.json of that repository, read in copies of it; `Qwen2_5_VLVisionConfig` has the
        # tower's depth, intermediate size and patch as defaults, the copies its width.
        "Qwen/Qwen2.5-VL-7B-Instruct": Architecture(
            family="qwen2_5_vl",
            hidden=3584,
            layers=28,
            full_attention_layers=28,
            heads=28,
            kv_heads=4,
            head_dim=128,
            intermediate=18_944,
            vocabulary=152_064,
            tied=False,
            tower=Tower(depth=32, hidden=1280, intermediate=3420, patch_px=14),
        ),
        # config.json of that repository, read in a copy of it with a smaller vocabulary. The sum,
        # 4.44e9, is what a model of these sizes counts (measured on a GPU).
        "Qwen/Qwen3-VL-4B-Instruct": Architecture(
            family="qwen3_vl",
            hidden=2560,
            layers=36,
            full_attention_layers=36,
            heads=32,
            kv_heads=8,
            head_dim=128,
            intermediate=9728,
            vocabulary=151_936,
            tied=True,
            tower=Tower(depth=24, hidden=1024, intermediate=4096, patch_px=16, deepstack=3),
        ),
        # Descriptions of the model by those who host it (its config.json was out of reach) and
        # `Qwen3_5TextConfig` for the delta nets. The sum, 4.54e9, is the size they give.
        "Qwen/Qwen3.5-4B": Architecture(
            family="qwen3_5",
            hidden=2560,
            layers=32,
            full_attention_layers=8,
            heads=16,
            kv_heads=4,
            head_dim=256,
            intermediate=9216,
            vocabulary=248_320,
            tied=True,
            tower=_TOWER_OF_4B,
            linear_key_heads=16,
            linear_value_heads=32,
            linear_head_dim=128,
        ),
    }
)


def architecture_of(model: str) -> Architecture:
    """The sizes of `shared.model`; an id's revision is not looked at.

    Raises:
        ConfigError: neither a folder with a config.json we know nor a model of the table.
    """
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        return _read(folder / "config.json")
    found = PUBLISHED.get(model.partition("@")[0])
    if found is None:
        raise ConfigError(
            f"shared.model: found {model!r}, wanted a folder with config.json, or one of "
            f"{', '.join(PUBLISHED)}: the sizes of no other model are known here"
        )
    return found


def _read(path: Path) -> Architecture:
    try:
        document = json.loads(path.read_bytes())
        family = document["model_type"]
        if family not in get_args(Family):
            raise ConfigError(
                f"shared.model: {path}: found model_type {family!r}, wanted one of "
                f"{', '.join(get_args(Family))}"
            )
        return _of_document(document, family=cast(Family, family))
    except OSError as error:
        raise ConfigError(f"shared.model: {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"shared.model: {path}: no sizes of a model in it: {type(error).__name__}: {error}"
        ) from error


def _of_document(document: Mapping[str, Any], *, family: Family) -> Architecture:
    """Older files of Qwen2.5-VL have the language model's keys at the top."""
    text, vision = document.get("text_config") or document, document["vision_config"]
    layers, heads = int(text["num_hidden_layers"]), int(text["num_attention_heads"])
    tied = text.get("tie_word_embeddings", document.get("tie_word_embeddings", False))
    return Architecture(
        family=family,
        hidden=int(text["hidden_size"]),
        layers=layers,
        full_attention_layers=_full_attention(text, layers) if family == "qwen3_5" else layers,
        heads=heads,
        kv_heads=int(text["num_key_value_heads"]),
        head_dim=int(text.get("head_dim") or text["hidden_size"] // heads),
        intermediate=int(text["intermediate_size"]),
        vocabulary=int(text["vocab_size"]),
        tied=bool(tied),
        tower=_tower(vision, family=family),
        linear_key_heads=int(text.get("linear_num_key_heads", 0)),
        linear_value_heads=int(text.get("linear_num_value_heads", 0)),
        linear_head_dim=int(text.get("linear_key_head_dim", 0)),
    )


def _full_attention(text: Mapping[str, Any], layers: int) -> int:
    kinds = text.get("layer_types")
    if kinds is None:
        return layers // int(text.get("full_attention_interval", 4))
    return sum(kind == "full_attention" for kind in kinds)


def _tower(vision: Mapping[str, Any], *, family: Family) -> Tower:
    """What a file leaves out has the value of transformers' class of that family."""
    old = family == "qwen2_5_vl"
    return Tower(
        depth=int(vision.get("depth", 32 if old else 27)),
        hidden=int(vision["hidden_size"]),
        intermediate=int(vision.get("intermediate_size", 3420 if old else 4304)),
        patch_px=int(vision.get("patch_size", 14 if old else 16)),
        deepstack=len(vision.get("deepstack_visual_indexes") or ()),
    )
