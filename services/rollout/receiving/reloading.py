"""Which parts of vLLM's model a version is loaded into: `Reloading(model).of(receiver)`.

What no trained tensor goes into, such as a frozen tower, is passed by while the frozen tensors are
those that were loaded last: the pause is shorter by its share.

Neighbour: `services.rollout.weight_engine`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from common.weights.receiver import Receiver


class Load(NamedTuple):
    """What is to be loaded."""

    modules: Sequence[nn.Module]
    weights: Sequence[tuple[str, Tensor]]
    """By the checkpoint's names: all that these modules take."""
    frozen: str | None
    """Digest of the frozen tensors that the model has afterwards."""


class Reloading:
    """For the life of a model."""

    def __init__(self, model: nn.Module) -> None:
        """The model was loaded from a folder: of no version of ours."""
        self._model = model
        self._frozen: str | None = None
        self._children: dict[str, str] = {}

    def of(self, receiver: Receiver) -> Load:
        """Of the version that is held; whoever loads it says `done`.

        Raises:
            WeightError: none is complete.
        """
        weights, frozen = list(receiver.views()), receiver.held.frozen
        # torchao replaces `load_weights` of the whole model.
        is_whole = getattr(self._model, "_do_torchao_reload", False)
        touched = {self._child_of(name) for name in receiver.trained_names()}
        children = dict(self._model.named_children())
        if is_whole or frozen != self._frozen or not children.keys() >= touched:
            return Load([self._model], weights, frozen)
        return Load(
            [children[child] for child in sorted(touched)],
            [(name, weight) for name, weight in weights if self._child_of(name) in touched],
            frozen,
        )

    def done(self, load: Load) -> None:
        """It is in the model."""
        self._frozen = load.frozen

    def _child_of(self, name: str) -> str:
        """The child of the model that a tensor goes into; "" if it is not used, or nobody says."""
        if (child := self._children.get(name)) is None:
            mapper: Any = getattr(self._model, "hf_to_vllm_mapper", None)
            mapped = mapper.apply_list([name]) if mapper else []
            child = self._children[name] = mapped[0].split(".")[0] if mapped else ""
        return child
