"""Answers on disk, one record a line, flushed as it comes: what a killed job goes on from.

    Lines(path, Record, keep=…) -> .kept, .append(record)

Opening repairs the file: a last line that was cut is dropped, and so is what `keep` leaves out.
`jobs.evaluation.journal` and `jobs.reframe.journal` say what a record is and which ones stay.
"""

import contextlib
import fcntl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, Self, TypeVar

from pydantic import BaseModel

from common.errors import ConfigError
from common.queue.disk import replace_text, writing
from common.queue.lines import read_lines

REMEDY = "take that line out of the file: what it answered is asked again"
KEPT = "answers before this one are kept, and the same command goes on after them"

Record = TypeVar("Record", bound=BaseModel)


def line_of(record: BaseModel) -> str:
    """A record as it stands in a file."""
    return record.model_dump_json(exclude_none=True) + "\n"


def read_records(path: Path, record: type[Record], *, wanted: str) -> Iterator[Record]:
    """Records of one file, without a last one that a crash cut.

    Raises:
        ConfigError: a line that is no `wanted`; names file and line.
    """
    return read_lines(path, record.model_validate_json, wanted=wanted, remedy=REMEDY)


class Lines(Generic[Record]):
    """A file open for appending; a second process that opens it is refused."""

    def __init__(
        self,
        path: Path,
        record: type[Record],
        *,
        wanted: str,
        keep: Callable[[Sequence[Record]], Sequence[Record]],
        several: str,
        knob: str = "--out",
    ) -> None:
        """Open or make the file, and repair it.

        Args:
            path: the file; a lock of its own lies beside it.
            record: what a line is.
            wanted: that in words.
            keep: which of the records found there stay; may raise, and then nothing is changed.
            several: what to do for several processes.
            knob: what names the folder.

        Raises:
            ConfigError: a line that is no record, or another process writes.
            OutputError: it cannot be written.
        """
        self._path, self._knob = path, knob
        with writing(path, knob=knob), contextlib.ExitStack() as opened:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = opened.enter_context(path.with_name(f".{path.name}.lock").open("wb"))
            _lock_or_refuse(lock.fileno(), path, several=several)
            self.kept: list[Record] = []
            if path.exists():
                self.kept = list(keep(list(read_records(path, record, wanted=wanted))))
                replace_text(path, "".join(map(line_of, self.kept)))
            # Without a buffer: what could not be written is not tried again when it is closed.
            self._file = opened.enter_context(path.open("ab", buffering=0))
            self._owned = opened.pop_all()

    def append(self, record: Record) -> None:
        """Add a line; it is on its way to the disk when this returns.

        Raises:
            OutputError: it cannot be written; the records before it are kept.
        """
        line = line_of(record).encode()
        with writing(self._path, knob=self._knob, kept=KEPT):
            while line:
                line = line[self._file.write(line) :]

    def close(self) -> None:
        """Let the next process write."""
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lock_or_refuse(descriptor: int, path: Path, *, several: str) -> None:
    """The kernel drops the lock with the process, however it ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"{path}: found another process writing it, wanted one: {several}"
        ) from error
