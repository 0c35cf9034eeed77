"""`tempsamp data split`: a file of trainer rows → rows to train on, and held-out rows.

    rows -> video of each -> whole videos drawn until enough rows are held out -> two files

No video is in both, whatever its rows ask about it; a video is the path in its rows. Both files
keep the order and the lines of the input, and appear whole or not at all. Videos are drawn by a
hash of seed and path: the same ones, however the rows are ordered. `jobs.data.convert` writes the
input; `learner.rows` and `learner.validation.rows` name the outputs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ConfigError
from common.queue.disk import check_files, replacing, writing
from common.rows import TrainerRow, UnusableRowError
from jobs.data.annotations.containers import text_lines
from jobs.data.annotations.records import BadRecord

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Part:
    """What one of the two files has."""

    rows: int
    videos: int


@dataclass(frozen=True)
class Report:
    """Both files."""

    train: Part
    held_out: Part


def command(
    source: Annotated[
        Path, typer.Option("--input", "-i", help="Trainer rows, JSONL, may be gzipped.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Rows to train on.")],
    held_out: Annotated[Path, typer.Option(help="Rows of the videos that are held out.")],
    rows: Annotated[
        int | None, typer.Option(min=1, help="Hold out so many rows, or what their videos add.")
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="The same as a share of all rows, between 0 and 1.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another one draws other videos.")] = 1,
) -> None:
    """Split trainer rows by video into rows to train on and held-out rows."""
    from jobs.local import terminal

    if (rows is None) == (share is None):
        found = "neither" if rows is None else "both"
        raise ConfigError(f"--rows, --share: found {found}, wanted one of them")
    if share is not None and not 0 < share < 1:
        raise ConfigError(f"--share: found {share:g}, wanted more than 0 and less than 1")
    report = split(source, output=output, held_out=held_out, rows=rows, share=share, seed=seed)
    terminal.console().print(table_of(report, title=f"{source.name}, seed {seed}"))


def split(
    source: Path,
    *,
    output: Path,
    held_out: Path,
    rows: int | None = None,
    share: float | None = None,
    seed: int = 1,
) -> Report:
    """Write both files; older ones are replaced.

    Args:
        source: trainer rows.
        output: rows to train on.
        held_out: the others.
        rows: hold out at least so many, > 0.
        share: instead of it, of all rows, 0 to 1 and neither; at least one row.
        seed: of the draw.

    Raises:
        ConfigError: the source cannot be read, a line is no trainer row, nothing would be left to
            train on, or an output is the input, the other output, or cannot be written.
        OutputError: an output could not be written to its end.
    """
    check_files({"--output": output, "--held-out": held_out}, inputs=[source])
    videos = [video for _, video in _lines(source)]
    by_video = Counter(videos)
    if rows is None:
        assert share is not None
        rows = max(1, round(share * len(videos)))
    apart = drawn(by_video, rows=rows, seed=seed)
    if len(apart) == len(by_video):
        raise ConfigError(
            f"{source}: found {len(videos):,} rows of {len(by_video):,} videos, wanted a video "
            f"that is left to train on when whole ones with {rows:,} rows are held out"
        )
    with (
        writing(output, knob="--output, --held-out", kept="older files stay"),
        replacing(output) as train,
        replacing(held_out) as other,
    ):
        for line, video in _lines(source):
            (other if video in apart else train).write(line)
    held = Part(rows=sum(by_video[video] for video in apart), videos=len(apart))
    left = Part(rows=len(videos) - held.rows, videos=len(by_video) - held.videos)
    return Report(train=left, held_out=held)


def drawn(rows_of: Mapping[str, int], *, rows: int, seed: int) -> frozenset[str]:
    """Videos that have at least `rows` rows together, or all of them.

    Args:
        rows_of: how many each video has.
        rows: wanted.
        seed: of the order in which videos are taken.
    """
    chosen, count = set(), 0
    for video in sorted(rows_of, key=lambda video: _rank(video, seed=seed)):
        if count >= rows:
            break
        chosen.add(video)
        count += rows_of[video]
    return frozenset(chosen)


def table_of(report: Report, *, title: str) -> Table:
    """Where the rows went, for the terminal."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("rows", justify="right")
    table.add_column("videos", justify="right")
    for name, part in (("to train on", report.train), ("held out", report.held_out)):
        table.add_row(name, f"{part.rows:,}", f"{part.videos:,}")
    return table


def _rank(video: str, *, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{video}".encode()).digest()


def _lines(source: Path) -> Iterator[tuple[bytes, str]]:
    """Each line that is not blank, and the video of its row."""
    for record in text_lines(source):
        if isinstance(record, BadRecord):
            raise ConfigError(f"{source}, {record.position}: {record.reason}: {record.detail}")
        try:
            row = TrainerRow.parse(record.content)
        except UnusableRowError as error:
            raise ConfigError(
                f"{source}, {record.position}: {error}; wanted trainer rows, as `tempsamp data "
                "convert` writes them"
            ) from error
        yield record.content.encode() + b"\n", row.videos[0]
