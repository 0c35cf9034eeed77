"""Tensors as one stream of bytes, cut into fixed buckets: `Layout.of(slices, bucket_bytes)`.

Sender and receiver derive the same layout from the same list, so a transfer is a plain sequence of
buckets. B = bytes of one bucket, N = bytes of the whole stream.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from common.weights.messages import TensorSlice

ALIGNMENT_BYTES = 16
"""Every tensor and every bucket starts at a multiple of this, so that both hold whole values."""
DEFAULT_BUCKET_BYTES = 64 * 2**20


class Piece(NamedTuple):
    """The part of one tensor that lies in one bucket; all in bytes."""

    tensor: int
    """Its place in `Layout.slices`."""
    tensor_start: int
    bucket_start: int
    length: int


@dataclass(frozen=True)
class Layout:
    """Where each tensor lies in the byte stream, and how the stream is cut into buckets."""

    slices: tuple[TensorSlice, ...]
    offsets: tuple[int, ...]
    num_bytes: int
    bucket_bytes: int

    @classmethod
    def of(cls, slices: Sequence[TensorSlice], *, bucket_bytes: int) -> "Layout":
        """Lay tensors one behind the other, each aligned; a bucket is rounded up to alignment."""
        offsets, end = [], 0
        for item in slices:
            offsets.append(end)
            end += aligned(num_bytes(item))
        return cls(tuple(slices), tuple(offsets), end, aligned(bucket_bytes))

    @cached_property
    def buckets(self) -> list[tuple[int, int]]:
        """`(start, end)` bytes of each bucket; the last one may be short."""
        starts = range(0, self.num_bytes, self.bucket_bytes)
        return [(start, min(start + self.bucket_bytes, self.num_bytes)) for start in starts]

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """What lies in bytes `[start, end)`, in order; padding is left out."""
        for index in range(max(0, bisect_right(self.offsets, start) - 1), len(self.slices)):
            offset = self.offsets[index]
            if offset >= end:
                return
            first = max(start, offset)
            last = min(end, offset + num_bytes(self.slices[index]))
            if first < last:
                yield Piece(index, first - offset, first - start, last - first)

    def views(self, stream_N: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Each tensor by name, as a view into `stream_N` ([N] uint8)."""
        for item, offset in zip(self.slices, self.offsets, strict=True):
            raw = stream_N[offset : offset + num_bytes(item)]
            yield item.name, raw.view(dtype_of(item)).view(item.shape)


def aligned(count: int) -> int:
    """Bytes, rounded up to ALIGNMENT_BYTES."""
    return -(-count // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def dtype_of(item: TensorSlice) -> torch.dtype:
    """The torch dtype that a slice names."""
    dtype: torch.dtype = getattr(torch, item.dtype)
    return dtype


def num_bytes(item: TensorSlice) -> int:
    """Bytes of one tensor, without padding."""
    return int(torch.Size(item.shape).numel()) * dtype_of(item).itemsize


def describe(name: str, *, shape: Sequence[int], dtype: torch.dtype) -> TensorSlice:
    """The wire description of one tensor."""
    return TensorSlice(name=name, dtype=str(dtype).removeprefix("torch."), shape=tuple(shape))
