"""Stage A: an annotation file → a file of trainer rows, and a file that says what was left out.

    jobs.data.annotations.reading.read → make_row → bounds → sampler → <output>
                          └─ reason ─┴────────→ <output>.rejected.jsonl

Reads one record at a time; a sampler keeps three numbers and an offset per row, and the rows
themselves in a temporary file beside the output. Both outputs appear whole or not at all. Same
input, options and seed, same bytes. `jobs.data.convert_command` is the command.
"""

import json
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import numpy as np

from common.errors import ConfigError, TempSampError
from common.queue.disk import check_file, replacing, writing
from common.rows import UnusableRowError
from common.video.names import SHOWN
from jobs.data.annotations.reading import read
from jobs.data.annotations.records import Annotation, BadRecord, SchemaName
from jobs.data.annotations.trainer_rows import MadeRow, RowRules, make_row
from jobs.data.row_sampling import Indices, bucket_name, gaussian, stratified

SamplingKind = Literal["head", "gaussian", "gt_len", "coverage", "joint"]
REJECTED_SUFFIX = ".rejected.jsonl"

MEASURES: Mapping[str, Callable[[MadeRow], float | None]] = {
    "difficulty": lambda row: row.difficulty,
    "duration": lambda row: row.duration_s,
    "gt_len": lambda row: row.gt_len_s,
    "coverage": lambda row: row.coverage,
}
"""What rows can be bounded by; durations and lengths in seconds."""
_NEEDED: Mapping[SamplingKind, tuple[str, ...]] = {
    "head": (),
    "gaussian": ("difficulty",),
    "gt_len": ("gt_len",),
    "coverage": ("coverage",),
    "joint": ("gt_len", "coverage"),
}


class RejectedRecordError(TempSampError):
    """A record cannot become a row, and the conversion is strict."""


@dataclass(frozen=True)
class Bounds:
    """An inclusive range; a row without the number is outside a range that has an end."""

    low: float | None = None
    high: float | None = None

    @property
    def is_set(self) -> bool:
        """Whether anything is bounded."""
        return self.low is not None or self.high is not None

    def holds(self, value: float) -> bool:
        """Whether a number is inside."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which of the rows inside the bounds are written (SPEC A2)."""

    kind: SamplingKind = "head"
    """The first ones; a bell over difficulty; or the distribution of evaluation sets."""
    max_samples: int | None = None
    seed: int = 1
    mean: float = 0.75
    """Centre of the bell."""
    std: float = 0.2
    oversample: bool = True
    """Whether rows repeat where a bucket has too few."""
    gaussian_buckets: bool = False
    """Whether the rows of a bucket are drawn by the bell instead of uniformly."""

    def __post_init__(self) -> None:
        if self.kind != "head" and self.max_samples is None:
            raise ConfigError(f"--sampling {self.kind}: found no --max-samples, wanted a number")
        if not self.std > 0:
            raise ConfigError(f"--gaussian-std: found {self.std}, wanted more than 0")

    @property
    def needed(self) -> tuple[str, ...]:
        """Measures without which a row cannot be drawn."""
        by_bell = self.gaussian_buckets and self.kind != "head"
        return tuple(dict.fromkeys((*_NEEDED[self.kind], *(("difficulty",) if by_bell else ()))))


@dataclass(kw_only=True)
class Report:
    """Where the records went: every one is written, rejected, filtered or not drawn."""

    records_in: int = 0
    rows_out: int = 0
    clipped: int = 0
    """Rows made of a span that ended after its video and was cut there."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Records that cannot be rows, by reason; listed in the rejected file."""
    filtered: Counter[str] = field(default_factory=Counter)
    """Good rows outside the bounds, or not drawn, by reason."""
    repeated: int = 0
    """Rows written again to fill a bucket."""
    without_duration: int = 0
    """Rows of which neither the input nor --duration-source says how long their video is: spans
    past its end are not noticed."""
    not_found: dict[str, None] = field(default_factory=dict)
    """The first videos of these that --duration-source does not have."""
    short: dict[str, int] = field(default_factory=dict)
    """Bucket → rows that its target wanted and the file does not have."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is done to a file."""

    schema: SchemaName
    rules: RowRules = field(default_factory=RowRules)
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    """By the names of `MEASURES`."""
    sampling: Sampling = field(default_factory=Sampling)
    strict: bool = False
    """End at the first record that cannot be a row."""

    def __post_init__(self) -> None:
        for name, bound in self.bounds.items():
            if bound.low is not None and bound.high is not None and bound.low > bound.high:
                option = name.replace("_", "-")
                raise ConfigError(
                    f"--min-{option}: found {bound.low:g} while --max-{option} is {bound.high:g}, "
                    "wanted no more"
                )


def rejected_path(output: Path) -> Path:
    """Where the records that could not be rows are listed."""
    return output.with_name(output.name + REJECTED_SUFFIX)


def check_output(output: Path, *, inputs: Iterable[Path | None]) -> None:
    """Refuse rows, or a list of rejected records, that `check_file` refuses.

    Raises:
        ConfigError: names --output.
    """
    read = tuple(inputs)
    for written in (output, rejected_path(output)):
        check_file(written, knob="--output", inputs=read)


def convert(source: Path, *, output: Path, conversion: Conversion) -> Report:
    """Write the trainer rows of an annotation file.

    Without a row nothing is written, and an older output stays.

    Raises:
        ConfigError: the source cannot be read, or an output would overwrite it or cannot be
            written.
        OutputError: an output could not be written to its end; older ones stay.
        RejectedRecordError: strict, and a record cannot be a row; names it and the reason.
    """
    check_output(output, inputs=[source])
    report = Report()
    with (
        writing(output, knob="--output", kept="no row is written, an older file stays"),
        replacing(rejected_path(output)) as rejects,
        replacing(output) as rows,
    ):
        made = _made_rows(source, conversion=conversion, report=report, rejects=rejects)
        kept = _inside(made, conversion=conversion, report=report)
        if conversion.sampling.kind == "head":
            _write_head(kept, rows, max_samples=conversion.sampling.max_samples, report=report)
        else:
            _write_drawn(kept, rows, sampling=conversion.sampling, report=report)
    if not report.rejected:
        rejected_path(output).unlink(missing_ok=True)
    return report


def _made_rows(
    source: Path, *, conversion: Conversion, report: Report, rejects: IO[bytes]
) -> Iterator[MadeRow]:
    """Rows of all records that can be one; the others are counted and listed."""
    for record in read(source, schema=conversion.schema):
        report.records_in += 1
        made = _made(record, conversion.rules)
        if isinstance(made, MadeRow):
            assert isinstance(record, Annotation)
            _note_duration(made, record, report)
            yield made
            continue
        if conversion.strict:
            raise RejectedRecordError(f"{source}, {made.position}: {made.reason}: {made.detail}")
        report.rejected[made.reason] += 1
        rejects.write(_rejected_line(made, record))


def _made(record: Annotation | BadRecord, rules: RowRules) -> MadeRow | BadRecord:
    if isinstance(record, BadRecord):
        return record
    try:
        return make_row(record, rules=rules)
    except UnusableRowError as error:
        return BadRecord(record.position, error.reason, error.detail)


def _note_duration(made: MadeRow, record: Annotation, report: Report) -> None:
    if made.duration_s is None:
        report.without_duration += 1
        if len(report.not_found) <= SHOWN:  # one more: a message says that there are more
            report.not_found[record.video] = None


def _rejected_line(rejected: BadRecord, record: Annotation | BadRecord) -> bytes:
    listed: dict[str, object] = {
        "position": rejected.position,
        "reason": rejected.reason,
        "detail": rejected.detail,
    }
    if isinstance(record, Annotation):
        listed |= {"video": record.video, "query": record.query}
    return json.dumps(listed, ensure_ascii=False).encode() + b"\n"


def _inside(
    rows: Iterator[MadeRow], *, conversion: Conversion, report: Report
) -> Iterator[MadeRow]:
    """Rows inside the bounds that also have what the sampler looks at."""
    bounds = {name: bound for name, bound in conversion.bounds.items() if bound.is_set}
    for name in conversion.sampling.needed:
        bounds.setdefault(name, Bounds())
    for row in rows:
        reason = next(filter(None, (_outside(row, *bound) for bound in bounds.items())), None)
        if reason is None:
            yield row
        else:
            report.filtered[reason] += 1


def _outside(row: MadeRow, name: str, bounds: Bounds) -> str | None:
    value = MEASURES[name](row)
    if value is None:
        return f"no {name}"
    return None if bounds.holds(value) else f"{name} out of bounds"


def _write_head(
    rows: Iterator[MadeRow], output: IO[bytes], *, max_samples: int | None, report: Report
) -> None:
    for row in rows:
        if max_samples is not None and report.rows_out >= max_samples:
            report.filtered["after --max-samples"] += 1
            continue
        output.write(row.dump())
        report.rows_out += 1
        report.clipped += row.clipped


def _write_drawn(
    rows: Iterator[MadeRow], output: IO[bytes], *, sampling: Sampling, report: Report
) -> None:
    """Keep rows on disk and their numbers in memory, draw, then write in the order drawn."""
    offsets, clipped = array("q", [0]), array("b")
    measures = {name: array("d") for name in ("difficulty", "gt_len", "coverage")}
    with tempfile.TemporaryFile(dir=Path(output.name).parent) as spool:
        for row in rows:
            for name, column in measures.items():
                value = MEASURES[name](row)
                column.append(np.nan if value is None else value)
            clipped.append(row.clipped)
            offsets.append(offsets[-1] + spool.write(row.dump()))
        drawn = _draw({name: np.array(c) for name, c in measures.items()}, sampling, report)
        for index in drawn.tolist():
            spool.seek(offsets[index])
            output.write(spool.read(offsets[index + 1] - offsets[index]))
            report.clipped += clipped[index]
    distinct = len(np.unique(drawn))
    report.rows_out, report.repeated = len(drawn), len(drawn) - distinct
    if not_drawn := len(offsets) - 1 - distinct:
        report.filtered["not drawn"] = not_drawn


def _draw(
    measures: Mapping[str, np.ndarray[tuple[int], np.dtype[np.float64]]],
    sampling: Sampling,
    report: Report,
) -> Indices:
    assert sampling.max_samples is not None
    assert sampling.kind != "head"
    rng = np.random.default_rng(sampling.seed)
    difficulties_N = measures["difficulty"]
    if sampling.kind == "gaussian":
        return gaussian(
            difficulties_N, sampling.max_samples, rng=rng, mean=sampling.mean, std=sampling.std
        )
    drawn = stratified(
        measures["gt_len"],
        measures["coverage"],
        sampling.max_samples,
        by=sampling.kind,
        rng=rng,
        oversample=sampling.oversample,
        difficulties_N=difficulties_N if sampling.gaussian_buckets else None,
        mean=sampling.mean,
        std=sampling.std,
    )
    report.short = {bucket_name(b, by=sampling.kind): n for b, n in drawn.short.items()}
    return drawn.indices
