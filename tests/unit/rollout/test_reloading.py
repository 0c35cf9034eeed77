"""A version is loaded into what it changes; a frozen tower when it came anew."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from common.messages import HeldWeights
from services.rollout.receiving.reloading import Load, Reloading

NAMES = ("model.visual.a", "model.visual.b", "model.language_model.a", "lm_head.weight", "rope")
TEXT = ("model.language_model.a", "lm_head.weight")


class Mapper:
    """As vLLM's models have one: names of the checkpoint → its own; None drops a tensor."""

    PREFIXES = (
        ("model.visual.", "visual."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("scale", "scale"),
    )

    def apply_list(self, names: list[str]) -> list[str]:
        return [
            new + name.removeprefix(old)
            for name in names
            for old, new in self.PREFIXES
            if name.startswith(old)
        ]


def model_of(mapper: object = None) -> nn.Module:
    model = nn.Module()
    model.visual, model.language_model = nn.Module(), nn.Module()
    model.scale = nn.Parameter(torch.ones(1))
    if mapper is not None:
        model.hf_to_vllm_mapper = mapper
    return model


def receiver_of(*, frozen: str = "tower", trained: tuple[str, ...] = TEXT) -> Any:
    return SimpleNamespace(
        held=HeldWeights(frozen=frozen, trained="t"),
        views=lambda: ((name, torch.ones(1)) for name in dict.fromkeys((*NAMES, *trained))),
        trained_names=lambda: list(trained),
    )


def next_load(reloading: Reloading, receiver: Any) -> Load:
    load = reloading.of(receiver)
    reloading.done(load)
    return load


@pytest.fixture
def model() -> nn.Module:
    return model_of(Mapper())


def names(load: Load) -> list[str]:
    return [name for name, _ in load.weights]


def test_a_frozen_tower_is_loaded_once(model: nn.Module) -> None:
    reloading = Reloading(model)
    first, second = (next_load(reloading, receiver_of()) for _ in range(2))
    assert (list(first.modules), names(first)) == ([model], list(NAMES))
    assert (list(second.modules), names(second)) == ([model.language_model], list(TEXT))


def test_it_is_loaded_again_when_another_came(model: nn.Module) -> None:
    reloading = Reloading(model)
    next_load(reloading, receiver_of())
    assert list(next_load(reloading, receiver_of(frozen="other")).modules) == [model]
    assert list(next_load(reloading, receiver_of(frozen="other")).modules) == [model.language_model]


def test_a_load_that_failed_counts_as_none(model: nn.Module) -> None:
    reloading = Reloading(model)
    reloading.of(receiver_of())
    assert list(reloading.of(receiver_of()).modules) == [model]


def test_a_tower_that_is_partly_trained_is_loaded_whole(model: nn.Module) -> None:
    reloading = Reloading(model)
    receiver = receiver_of(trained=(*TEXT, "model.visual.b"))
    next_load(reloading, receiver)
    load = next_load(reloading, receiver)
    assert list(load.modules) == [model.language_model, model.visual]
    assert names(load) == [name for name in NAMES if name != "rope"], "what no module takes"


@pytest.mark.parametrize("trained", [(*TEXT, "scale"), (*TEXT, "rope")])
def test_what_lies_in_no_child_has_the_whole_model_loaded(
    model: nn.Module, trained: tuple[str, ...]
) -> None:
    reloading = Reloading(model)
    for _ in range(2):
        assert list(next_load(reloading, receiver_of(trained=trained)).modules) == [model]


def test_a_model_that_maps_no_names_is_loaded_whole() -> None:
    model = model_of()
    reloading = Reloading(model)
    for _ in range(2):
        assert list(next_load(reloading, receiver_of()).modules) == [model]


def test_torchao_reloads_whole_models(model: nn.Module) -> None:
    model._do_torchao_reload = True  # type: ignore[assignment]
    reloading = Reloading(model)
    for _ in range(2):
        assert list(next_load(reloading, receiver_of()).modules) == [model]
