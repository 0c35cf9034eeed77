"""Sizes of `[learner.lora]`: which weights have adapters, and how many numbers those are (pure).

A layer of O outputs and I inputs has an adapter of rank x (O + I) numbers. `memory` and
`jobs.recipes.times` count with them. Estimates where the tower is trained: all of its linear layers
are counted, whatever `target_modules` says.
"""

from collections.abc import Iterator
from typing import NamedTuple

from common.config import Learner
from common.config.lora import ALL_LINEAR, Lora
from common.model.architecture import Architecture


class Linear(NamedTuple):
    """Linear layers of one name."""

    name: str
    layers: int
    inputs: int
    outputs: int


class Trained(NamedTuple):
    """What a run trains, and what changes by it."""

    parameters: int
    """With gradients and AdamW's states."""
    changing: int
    """Of the checkpoint; they travel with each version, the others once."""


def trained(architecture: Architecture, learner: Learner) -> Trained:
    """Of all weights that are not frozen, or of their adapters."""
    if learner.lora is None:
        tower = 0 if learner.freeze_vision else architecture.tower_parameters
        whole = architecture.language_parameters + tower
        return Trained(parameters=whole, changing=whole)
    layers = list(_adapted(architecture, learner.lora, vision=not learner.freeze_vision))
    return Trained(
        parameters=sum(
            layer.layers * learner.lora.rank * (layer.inputs + layer.outputs) for layer in layers
        ),
        changing=sum(layer.layers * layer.inputs * layer.outputs for layer in layers),
    )


def _adapted(architecture: Architecture, lora: Lora, *, vision: bool) -> Iterator[Linear]:
    names = {wanted.rpartition(".")[2] for wanted in lora.target_modules}
    for layer in _decoder(architecture):
        if names == {ALL_LINEAR} or layer.name in names:
            yield layer
    if vision:
        yield from _tower(architecture)


def _decoder(architecture: Architecture) -> Iterator[Linear]:
    """Qwen3.5's query has a gate as wide as itself; its other layers are gated delta nets."""
    hidden, intermediate = architecture.hidden, architecture.intermediate
    query, key = architecture.query_width, architecture.key_width
    gated = 2 if architecture.family == "qwen3_5" else 1
    for name in ("gate_proj", "up_proj"):
        yield Linear(name, architecture.layers, hidden, intermediate)
    yield Linear("down_proj", architecture.layers, intermediate, hidden)
    full = architecture.full_attention_layers
    yield Linear("q_proj", full, hidden, gated * query)
    for name in ("k_proj", "v_proj"):
        yield Linear(name, full, hidden, key)
    yield Linear("o_proj", full, query, hidden)
    if linear := architecture.layers - full:
        heads, head_dim = architecture.linear_value_heads, architecture.linear_head_dim
        value, keys = heads * head_dim, architecture.linear_key_heads * head_dim
        yield Linear("in_proj_qkv", linear, hidden, 2 * keys + value)
        yield Linear("in_proj_z", linear, hidden, value)
        for name in ("in_proj_a", "in_proj_b"):
            yield Linear(name, linear, hidden, heads)
        yield Linear("out_proj", linear, value, hidden)


def _tower(architecture: Architecture) -> Iterator[Linear]:
    tower = architecture.tower
    yield Linear("qkv", tower.depth, tower.hidden, 3 * tower.hidden)
    yield Linear("proj", tower.depth, tower.hidden, tower.hidden)
    matrices = 3 if architecture.family == "qwen2_5_vl" else 2
    yield Linear("mlp", matrices * tower.depth, tower.hidden, tower.intermediate)
