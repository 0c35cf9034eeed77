"""What a checkpoint takes from model and optimizer, copied to the host: `Copied.of(...)`.

Parameters, moments and what FSDP gathers are memory that the optimizer writes to in place. The copy
is not, so `checkpoint.py` writes it from a thread while the next steps train.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict

from services.learner.model.policy import Policy
from services.learner.parallel import Ranks, whole_weights


@dataclass(frozen=True)
class Copied:
    """One rank's part of a checkpoint; later steps change nothing of it."""

    shards: dict[str, Any]
    """What this rank holds of model and optimizer, as `state_of` has it."""
    weights: dict[str, Tensor | None] = field(default_factory=dict)
    """Rank 0: the whole policy by Hugging Face name, in the export's dtype, adapters merged."""
    adapters: dict[str, Tensor] = field(default_factory=dict)
    """Every A and B of `[learner.lora]`, by name in a file of PEFT."""

    @classmethod
    def of(
        cls, policy: Policy, optimizer: torch.optim.Optimizer, *, dtype: torch.dtype, ranks: Ranks
    ) -> Self:
        """Of this moment; a collective.

        Args:
            policy: sharded or not.
            optimizer: of the policy.
            dtype: of the export.
            ranks: of the learner.
        """
        adapters = policy.adapters
        return cls(
            shards=_on_host(state_of(policy, optimizer)),
            weights=dict(whole_weights(policy, dtype=dtype, ranks=ranks)),
            adapters=_on_host(adapters.whole_tensors()) if adapters is not None else {},
        )


def state_of(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """This rank's tensors by parameter name, the live ones; groups of parameters are settings
    (`compatible.py`), not state."""
    is_new = not optimizer.state
    model, states = get_state_dict(policy, optimizer)
    if is_new:
        # To fill an empty state torch takes an update at a learning rate of 0, and counts it.
        for state in optimizer.state.values():
            state["step"].zero_()
    return {"model": model, "optimizer": {"state": states["state"]}}


def _on_host(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same names, each tensor in memory of its own."""
    return {name: _copy(value) for name, value in values.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _on_host(value)
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
