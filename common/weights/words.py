"""Which 16-bit words of a bucket changed, and putting them back: two loops, for CPUs.

PyTorch and NumPy need several passes for each; compiled, one pass takes a fifth of their time, and
other threads run meanwhile. Compiled at the first call (2 s), and kept beside the source where that
may be written.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

_IN_LONG = 4
_Loop = TypeVar("_Loop", bound=Callable[..., Any])
_may_write = os.access(Path(__file__).parent, os.W_OK)
_compiled: Callable[[_Loop], _Loop] = numba.njit(nogil=True, cache=_may_write)


@_compiled
def find_changed(
    new_W: NDArray[np.uint16],
    old_W: NDArray[np.uint16],
    counts_N: NDArray[np.int32],
    places_K: NDArray[np.uint16],
    values_K: NDArray[np.uint16],
    block_words: int,
) -> np.int64 | int:
    """Fill in how many words of each block changed, their places in it, and what they are now.

    Args:
        new_W: W a multiple of 4.
        old_W: as it was.
        counts_N: one for each block.
        places_K: room for K changes.
        values_K: as many.
        block_words: words of a block, at most 2^16.

    Returns:
        How many changed; -1 where it might be more than K - 4.
    """
    one, four = np.uint64(1), np.uint64(_IN_LONG)
    new_L, old_L = new_W.view(np.uint64), old_W.view(np.uint64)
    num_long = np.uint64(new_L.size)
    found, room = np.uint64(0), places_K.size - _IN_LONG
    long_at = np.uint64(0)
    for block in range(counts_N.size):
        before, start = found, long_at * four
        end = min(long_at + np.uint64(block_words // _IN_LONG), num_long)
        while long_at < end:
            if new_L[long_at] != old_L[long_at]:
                if np.int64(found) > room:
                    return -1
                at = long_at * four
                stop = at + four
                while at < stop:  # stored in any case, counted where it differs: no branch
                    places_K[found] = at - start
                    values_K[found] = new_W[at]
                    found += np.uint64(new_W[at] != old_W[at])
                    at += one
            long_at += one
        counts_N[block] = found - before
    return np.int64(found)


@_compiled
def put_changed(
    words_W: NDArray[np.uint16],
    counts_N: NDArray[np.int32],
    places_K: NDArray[np.uint16],
    values_K: NDArray[np.uint16],
    block_words: int,
) -> bool:
    """The other way round, in place; False, and nothing done, where a place lies beyond the end."""
    last = counts_N.size - 1
    for place in places_K[places_K.size - counts_N[last] :]:
        if last * block_words + place >= words_W.size:
            return False
    at = 0
    for block in range(counts_N.size):
        start = block * block_words
        for _ in range(counts_N[block]):
            words_W[start + places_K[at]] = values_K[at]
            at += 1
    return True
