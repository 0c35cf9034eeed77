"""Digests of weight buckets at memory speed, and the closing digest of a whole stream.

A bucket on a CPU is hashed with XXH3 (23 GB/s on one core; blake3 4, BLAKE2b 1); one on a GPU by a
multilinear sum over its 32-bit words, where it lies. Neither is meant against an attacker: they
find damage, tears and mix-ups. The closing digest is SHA-256 over the buckets' digests and over
names, shapes, dtypes and order, so equal bytes under another description differ too.
"""

import hashlib
import json
from collections.abc import Sequence

import torch
import xxhash
from torch import Tensor

from common.weights.layout import Layout

_MULTIPLIER = -7046029254386353131  # 2^64 / golden ratio, as a signed 64-bit number
_CHUNK_WORDS = 2**22
"""Words summed at once on a GPU: their keys and products take 64 MiB."""


def bucket_digest(bucket_B: Tensor) -> Tensor:
    """[2] int64 on the bucket's device ([B] uint8, B a multiple of 16 bytes).

    On a GPU: the sum of `word_i x key_i` and of `word_i x key_i^2` modulo 2^64, with odd keys that
    depend on i. A change of one word always shows, as does any exchange of two unequal words.
    """
    if not bucket_B.is_cuda:
        raw = xxhash.xxh3_128_digest(bucket_B.numpy().data)
        return torch.frombuffer(bytearray(raw), dtype=torch.int64)
    return positional_digest(bucket_B)


def positional_digest(bucket_B: Tensor) -> Tensor:
    """What `bucket_digest` computes on a GPU; on any device."""
    words_W = bucket_B.view(torch.int32)
    total = torch.zeros(2, dtype=torch.int64, device=bucket_B.device)
    for start in range(0, words_W.numel(), _CHUNK_WORDS):
        part_W = words_W[start : start + _CHUNK_WORDS]
        keys_W = torch.arange(start, start + part_W.numel(), device=bucket_B.device)
        keys_W.mul_(_MULTIPLIER).bitwise_or_(1)
        products_W = keys_W * part_W
        total[0] += products_W.sum()
        total[1] += products_W.mul_(keys_W).sum()
    return total


def stream_digest(layout: Layout, buckets: Sequence[Tensor]) -> str:
    """Hex digest of a stream from its buckets' digests ([2] int64 each, in order)."""
    described = [(item.name, item.dtype, item.shape) for item in layout.slices]
    whole = hashlib.sha256(json.dumps([layout.bucket_bytes, described]).encode())
    if buckets:
        whole.update(torch.stack(list(buckets)).cpu().numpy().tobytes())
    return whole.hexdigest()
