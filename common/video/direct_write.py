"""Large arrays to files, past the page cache: `write_file(path, body, head=…, head_bytes=…)`.

A job that decodes terabytes would push everybody's files out of the page cache, and filling it
costs processor time: 70 ms for 22 MB on a virtual machine, 4 ms past it. File systems that refuse
direct writes get plain ones. Used by `common.video.cache`.
"""

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 4096
"""Direct writes start and end on multiples of this."""
MAX_WRITE_BYTES = 2**30

_buffers = threading.local()


def write_file(
    path: Path, body: npt.NDArray[np.uint8], *, head: Callable[[], bytes], head_bytes: int
) -> None:
    """Write a head and a body to a new file; not synced.

    Args:
        path: is replaced if there.
        body: what follows the head, any shape.
        head: makes the head, while the disk takes the body; may be called twice.
        head_bytes: its length, a whole number of blocks.

    Raises:
        OSError: the disk is full or the file cannot be written.
    """
    for direct in (getattr(os, "O_DIRECT", 0), 0):
        try:
            return _write(path, body, head=head, head_bytes=head_bytes, flags=direct)
        except OSError as error:
            # What a file system without direct writes says, be it on opening or on writing.
            if not direct or error.errno != errno.EINVAL:
                raise
    raise AssertionError("the last way raises")


def whole_blocks(num_bytes: int) -> int:
    """Rounded up to whole blocks."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _write(
    path: Path,
    body: npt.NDArray[np.uint8],
    *,
    head: Callable[[], bytes],
    head_bytes: int,
    flags: int,
) -> None:
    size = whole_blocks(head_bytes + body.nbytes)
    buffer = _page_aligned(size)
    np.frombuffer(buffer, np.uint8, body.nbytes, head_bytes).reshape(body.shape)[...] = body
    with _created(path, flags=flags) as file, memoryview(buffer) as blocks:
        with ThreadPoolExecutor(1) as disk:
            written = disk.submit(_write_blocks, file, blocks[head_bytes:size], at=head_bytes)
            blocks[:head_bytes] = head()
            written.result()
        _write_blocks(file, blocks[:head_bytes], at=0)
        os.truncate(file, head_bytes + body.nbytes)


def _page_aligned(num_bytes: int) -> mmap.mmap:
    """This thread's buffer for direct writes, kept: fresh memory costs more than the copy."""
    kept: mmap.mmap | None = getattr(_buffers, "kept", None)
    if kept is None or len(kept) < num_bytes:
        kept = _buffers.kept = mmap.mmap(-1, num_bytes)
    return kept


@contextlib.contextmanager
def _created(path: Path, *, flags: int) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_blocks(descriptor: int, blocks: memoryview, *, at: int) -> None:
    written = 0
    while written < len(blocks):
        part = blocks[written : written + MAX_WRITE_BYTES]
        written += os.pwrite(descriptor, part, at + written)
