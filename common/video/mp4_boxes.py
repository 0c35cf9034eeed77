"""How a video is turned for display: file, track → matrix → quarter turns.

FFmpeg applies the matrix to decoded frames and PyAV shows it on those (`matrix_of`); of an mp4 or
mov `common.video.index` wants it without decoding (`display_matrix`). Boxes are walked by their
sizes (ISO 14496-12): moov, trak, tkhd.
"""

import math
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from common.errors import VideoError

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


def matrix_of(side_data: bytes) -> Matrix:
    """The matrix that FFmpeg keeps beside a frame."""
    x_to_x, x_to_y, _, y_to_x, y_to_y = struct.unpack_from("=5i", side_data)
    return x_to_x, x_to_y, y_to_x, y_to_y


def quarter_turns(matrix: Matrix) -> int:
    """Clockwise turns from stored to displayed, 0 to 3.

    Raises:
        VideoError: it mirrors, or turns by another angle; the message leaves the path to the
            caller.
    """
    x_to_x, x_to_y, y_to_x, y_to_y = matrix
    rotation_deg = round(math.degrees(math.atan2(x_to_y, x_to_x))) % 360
    mirrored = x_to_x * y_to_y < x_to_y * y_to_x
    if mirrored or rotation_deg % 90:
        raise VideoError(
            f"found a display {'mirroring' if mirrored else f'rotation of {rotation_deg} degrees'}"
            ", wanted a rotation by a multiple of 90 degrees: re-encode the video upright"
        )
    return rotation_deg // 90


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
