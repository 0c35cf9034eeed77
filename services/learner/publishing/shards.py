"""Who owns which bytes of a stream: FSDP2's row shards → parts of a bucket → one message a rank.

`parts(layout, tensors, world_size)` is pure arithmetic and the same on every rank; `gather` moves
bytes. B = bytes of one bucket.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from common.errors import WeightError
from common.weights.layout import Layout, dtype_of


@dataclass(frozen=True, slots=True)
class Part:
    """Values `[first, last)` of one rank's share of one tensor, and where they go."""

    tensor: int
    first: int
    last: int
    bucket_start: int
    """In bytes."""


def parts(
    layout: Layout, tensors: Sequence[Tensor], *, world_size: int
) -> list[dict[int, list[Part]]]:
    """For each bucket: rank → the parts it owns, in order.

    A tensor that is whole is rank 0's; of several copies (HSDP) the one that rank 0 shares travels.

    Raises:
        WeightError: a tensor is spread in another way than by rows over all ranks of a copy.
    """
    shares = [_shares(tensor, world_size) for tensor in tensors]
    found = []
    for start, end in layout.buckets:
        by_rank: defaultdict[int, list[Part]] = defaultdict(list)
        for piece in layout.pieces(start, end):
            size = dtype_of(layout.slices[piece.tensor]).itemsize
            begin = piece.tensor_start // size
            stop = begin + piece.length // size
            for rank, (own_first, own_last) in enumerate(shares[piece.tensor]):
                first, last = max(begin, own_first), min(stop, own_last)
                if first < last:
                    place = piece.bucket_start + (first - begin) * size
                    part = Part(piece.tensor, first - own_first, last - own_first, place)
                    by_rank[rank].append(part)
        found.append(dict(by_rank))
    return found


def num_bytes(part: Part, layout: Layout) -> int:
    """Bytes of a part on the wire."""
    return (part.last - part.first) * dtype_of(layout.slices[part.tensor]).itemsize


def values(weights: Sequence[tuple[str, Tensor]]) -> Sequence[Tensor]:
    """This rank's values of every tensor, flat."""
    return [local(tensor) for _, tensor in weights]


def local(tensor: Tensor) -> Tensor:
    """This rank's values, flat; of a whole tensor all of them."""
    mine = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return mine.detach().reshape(-1)


def pack(
    into_B: Tensor, own: Sequence[Tensor], owned: Sequence[Part], *, layout: Layout, densely: bool
) -> int:
    """Cast and copy parts into a bucket, in one operation on the device.

    Args:
        into_B: [B] uint8.
        own: this rank's values of every tensor, flat.
        owned: which of them.
        layout: of the stream.
        densely: one behind the other, as a message; else each in its place.

    Returns:
        Bytes written.
    """
    targets, values, end = [], [], 0
    for part in owned:
        dtype = dtype_of(layout.slices[part.tensor])
        length = num_bytes(part, layout)
        start = end if densely else part.bucket_start
        targets.append(into_B[start : start + length].view(dtype))
        values.append(own[part.tensor][part.first : part.last])
        end += length
    if targets:
        torch._foreach_copy_(targets, values)
    return end


def send_to_main(message_B: Tensor) -> None:
    """A rank other than 0: its share of a bucket."""
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, message_B, 0)]):
        work.wait()


def collect(
    into_B: Tensor, by_rank: dict[int, list[Part]], *, layout: Layout, message_B: Tensor
) -> None:
    """Rank 0: the other ranks' shares of a bucket, put in place.

    Args:
        into_B: [B] uint8, the bucket.
        by_rank: what each of them owns.
        layout: of the stream.
        message_B: [B] uint8, room for the messages.
    """
    operations, targets, values, end = [], [], [], 0
    for rank, owned in sorted(by_rank.items()):
        begin = end
        for part in owned:
            length = num_bytes(part, layout)
            targets.append(into_B[part.bucket_start : part.bucket_start + length])
            values.append(message_B[end : end + length])
            end += length
        operations.append(dist.P2POp(dist.irecv, message_B[begin:end], rank))
    if operations:
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        torch._foreach_copy_(targets, values)


def _shares(tensor: Tensor, world_size: int) -> list[tuple[int, int]]:
    """Each rank's values of a tensor, counted flat."""
    if not isinstance(tensor, DTensor):
        return [(0, tensor.numel())]
    mesh = tensor.device_mesh
    by_rows = tensor.placements in ((Shard(0),), (Replicate(), Shard(0)))
    if not by_rows or mesh.size() != world_size:
        raise WeightError(
            f"found a parameter spread as {tensor.placements} over {mesh.size()} "
            f"ranks, wanted rows over all {world_size}, or over those of each copy"
        )
    rows, sharing = tensor.shape[0], mesh.size(-1)
    row = tensor.numel() // rows if rows else 0
    chunk = -(-rows // sharing)
    # The first copy is that of ranks 0, 1, ...: torchrun numbers those of a node in a row.
    edges = [min(rank * chunk, rows) * row for rank in range(world_size + 1)]
    return list(pairwise(edges))
