"""Files → `Record`s, streaming: lines of text, JSON lines, JSON arrays, JSON objects by key.

Gzip is found by its magic bytes. A file that breaks off or stops being JSON ends in a `BadRecord`,
so that nothing is lost silently. Memory is that of one record.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ijson
from pydantic_core import from_json

from common.errors import ConfigError
from jobs.data.annotations.records import BadRecord, Record

ByteFile = gzip.GzipFile | io.BufferedReader

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BROKEN = (EOFError, zlib.error, gzip.BadGzipFile)
"""What a gzip file raises that is cut off or damaged."""


@contextmanager
def open_bytes(path: Path) -> Iterator[ByteFile]:
    """The file's content, unpacked and without a byte order mark.

    Raises:
        ConfigError: there is no such file.
    """
    if not path.is_file():
        raise ConfigError(f"found no file {path}, wanted an annotation file")
    with path.open("rb") as start:
        packed = start.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    with gzip.open(path) if packed else path.open("rb") as file:
        if _peek(file).startswith(_BYTE_ORDER_MARK):
            file.read(len(_BYTE_ORDER_MARK))
        yield file


def first_byte(path: Path) -> bytes:
    """The first byte that is not white space; empty without one."""
    with open_bytes(path) as file:
        try:
            while (byte := file.read(1)).isspace():
                pass
        except BROKEN:
            return b""
        return byte


def text_lines(path: Path) -> Iterator[Record | BadRecord]:
    """Lines that are not blank, as strings without their line end."""
    for record in _byte_lines(path):
        if isinstance(record, BadRecord):
            yield record
            continue
        try:
            yield Record(record.position, record.content.decode().strip())
        except UnicodeDecodeError as error:
            yield BadRecord(record.position, "bad text", str(error))


def json_records(path: Path) -> Iterator[Record | BadRecord]:
    """Values of JSON lines, or of one JSON array; the first character says which it is."""
    return _json_array(path) if first_byte(path) == b"[" else _json_lines(path)


def json_members(path: Path) -> Iterator[Record | BadRecord]:
    """Values of one JSON object, positioned by their keys; repeated keys all come."""
    position = "start"
    with open_bytes(path) as file:
        try:
            for key, value in ijson.kvitems(file, "", use_float=True):
                position = key
                yield Record(key, value)
        except (*BROKEN, ijson.JSONError) as error:
            yield _broken(position, error)


def _json_array(path: Path) -> Iterator[Record | BadRecord]:
    position = "start"
    with open_bytes(path) as file:
        try:
            for index, value in enumerate(ijson.items(file, "item", use_float=True)):
                position = f"[{index}]"
                yield Record(position, value)
        except (*BROKEN, ijson.JSONError) as error:
            yield _broken(position, error)


def _json_lines(path: Path) -> Iterator[Record | BadRecord]:
    for record in _byte_lines(path):
        if isinstance(record, BadRecord):
            yield record
            continue
        try:
            yield Record(record.position, from_json(record.content))
        except ValueError as error:
            yield BadRecord(record.position, "bad JSON", str(error))


def _byte_lines(path: Path) -> Iterator[Record | BadRecord]:
    position = "start"
    with open_bytes(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                position = f"line {number}"
                if not line.isspace():
                    yield Record(position, line)
        except BROKEN as error:
            yield _broken(position, error)


def _broken(position: str, error: Exception) -> BadRecord:
    kind = "gzip: " if isinstance(error, BROKEN) else ""
    message = kind + " ".join(str(error).split())
    return BadRecord(
        f"after {position}", "broken file", f"{message[:160]}; what follows was not read"
    )


def _peek(file: ByteFile) -> bytes:
    try:
        return file.peek(len(_BYTE_ORDER_MARK))
    except BROKEN:
        return b""
