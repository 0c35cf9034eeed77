"""Lossless deltas of one bucket: which 16-bit words changed, and what they are now.

    encode(new, old) -> bytes on the wire | None when a delta would not be smaller
    patch(bucket, encoded)

After an AdamW step at a learning rate of 1e-6, 1 to 4 % of bfloat16 values differ (FACTS). Bytes
are compared, so any dtype is exact; words of 16 bits fit the one that is sent. On the wire a bucket
is, each part aligned to 16 bytes: how many words changed in each block of 2^16 (int32), their
places in the block (uint16), the new words. At 2 % of bfloat16 that is 4 % of the bucket.

W = words of a bucket, N = its blocks, K = words that changed.
"""

import numpy as np
import torch
from torch import Tensor

from common.errors import WeightError
from common.weights.layout import aligned

WORD_BYTES = 2
BLOCK_WORDS = 2**16
_BYTES_A_CHANGE = 2 * WORD_BYTES
_SPARE_CHANGES = 4
"""Room that `find_changed` wants beyond what it finds."""


def encode(new_B: Tensor, old_B: Tensor) -> Tensor | None:
    """What turns `old_B` into `new_B`.

    Args:
        new_B: [B] uint8, B a multiple of 16 bytes.
        old_B: [B] uint8, on the same device.

    Returns:
        [E] uint8 on the same device, E a multiple of 16; None when E would reach B.
    """
    found = _found_on_gpu(new_B, old_B) if new_B.is_cuda else _found_on_cpu(new_B, old_B)
    if found is None:
        return None
    counts_N, places_K, _ = found
    sizes = _sizes(places_K.numel(), num_blocks=counts_N.numel())
    if sum(sizes) >= new_B.numel():
        return None
    encoded_E = torch.zeros(sum(sizes), dtype=torch.uint8, device=new_B.device)
    for part, values in zip(torch.split(encoded_E, sizes), found, strict=True):
        _as(part, values.dtype, values.numel()).copy_(values)
    return encoded_E


def patch(bucket_B: Tensor, encoded_E: Tensor) -> None:
    """Turn the old bucket into the new one, in place.

    Raises:
        WeightError: the delta is none of a bucket of this size.
    """
    num_blocks = _num_blocks(bucket_B)
    head = aligned(4 * num_blocks)
    counts_N = _as(encoded_E[:head], torch.int32, num_blocks)
    total = int(counts_N.sum())
    sizes = _sizes(total, num_blocks=num_blocks)
    if int(counts_N.min()) < 0 or sum(sizes) != encoded_E.numel():
        raise WeightError(f"found a delta of {encoded_E.numel()} bytes, wanted {sum(sizes)}")
    _, places, words = torch.split(encoded_E, sizes)
    places_K, words_K = _as(places, torch.int16, total), _as(words, torch.int16, total)
    put = _put_on_gpu if bucket_B.is_cuda else _put_on_cpu
    if not put(bucket_B.view(torch.int16), counts_N, places_K, words_K):
        raise WeightError(
            f"found a delta beyond the {bucket_B.numel() // WORD_BYTES} words of its bucket"
        )


# --- CPU ------------------------------------------------------------------------------------------


def _found_on_cpu(new_B: Tensor, old_B: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Counts [N], places [K] and words [K], or None when there are too many."""
    from common.weights.words import find_changed  # brings numba, which only deltas on a CPU want

    room = new_B.numel() // _BYTES_A_CHANGE + _SPARE_CHANGES
    counts_N = np.empty(_num_blocks(new_B), np.int32)
    places_K, words_K = np.empty(room, np.uint16), np.empty(room, np.uint16)
    total = find_changed(_words(new_B), _words(old_B), counts_N, places_K, words_K, BLOCK_WORDS)
    if total < 0:
        return None
    found = (counts_N, places_K[:total].view(np.int16), words_K[:total].view(np.int16))
    counts, places, words = (torch.from_numpy(values) for values in found)
    return counts, places, words


def _put_on_cpu(words_W: Tensor, counts_N: Tensor, places_K: Tensor, words_K: Tensor) -> bool:
    from common.weights.words import put_changed

    return put_changed(
        _words(words_W), counts_N.numpy(), _words(places_K), _words(words_K), BLOCK_WORDS
    )


def _words(tensor: Tensor) -> np.ndarray:
    return tensor.numpy().view(np.uint16)


# --- GPU ------------------------------------------------------------------------------------------


def _found_on_gpu(new_B: Tensor, old_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `_found_on_cpu`: 64 bits are compared at once first, then the words in those that differ.

    int16 wraps: the same bits as uint16, which few operations know.
    """
    new_L, old_L = new_B.view(torch.int64), old_B.view(torch.int64)
    rough_R = torch.ne(new_L, old_L).nonzero()[:, 0]
    differs = torch.ne(new_L[rough_R].view(torch.int16), old_L[rough_R].view(torch.int16))
    inside_K = differs.nonzero()[:, 0]
    places_K = rough_R[inside_K // 4] * 4 + inside_K % 4
    counts_N = torch.bincount(places_K // BLOCK_WORDS, minlength=_num_blocks(new_B))
    words_K = new_B.view(torch.int16)[places_K]
    return counts_N.to(torch.int32), (places_K % BLOCK_WORDS).to(torch.int16), words_K


def _put_on_gpu(words_W: Tensor, counts_N: Tensor, places_K: Tensor, words_K: Tensor) -> bool:
    blocks_K = torch.arange(counts_N.numel(), device=words_W.device).repeat_interleave(
        counts_N.long()
    )
    at_K = blocks_K * BLOCK_WORDS + (places_K.long() & (BLOCK_WORDS - 1))
    if at_K.numel() and int(at_K.max()) >= words_W.numel():
        return False
    words_W[at_K] = words_K
    return True


# --- both -----------------------------------------------------------------------------------------


def _num_blocks(bucket_B: Tensor) -> int:
    return -(-bucket_B.numel() // WORD_BYTES // BLOCK_WORDS) or 1


def _sizes(changed: int, *, num_blocks: int) -> list[int]:
    return [aligned(4 * num_blocks), aligned(2 * changed), aligned(WORD_BYTES * changed)]


def _as(raw: Tensor, dtype: torch.dtype, count: int) -> Tensor:
    return raw[: count * dtype.itemsize].view(dtype)
