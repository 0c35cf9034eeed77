"""FSDP2's shares: a whole tensor → the rows of it that this rank holds."""

from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def own_rows(whole: Tensor, like: Tensor) -> Tensor:
    """What `like` holds of `whole` on this rank: rows, none, or all where it is not sharded."""
    if not isinstance(like, DTensor):
        return whole
    rows = whole
    for axis, placement in enumerate(like.placements):
        if isinstance(placement, Shard):
            shares = rows.chunk(like.device_mesh.size(axis), dim=placement.dim)
            own = like.device_mesh.get_local_rank(axis)
            rows = shares[own] if own < len(shares) else rows.narrow(placement.dim, 0, 0)
    return rows
