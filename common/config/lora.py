"""`[learner.lora]`: low-rank adapters instead of all weights."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from common.config.fields import Positive, PositiveInt, Section

ALL_LINEAR = "all-linear"


class Lora(Section):
    """`[learner.lora]`: train adapters of linear layers, W + alpha / rank · B A (LoRA, by PEFT).

    Without this table all weights are trained. Adapters want a learning rate ten to a hundred times
    that of a full run (`learner.optimizer.lr`). With `learner.freeze_vision = false` the tower's
    linear layers get adapters too, and its weights stay as they are.
    """

    rank: PositiveInt = 16
    """Rows of A, columns of B."""
    alpha: Positive = 32.0
    """What an adapter adds is weighted with alpha / rank."""
    dropout: float = 0.0
    """Of an adapter's inputs: has to be 0."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = (ALL_LINEAR,)
    """Linear layers of the decoder by the ends of their names (`q_proj`, `mlp.down_proj`), or all
    of them; embedding and head are not among them."""

    @model_validator(mode="after")
    def _is_deterministic(self) -> Self:
        if self.dropout != 0:
            raise ValueError(
                f"learner.lora.dropout: found {self.dropout:g}, wanted 0: the ratio of two "
                "policies has to be that of two deterministic functions"
            )
        return self
