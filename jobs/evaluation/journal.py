"""The answers of a run on disk: one `PredictionRecord` a line, appended and flushed as it comes.

    Journal(folder, shard=…, fingerprint=…) -> .answered (ids), .append(record), .records()

A run that was killed goes on where it was: a last line that was cut is dropped, failures are asked
again, answers are kept. Every shard has a file of its own; `read_records` reads them all together.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from common.errors import ConfigError
from jobs.asking.journal import Lines
from jobs.asking.journal import read_records as read_file
from jobs.evaluation.scoring.predictions import PredictionRecord

WANTED = "a prediction"
PATTERN = "predictions*.jsonl"
ALL_KEPT = "all answers are kept, and the same command goes on"
"""When what is made of them cannot be written."""


def predictions_name(shard: tuple[int, int]) -> str:
    """File of shard (i, n)."""
    index, count = shard
    return "predictions.jsonl" if count == 1 else f"predictions-{index}-of-{count}.jsonl"


def read_records(folder: Path) -> list[PredictionRecord]:
    """Records of every shard's file, shard by shard; a last line that was cut is left out.

    Raises:
        ConfigError: a line that is no record, or two records of one id; names file and line.
    """
    found: dict[str, PredictionRecord] = {}
    for path in sorted(folder.glob(PATTERN)):
        for record in read_file(path, PredictionRecord, wanted=WANTED):
            if record.id in found:
                raise ConfigError(f"{path}: found {record.id!r} twice, wanted one line for a query")
            found[record.id] = record
    return list(found.values())


class Journal:
    """One shard's file, open for appending; a second process that opens it is refused."""

    def __init__(
        self, folder: Path, *, shard: tuple[int, int], fingerprint: str, knob: str = "--out"
    ) -> None:
        """Open or make the file, and repair it: whole lines of answers stay.

        Args:
            folder: of the run; made when absent.
            shard: (i, n), which part of the questions this is.
            fingerprint: of the run's settings.
            knob: what names the folder.

        Raises:
            ConfigError: a line that is no record, one of another run, or another process writes.
            OutputError: it cannot be written.
        """
        self.folder = folder
        self._path = folder / predictions_name(shard)
        self._fingerprint = fingerprint
        self._lines = Lines(
            self._path,
            PredictionRecord,
            wanted=WANTED,
            keep=self._kept,
            several="use --shard i/n for several",
            knob=knob,
        )
        try:
            self.answered = frozenset(record.id for record in read_records(folder))
            """Ids that need not be asked: answered here, or another shard's."""
        except ConfigError:
            self._lines.close()
            raise

    def append(self, record: PredictionRecord) -> None:
        """Add a line; it is on its way to the disk when this returns."""
        self._lines.append(record)

    def records(self) -> list[PredictionRecord]:
        """Everything that all shards have answered so far."""
        return read_records(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def _kept(self, records: Sequence[PredictionRecord]) -> list[PredictionRecord]:
        """Answers; failures are asked again."""
        if wrong := [record for record in records if record.fingerprint != self._fingerprint]:
            raise ConfigError(
                f"{self._path}: found an answer with the fingerprint {wrong[0].fingerprint}, "
                f"wanted {self._fingerprint}: it belongs to another run; use another --out"
            )
        return [record for record in records if record.failure is None]
