"""Keys of `[learner]` about memory: what a rank forwards at once, recomputes, and keeps at hand."""

from typing import Any, Literal

from pydantic import field_validator, model_validator

from common.config.fields import Count, PositiveInt, Section


class Room(Section):
    """Base of `[learner]`; "auto" is worked out from the card's memory (`common.model.memory`)."""

    max_tokens_per_rank: PositiveInt | None = None
    """Packed tokens that a rank forwards at once: prompts once, answers, padding. None: what fits
    the card by the formula of `tempsamp plan`; 32,768 on a CPU. A group that is longer is split
    along its answers; one whose prompt and longest answer are longer is given up."""
    gradient_checkpointing: Literal["auto", "on", "off"] | PositiveInt = "auto"
    """Recompute layers in backward instead of keeping what they made: all (on), none (off), or
    every n-th. auto: as few as fit two of the longest groups; none on a CPU."""
    allow_float32_on_cuda: bool = False
    """Compute in float32 on a GPU, where no fused attention kernel does: for small sizes only."""

    feature_cache_bytes: Count = 4 * 2**30
    """Host memory of a rank (pinned beside a GPU) for features of frozen towers: 280 MiB for a
    14k-token clip of a 4B model."""
    device_feature_cache_bytes: Count = 512 * 2**20
    """The same on the GPU, in front of it; counted by "auto". Without effect on a CPU."""
    decode_ahead_bytes: Count = 4 * 2**30
    """Host memory of a rank for patches decoded before their step: 336 MiB for a 14k-token clip."""
    decode_workers: PositiveInt = 2
    """Threads of a rank that decode clips and cut them into patches."""

    @model_validator(mode="before")
    @classmethod
    def _groups_became_tokens(cls, values: Any) -> Any:
        if isinstance(values, dict) and "micro_batch_groups" in values:
            raise ValueError(
                f"learner.micro_batch_groups: found {values['micro_batch_groups']}, wanted "
                "learner.max_tokens_per_rank instead: work is cut by tokens now, by default by "
                "what fits the card; leave both out"
            )
        return values

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _from_truth(cls, value: Any) -> Any:
        """Older run files say true or false."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value
