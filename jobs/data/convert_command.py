"""`tempsamp data convert`: options → `jobs.data.convert` → a table and the exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from jobs.data.convert import Report

_LEAK = "targets were measured on evaluation sets (SPEC A2), so the rows follow the benchmarks"


def command(
    source: Annotated[Path, typer.Option("--input", "-i", help="Annotation file, may be gzipped.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File of trainer rows, JSONL.")],
    schema: Annotated[
        str | None, typer.Option(help="Schema of the input; default: found by its content.")
    ] = None,
    video_root: Annotated[
        str | None, typer.Option(help="Put in front of relative video paths.")
    ] = None,
    strip_prefix: Annotated[
        list[str] | None,
        typer.Option(
            help="Folders taken off video paths first; may be repeated. "
            "Default: datasets/TimeLens-100K/ and datasets/."
        ),
    ] = None,
    task: Annotated[
        Literal["grounding", "highlights"],
        typer.Option(help="What QVHighlights rows ask for."),
    ] = "grounding",
    answer_format: Annotated[
        Literal["tag", "json"],
        typer.Option(help='<answer> 1.0 to 2.0 </answer>, or {"time": [1.0, 2.0]}.'),
    ] = "tag",
    duration_source: Annotated[
        Path | None,
        typer.Option(
            help="CSV id,seconds (or with a heading) or JSON: durations that the input lacks."
        ),
    ] = None,
    end_tolerance: Annotated[
        float, typer.Option(min=0, help="Seconds a span may end after its video; it is cut there.")
    ] = 1.0,
    min_difficulty: Annotated[float | None, typer.Option(help="0 (easy) to 1.")] = None,
    max_difficulty: Annotated[float | None, typer.Option()] = None,
    min_duration: Annotated[float | None, typer.Option(help="Seconds of video.")] = None,
    max_duration: Annotated[float | None, typer.Option()] = None,
    min_gt_len: Annotated[float | None, typer.Option(help="Seconds of true spans.")] = None,
    max_gt_len: Annotated[float | None, typer.Option()] = None,
    min_coverage: Annotated[
        float | None, typer.Option(help="Share of the video in true spans.")
    ] = None,
    max_coverage: Annotated[float | None, typer.Option()] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Rows written at most.")] = None,
    sampling: Annotated[
        Literal["head", "gaussian", "gt_len", "coverage", "joint"],
        typer.Option(
            help="head: the first rows. gaussian: a bell over difficulty. gt_len, coverage, "
            f"joint: distributed by length; WARNING: their {_LEAK}."
        ),
    ] = "head",
    seed: Annotated[int, typer.Option(min=0)] = 1,
    gaussian_mean: Annotated[float, typer.Option(help="Difficulty drawn most.")] = 0.75,
    gaussian_std: Annotated[float, typer.Option(help="Width of the bell.")] = 0.2,
    gaussian_buckets: Annotated[
        bool,
        typer.Option("--gaussian-buckets", help="gt_len, coverage, joint: bell inside buckets."),
    ] = False,
    oversample: Annotated[
        bool,
        typer.Option(
            "--oversample/--no-oversample",
            help="gt_len, coverage, joint: repeat rows where there are too few.",
        ),
    ] = True,
    extract_question: Annotated[
        bool,
        typer.Option(
            "--extract-question",
            help="Replace a record's own instruction by the published one, around its query.",
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="End at the first record that cannot be a row.")
    ] = False,
) -> None:
    """Turn an annotation file into trainer rows.

    Records that cannot be rows are listed in OUTPUT.rejected.jsonl. Exit code 0 if a row was
    written.
    """
    from common.video.names import SHOWN, with_nearest
    from jobs.data.annotations.durations import read_durations
    from jobs.data.annotations.paths import GIVE_IDS, STRIP_PREFIXES, OnDisk, Rerooting
    from jobs.data.annotations.reading import schema_named
    from jobs.data.annotations.sniff import sniff
    from jobs.data.annotations.trainer_rows import RowRules
    from jobs.data.convert import Bounds, Conversion, Sampling, check_output, convert
    from jobs.local import terminal

    check_output(output, inputs=[source, duration_source])
    unreadable: list[str] = []
    name = sniff(source) if schema is None else schema_named(schema)
    place = Rerooting(strip_prefixes=strip_prefix or STRIP_PREFIXES, video_root=video_root)
    conversion = Conversion(
        schema=name,
        rules=RowRules(
            answer_format=answer_format,
            task=task,
            place=OnDisk(place) if video_root is not None and name in GIVE_IDS else place,
            end_tolerance_s=end_tolerance,
            durations={}
            if duration_source is None
            else read_durations(duration_source, unreadable=unreadable),
            extract_question=extract_question,
            keep_extras=name == "rows",
        ),
        bounds={
            "difficulty": Bounds(min_difficulty, max_difficulty),
            "duration": Bounds(min_duration, max_duration),
            "gt_len": Bounds(min_gt_len, max_gt_len),
            "coverage": Bounds(min_coverage, max_coverage),
        },
        sampling=Sampling(
            kind=sampling,
            max_samples=max_samples,
            seed=seed,
            mean=gaussian_mean,
            std=gaussian_std,
            oversample=oversample,
            gaussian_buckets=gaussian_buckets,
        ),
        strict=strict,
    )
    report = convert(source, output=output, conversion=conversion)
    console = terminal.console()
    console.print(table_of(report, title=f"{source.name} ({name}) to {output.name}"))
    if unreadable:
        more = len(unreadable) - SHOWN
        console.print(
            f"--duration-source: found in {duration_source} no seconds above 0 in "
            f"{', '.join(unreadable[:SHOWN])}{f' and {more:,} more' if more > 0 else ''}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    if duration_source is not None and report.without_duration:
        console.print(
            f"--duration-source: nothing in {duration_source} for {report.without_duration:,} of "
            f"{report.records_in:,} records, whose spans may end after their video: "
            f"{with_nearest(report.not_found, conversion.rules.durations)}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    if sampling in ("gt_len", "coverage", "joint"):
        console.print(f"[yellow]--sampling {sampling}: {_LEAK}.[/yellow]")
    if report.rows_out == 0:
        raise typer.Exit(1)


def table_of(report: Report, *, title: str) -> Table:
    """Where the records went, for the terminal."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("records")
    table.add_column("count", justify="right")
    lines: list[tuple[str, int]] = [
        ("in", report.records_in),
        *((f"rejected: {reason}", count) for reason, count in report.rejected.most_common()),
        *((f"filtered: {reason}", count) for reason, count in report.filtered.most_common()),
        *([("repeated", report.repeated)] if report.repeated else []),
        ("rows out", report.rows_out),
        ("  of them clipped to the end of the video", report.clipped),
        *([("without a duration", report.without_duration)] if report.without_duration else []),
        *((f"missing in {bucket}", count) for bucket, count in report.short.items()),
    ]
    for label, count in lines:
        table.add_row(label, f"{count:,}")
    return table
