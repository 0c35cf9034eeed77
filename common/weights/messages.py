"""Wire types of a weight transfer, in travel order: join → update → version.

As in `common.messages`: frozen, no unknown fields, JSON, pinned by golden files.
"""

from typing import Annotated, Literal

from pydantic import Field

from common.messages import HeldWeights, Message


class TensorSlice(Message):
    """One parameter of a stream."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class JoinWeightGroup(Message):
    """Body of POST /v1/weights/join: become a receiver of a new generation of the weight group."""

    epoch: Annotated[int, Field(ge=1)]
    """Of the learner's hold on the run; a receiver refuses an older one than it has seen."""
    generation: Annotated[int, Field(ge=1)]
    """Grows within an epoch."""
    host: str
    """Where rank 0 (the learner) keeps the group's store."""
    port: Annotated[int, Field(ge=1, le=65_535)]
    secret: Annotated[str, Field(min_length=32)]
    """Proves a connection to the store; hex."""
    backend: Literal["gloo", "nccl"]
    versions: str
    """Of the libraries that meet on the wire, as `common.weights.group.versions` names them."""
    first_rank: Annotated[int, Field(ge=1)]
    """Rank of this replica's first worker."""
    world_size: Annotated[int, Field(ge=2)]
    timeout_s: Annotated[float, Field(gt=0, le=3600)]
    """For all members to be there."""
    deadline_s: Annotated[float, Field(gt=0, le=3600)]
    """Of each bucket."""
    rehearsal: bool = False
    """Meet, receive one small message and part again: whether this replica can be reached. The
    group that it is in stays."""


class WeightStream(Message):
    """Tensors laid one behind the other and cut into buckets (`common.weights.layout`)."""

    slices: tuple[TensorSlice, ...]
    bucket_bytes: Annotated[int, Field(ge=1)]
    deltas: bool = False
    """Each bucket travels as its size and what changed in it (`common.weights.delta`)."""


class UpdateWeights(Message):
    """Body of POST /v1/weights/update: these streams are about to be broadcast."""

    epoch: Annotated[int, Field(ge=1)]
    generation: Annotated[int, Field(ge=1)]
    version: Annotated[int, Field(ge=0)]
    run_tag: str
    """Of the run that made these weights: random, and kept when the run is resumed."""
    frozen: WeightStream | None
    """Tensors that no step changes; None where the receiver holds them."""
    trained: WeightStream
    base: HeldWeights
    """What the receiver must hold: the frozen tensors if they do not travel, the trained ones that
    deltas count from."""


class LeaveWeightGroup(Message):
    """Body of POST /v1/weights/leave: give up what is under way and the group with it."""

    epoch: Annotated[int, Field(ge=1)]


class WeightVersion(Message):
    """What a complete, acknowledged transfer carried."""

    version: Annotated[int, Field(ge=0)]
    step: Annotated[int, Field(ge=0)]
    digest: str
    """Hex digest of the trained stream; each receiver computes its own and declares success."""
    num_bytes: Annotated[int, Field(ge=0)]
    """Sent in all groups of this version, each counted once."""
