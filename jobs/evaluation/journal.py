"""The answers of a run on disk: one `PredictionRecord` a line, appended and flushed as it comes.

    Journal(folder, shard=…, fingerprint=…) -> .answered (ids), .append(record), .records()

A run that was killed goes on where it was: a last line that was cut is dropped, failures are asked
again, answers are kept. Every shard has a file of its own; `read_records` reads them all together.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from common.errors import ConfigError
from jobs.evaluation.scoring.predictions import PredictionRecord

logger = logging.getLogger(__name__)

PATTERN = "predictions*.jsonl"


def predictions_name(shard: tuple[int, int]) -> str:
    """File of shard (i, n)."""
    index, count = shard
    return "predictions.jsonl" if count == 1 else f"predictions-{index}-of-{count}.jsonl"


def write_atomically(path: Path, text: str) -> None:
    """The whole text or, if this process dies, what was there before."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_or_refuse(path: Path, text: str, *, knob: str) -> None:
    """Write what an option asked for, and make its folder.

    Raises:
        ConfigError: it cannot be written there; names the option.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{knob}: found {path}: {error.strerror}, wanted a file that can be written"
        ) from error


def read_records(folder: Path) -> list[PredictionRecord]:
    """Records of every shard's file, shard by shard; a last line that was cut is left out.

    Raises:
        ConfigError: a line that is no record, or two records of one id; names file and line.
    """
    found: dict[str, PredictionRecord] = {}
    for path in sorted(folder.glob(PATTERN)):
        for record in _records(path):
            if record.id in found:
                raise ConfigError(f"{path}: found {record.id!r} twice, wanted one line for a query")
            found[record.id] = record
    return list(found.values())


class Journal:
    """One shard's file, open for appending; a second process that opens it is refused."""

    def __init__(self, folder: Path, *, shard: tuple[int, int], fingerprint: str) -> None:
        """Open or make the file, and repair it: whole lines of answers stay.

        Raises:
            ConfigError: a line that is no record, one of another run, or another process writes.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / predictions_name(shard)
        with contextlib.ExitStack() as opened:
            self._lock = opened.enter_context((folder / f".{self._path.name}.lock").open("w"))
            _lock_or_refuse(self._lock.fileno(), self._path)
            kept = self._repair(fingerprint)
            others = {record.id for record in read_records(folder)} - {record.id for record in kept}
            self.answered = frozenset(others.union(record.id for record in kept))
            """Ids that need not be asked: answered here, or another shard's."""
            self._file = opened.enter_context(self._path.open("a", encoding="utf-8"))
            self._owned = opened.pop_all()

    def append(self, record: PredictionRecord) -> None:
        """Add a line; it is on its way to the disk when this returns."""
        self._file.write(record.model_dump_json(exclude_none=True) + "\n")
        self._file.flush()

    def records(self) -> list[PredictionRecord]:
        """Everything that all shards have answered so far."""
        return read_records(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def _repair(self, fingerprint: str) -> list[PredictionRecord]:
        if not self._path.exists():
            return []
        records = list(_records(self._path))
        if wrong := [record for record in records if record.fingerprint != fingerprint]:
            raise ConfigError(
                f"{self._path}: found an answer with the fingerprint {wrong[0].fingerprint}, "
                f"wanted {fingerprint}: it belongs to another run; use another --out"
            )
        kept = [record for record in records if record.failure is None]
        write_atomically(
            self._path,
            "".join(record.model_dump_json(exclude_none=True) + "\n" for record in kept),
        )
        return kept


def _records(path: Path) -> Iterator[PredictionRecord]:
    """Records of one file. Only the last line can have been cut: it lacks its line end."""
    *lines, cut = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            yield PredictionRecord.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ConfigError(
                f"{path}: line {number}: found {line[:80]!r}, wanted a prediction: {first['msg']}"
            ) from error
    try:
        if cut:
            yield PredictionRecord.model_validate_json(cut)
    except ValidationError:
        logger.warning("torn last line left out", extra={"path": str(path), "chars": len(cut)})


def _lock_or_refuse(descriptor: int, path: Path) -> None:
    """The kernel drops the lock with the process, however it ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"{path}: found another process writing it, wanted one: use --shard i/n for several"
        ) from error
