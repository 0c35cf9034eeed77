"""The byte layout holds any tensors, in any buckets."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from common.weights.layout import ALIGNMENT_BYTES, Layout, describe, dtype_of, num_bytes

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool]
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
tensors = st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=6)


def layout(found: list[tuple[tuple[int, ...], torch.dtype]], bucket_bytes: int) -> Layout:
    slices = [describe(f"t{i}", shape=shape, dtype=dtype) for i, (shape, dtype) in enumerate(found)]
    return Layout.of(slices, bucket_bytes=bucket_bytes)


@given(tensors, st.integers(1, 300))
def test_pieces_of_all_buckets_are_every_byte_of_every_tensor_once(
    found: list[tuple[tuple[int, ...], torch.dtype]], bucket_bytes: int
) -> None:
    laid = layout(found, bucket_bytes)
    seen = [0] * len(found)
    for start, end in laid.buckets:
        assert start % ALIGNMENT_BYTES == 0
        for piece in laid.pieces(start, end):
            assert piece.tensor_start == seen[piece.tensor], "in order, without gaps"
            assert start + piece.bucket_start == laid.offsets[piece.tensor] + piece.tensor_start
            assert piece.bucket_start + piece.length <= end - start
            size = dtype_of(laid.slices[piece.tensor]).itemsize
            assert piece.tensor_start % size == piece.length % size == 0, "whole values"
            seen[piece.tensor] += piece.length
    assert seen == [num_bytes(item) for item in laid.slices]


def test_views_share_the_stream() -> None:
    laid = layout([((1000, 33), torch.float32), ((7,), torch.bfloat16), ((), torch.float32)], 50)
    assert all(offset % ALIGNMENT_BYTES == 0 for offset in laid.offsets)
    assert laid.bucket_bytes == 64, "rounded up, so that buckets hold whole values"
    raw = torch.zeros(laid.num_bytes, dtype=torch.uint8)
    views = dict(laid.views(raw))
    assert views["t0"].shape == (1000, 33)
    assert views["t1"].dtype == torch.bfloat16
    assert views["t2"].shape == ()
    assert views["t0"].data_ptr() == raw.data_ptr()
