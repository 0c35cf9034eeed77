"""What `tempsamp compare` takes as a run → predictions by benchmark: `read_run(path)`.

A run is the folder of `tempsamp eval`, one benchmark's folder in it, or a prediction file of any
format of `jobs.evaluation.scoring.predictions`. Shards are read together.
`jobs.evaluation.comparing.command` pairs the queries of two runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.evaluation.journal import PATTERN
from jobs.evaluation.scoring.predictions import AnswerMode, Prediction, read_predictions
from jobs.evaluation.settings import FILE as SETTINGS_FILE
from jobs.evaluation.summary import FILE as SUMMARY_FILE

WANTED = (
    "wanted the folder of a `tempsamp eval`, of one of its benchmarks, or a file of predictions"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The predictions of one benchmark."""

    predictions: tuple[Prediction, ...]
    mode: AnswerMode | None
    """None when the file does not say."""
    truncated_lines: int
    """Cut while being written, dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One side of a comparison."""

    name: str
    """Its path as given."""
    benches: Mapping[str, Answers]
    """By name of the benchmark's folder; a file is named after itself."""


def read_run(path: Path) -> Run:
    """Every prediction of a run.

    Raises:
        ValueError: there are no predictions, a file cannot be used, or two files of a benchmark
            answer the same query; says where.
        OSError: the path cannot be read.
    """
    if not path.exists():
        raise ValueError(f"{path}: found nothing there, {WANTED}")
    if not path.is_dir():
        return Run(name=str(path), benches={path.name: _answers([path], where=path)})
    if files := sorted(path.glob(PATTERN)):
        return Run(name=str(path), benches={path.resolve().name: _answers(files, where=path)})
    folders = {found.parent for found in path.glob(f"*/{PATTERN}")}
    if not folders:
        raise ValueError(f"{path}: found no {PATTERN}, {WANTED}")
    benches = {
        folder.name: _answers(sorted(folder.glob(PATTERN)), where=folder)
        for folder in sorted(folders)
    }
    return Run(name=str(path), benches=benches)


def files_of(path: Path) -> list[Path]:
    """What a run is kept in: its file of predictions, or answers, settings and figures below it."""
    if not path.is_dir():
        return [path]
    names = (PATTERN, SETTINGS_FILE, SUMMARY_FILE)
    return [file for name in names for below in (name, f"*/{name}") for file in path.glob(below)]


def _answers(files: Sequence[Path], *, where: Path) -> Answers:
    """A shard that has answered nothing yet is an empty file."""
    written = [file for file in files if file.stat().st_size]
    read = {file: read_predictions(file) for file in written}
    found: dict[str, Path] = {}
    for file, content in read.items():
        for prediction in content.predictions:
            if other := found.get(prediction.key):
                raise ValueError(
                    f"{file}: found {prediction.key!r}, which {other.name} answers too, wanted one "
                    "prediction for a query"
                )
            found[prediction.key] = file
    if not found:
        raise ValueError(f"{where}: found no predictions, wanted at least one: did the run end?")
    return Answers(
        predictions=tuple(one for content in read.values() for one in content.predictions),
        mode=read[written[0]].mode,
        truncated_lines=sum(content.truncated_lines for content in read.values()),
    )
