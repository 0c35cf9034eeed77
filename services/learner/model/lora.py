"""LoRA through PEFT: `adapt(model, settings) → Adapters`, and the weights that leave the learner.

    y = W x + scaling · B A x        W stays as it is, A and B are trained

W is never written to, so nothing can be merged twice: `Adapters` computes W + scaling · B A from
what FSDP's shards hold, whenever weights are published or exported, under the names that the
checkpoint has. `policy.py` owns the adapters; `parallel.py` and `publishing/` ask them to merge.

Shapes: O outputs and I inputs of a layer, K rank.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from common.config.lora import ALL_LINEAR, Lora
from common.errors import ConfigError
from services.learner.model.rows import own_rows

logger = logging.getLogger(__name__)

_NAME = "default"
"""PEFT's name of an adapter."""
_BASE = ".base_layer"
"""What PEFT puts into the name of an adapted layer's own parameters."""
_PREFIX = "base_model.model."
"""What PEFT's files put before the names of the base model."""


class Adapters:
    """The adapters of a model, by the Hugging Face name of the weight that each one changes."""

    def __init__(self, model: nn.Module, config: Any, settings: Lora) -> None:
        """See `adapt`."""
        self._model, self._config = model, config
        self._scaling = settings.alpha / settings.rank
        self._layers: dict[str, Any] = {
            f"{name}.weight": module
            for name, module in model.named_modules()
            if hasattr(module, "lora_A")
        }

    def __contains__(self, name: str) -> bool:
        return name in self._layers

    def __len__(self) -> int:
        return len(self._layers)

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """The model as it was before; only without gradient.

        PEFT's own switch takes `requires_grad` from the adapters too, which FSDP reads once.
        """
        assert not torch.is_grad_enabled()
        self._scale(0)
        try:
            yield
        finally:
            self._scale(1)

    def merged(self, name: str, whole_OI: Tensor) -> Tensor:
        """[O, I] float32: a gathered weight with its adapter, as `merge_and_unload` computes it.

        A collective where the adapters are spread over ranks.
        """
        return whole_OI.detach().float() + self._change(*self._factors(name))

    def merged_values(self, weights: Sequence[tuple[str, Tensor]]) -> "Values":
        """This rank's values of weights, flat and merged when they are read; a collective."""
        factors = {name: self._factors(name) for name, _ in weights if name in self}
        return Values([self._reader(name, weight, factors) for name, weight in weights])

    def whole_tensors(self) -> dict[str, Tensor]:
        """Every A and B under its name in a file of PEFT; a collective."""
        found = {}
        for name in self._layers:
            stem = _PREFIX + name.removesuffix(".weight")
            for factor, tensor in zip("AB", self._factors(name), strict=True):
                found[f"{stem}.lora_{factor}.weight"] = tensor
        return found

    def save(self, folder: Path, tensors: dict[str, Tensor], *, model: str) -> None:
        """Write an adapter that `PeftModel.from_pretrained` takes.

        Args:
            folder: is made.
            tensors: of `whole_tensors`.
            model: what the adapter belongs to, as the run file names it.
        """
        self._config.base_model_name_or_path = model
        self._config.save_pretrained(folder)
        kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def _factors(self, name: str) -> tuple[Tensor, Tensor]:
        """[K, I] and [O, K], whole."""
        layer = self._layers[name]
        return _whole(layer.lora_A[_NAME].weight), _whole(layer.lora_B[_NAME].weight)

    def _change(self, a_KI: Tensor, b_OK: Tensor) -> Tensor:
        return b_OK @ a_KI * self._scaling

    def _reader(
        self, name: str, weight: Tensor, factors: dict[str, tuple[Tensor, Tensor]]
    ) -> Callable[[], Tensor]:
        mine = (weight.to_local() if isinstance(weight, DTensor) else weight).detach()
        if name not in factors:
            return lambda: mine.reshape(-1)

        def merge() -> Tensor:
            # The whole product and then its rows: products of fewer rows may round otherwise.
            change_OI = own_rows(self._change(*factors[name]), weight)
            return (mine.float() + change_OI).reshape(-1)

        return merge

    def _scale(self, factor: float) -> None:
        for layer in self._layers.values():
            layer.set_scale(_NAME, factor)


class Values(Sequence[Tensor]):
    """Tensors that are computed when they are read; the last one is kept.

    Merged weights of a whole model at once would take a second model's memory.
    """

    def __init__(self, readers: Sequence[Callable[[], Tensor]]) -> None:
        self._readers = readers
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._readers)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return Values(self._readers[index])
        if self._last is None or self._last[0] != index:
            self._last = None  # before the next one is made
            self._last = index, self._readers[index]()
        return self._last[1]


def adapt(model: Any, settings: Lora, *, vision: bool) -> Adapters:
    """Give linear layers adapters, in place; everything else is frozen. B starts at 0.

    Args:
        model: a Hugging Face vision-language model.
        settings: of the run.
        vision: whether the tower's layers get adapters too.

    Raises:
        ConfigError: a target module matches nothing; names what there is.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=_targets(model, settings, vision=vision),
    )
    inject_adapter_in_model(config, model)
    adapters = Adapters(model, config, settings)
    num_values = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("training adapters", extra={"layers": len(adapters), "parameters": num_values})
    return adapters


def hugging_face_name(name: str) -> str | None:
    """A parameter's name in the checkpoint; None for one of an adapter."""
    return None if ".lora_" in name else name.replace(_BASE, "")


def _targets(model: Any, settings: Lora, *, vision: bool) -> list[str]:
    """Full names of the layers that get adapters."""
    roots = ("model.language_model.layers.", *(["model.visual."] if vision else []))
    there = [
        name
        for name, module in model.named_modules()
        if name.startswith(roots) and isinstance(module, nn.Linear)
    ]
    if settings.target_modules == (ALL_LINEAR,):
        return there
    for wanted in settings.target_modules:
        if not any(_matches(name, wanted) for name in there):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in there}))
            raise ConfigError(
                f"learner.lora.target_modules: found {wanted!r}, wanted ends of names of the "
                f"{'decoder and the tower' if vision else 'decoder'}'s linear layers: {known}"
            )
    return [n for n in there if any(_matches(n, wanted) for wanted in settings.target_modules)]


def _matches(name: str, wanted: str) -> bool:
    return f".{name}".endswith(f".{wanted}")


def _whole(parameter: Tensor) -> Tensor:
    whole: Tensor = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return whole.detach()
