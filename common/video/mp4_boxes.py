"""How a track of an mp4 or mov is turned for display: file, track → matrix, from its header alone.

FFmpeg applies the matrix to decoded frames and PyAV shows it on those; `common.video.pyav_reader`
wants it without decoding. Boxes are walked by their sizes (ISO 14496-12): moov, trak, tkhd.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

Matrix = tuple[int, int, int, int]
"""x to x, x to y, y to x, y to y; a common factor says nothing here."""

IDENTITY: Matrix = (1, 0, 0, 1)
_TIMES_BYTES = {0: 8, 1: 16}
"""Of two times at the head of a header, by version; the length after them is half as long."""
_MATRIX_BYTES = 36
_MAX_HEADER_BYTES = 256
"""More than a movie's or a track's header has."""


def display_matrix(path: str | os.PathLike[str], *, track_id: int) -> Matrix:
    """The matrix of one track times that of the movie; what is not there turns nothing.

    Raises:
        OSError: the file cannot be read.
    """
    matrix = IDENTITY
    with open(path, "rb") as file:
        for moov in _boxes(file, 0, file.seek(0, os.SEEK_END), name=b"moov"):
            for head in _contents(file, *moov, name=b"mvhd"):
                matrix = _product(matrix, _matrix(head, after_length=4 + 2 + 10) or IDENTITY)
            for trak in _boxes(file, *moov, name=b"trak"):
                for head in _contents(file, *trak, name=b"tkhd"):
                    if _track_id(head) == track_id:
                        found = _matrix(head, after_length=4 + 8 + 2 + 2 + 2 + 2)
                        matrix = _product(found or IDENTITY, matrix)
    return matrix


def _contents(file: BinaryIO, start: int, end: int, *, name: bytes) -> Iterator[bytes]:
    """The first bytes of each box of a name."""
    for begin, stop in _boxes(file, start, end, name=name):
        file.seek(begin)
        yield file.read(min(stop - begin, _MAX_HEADER_BYTES))


def _boxes(file: BinaryIO, start: int, end: int, *, name: bytes) -> Iterator[tuple[int, int]]:
    """Where the contents of each box of a name begin and end."""
    while start + 8 <= end:
        file.seek(start)
        size, found = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            large = file.read(8)
            if len(large) < 8:
                return
            (size,), head = struct.unpack(">Q", large), 16
        elif size == 0:
            size = end - start
        if size < head:
            return
        if found == name:
            yield start + head, min(start + size, end)
        start += size


def _track_id(tkhd: bytes) -> int | None:
    """After version, flags and times."""
    at = 4 + _TIMES_BYTES.get(tkhd[0] if tkhd else -1, len(tkhd))
    return struct.unpack_from(">I", tkhd, at)[0] if len(tkhd) >= at + 4 else None


def _matrix(head: bytes, *, after_length: int) -> Matrix | None:
    """Of a header: version and flags, times, scale or id, length, so many bytes, matrix."""
    times = _TIMES_BYTES.get(head[0] if head else -1)
    if times is None:
        return None
    at = 4 + times + 4 + times // 2 + after_length
    if len(head) < at + _MATRIX_BYTES:
        return None
    x_to_x, x_to_y, _, y_to_x, y_to_y = struct.unpack_from(">5i", head, at)
    return x_to_x, x_to_y, y_to_x, y_to_y


def _product(first: Matrix, then: Matrix) -> Matrix:
    """Turned by one and then by the other."""
    a, b, c, d = first
    e, f, g, h = then
    return a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h
