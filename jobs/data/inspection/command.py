"""`tempsamp data inspect FILE`: what an annotation file holds, in the terminal and as a page.

    annotations.reading.read -> inspection.rows -> tables here, --html by inspection.page
                          -> inspection.videos with --check-videos

Exit code 1 when a probed video is bad, 2 for a mistake in the options and for a file without
records.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.bar import Bar
from rich.columns import Columns
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from common.config.fields import LONGEST_S
from common.errors import ConfigError
from common.queue.disk import check_files, write_file
from jobs.data.annotations.reading import read, schema_named
from jobs.data.annotations.records import SchemaName
from jobs.data.inspection.numbers import Histogram
from jobs.data.inspection.rows import Inspection, NoRecordError, inspect
from jobs.data.inspection.videos import Health, Named, Video, below, check, collect, health
from jobs.local import terminal
from jobs.local.waiting import shown

BAR_WIDTH = 22
MAX_LISTED = 10
"""Videos printed of those that are bad or whose duration is off."""

console = terminal.console()
errors = terminal.console(stderr=True)


def command(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="Annotations of any known schema.")
    ],
    schema: Annotated[
        str | None, typer.Option(help="Name of the file's schema. Default: by its content.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Also write a page with plots.")
    ] = None,
    check_videos: Annotated[
        bool, typer.Option("--check-videos", help="Open every video; exit 1 if one is bad.")
    ] = False,
    video_root: Annotated[
        Path | None, typer.Option(help="Folder of the videos. Default: that of FILE.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that open videos. Default: one per CPU.")
    ] = None,
    probe_timeout: Annotated[
        float, typer.Option(min=0.1, max=LONGEST_S, help="Seconds one video may take.")
    ] = 120.0,
    failures: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the bad videos here, as JSONL.")
    ] = None,
) -> None:
    """Count and measure an annotation file; with --check-videos also its videos."""
    if not check_videos and (failures or video_root):
        raise typer.BadParameter("--failures and --video-root need --check-videos")
    outputs = {"--html": html, "--failures": failures}
    check_files(outputs, inputs=[file])
    videos: dict[str, Named] = {}
    known = None if schema is None else schema_named(schema)
    inspection = _inspected(file, schema=known, videos=videos if check_videos else None)
    _show(inspection, source=file)
    checked = None
    if check_videos:
        root = file.parent if video_root is None else video_root
        named = below(root, videos)
        check_files(outputs, inputs=[video.path for video in named])
        checked = _checked(
            named, root=root, workers=workers or os.cpu_count() or 1, timeout_s=probe_timeout
        )
        _show_health(checked)
        if failures is not None:
            _write_failures(failures, checked)
    if html is not None:
        from jobs.data.inspection.page import write_page

        write_page(html, source=file.name, inspection=inspection, health=checked)
        console.print(f"page: {escape(str(html))}", soft_wrap=True)
    if checked is not None and checked.failures:
        raise typer.Exit(1)


def _inspected(
    file: Path, *, schema: SchemaName | None, videos: dict[str, Named] | None
) -> Inspection:
    """Read the file; its videos are noted in `videos` if that is given."""
    records = read(file, schema=schema)
    try:
        return inspect(records if videos is None else collect(records, into=videos))
    except NoRecordError as error:
        raise ConfigError(f"{file}: {error}") from error


def _show(inspection: Inspection, *, source: Path) -> None:
    _print(source.name, _counts(inspection))
    if inspection.problems:
        _print("Problems", _problems(inspection))
    _print("Distributions", _quantiles(inspection))
    histograms = [_histogram(histogram) for histogram in inspection.histograms]
    console.print()
    if console.is_terminal:
        console.print(Columns(histograms, padding=(1, 3)))
    else:  # a pipe has room for all of them in a row, and nobody reads that
        console.print(*histograms)


def _counts(inspection: Inspection) -> Table:
    table = _table("", "count")
    for name, count in inspection.counts:
        table.add_row(name, f"{count:,}")
    return table


def _problems(inspection: Inspection) -> Table:
    table = _table("", "found", "of", "first at")
    for problem in inspection.problems:
        found = f"[red]{problem.count:,}[/red]"
        table.add_row(escape(problem.reason), found, problem.total, escape(problem.first))
    return table


def _quantiles(inspection: Inspection) -> Table:
    table = _table("", "values", "min", "p10", "p50", "p90", "max", "mean")
    for row in inspection.quantiles:
        table.add_row(row.name, f"{row.count:,}", *row.texts)
    return table


def _histogram(histogram: Histogram) -> Group:
    table = _table("", histogram.over, "", "share")
    highest, total = max(histogram.counts), sum(histogram.counts)
    for label, count in zip(histogram.labels, histogram.counts, strict=True):
        bar = Bar(highest, 0, count, width=BAR_WIDTH, color="blue")
        table.add_row(label, f"{count:,}", bar, f"{count / total:.1%}")
    return Group(Text(histogram.heading, style="bold"), table)


def _checked(videos: Sequence[Video], *, root: Path, workers: int, timeout_s: float) -> Health:
    checks = check(videos, root=root, workers=workers, timeout_s=timeout_s)
    with shown(terminal.bar(errors)) as progress:
        return health(progress.track(checks, total=len(videos), description="videos"))


def _show_health(checked: Health) -> None:
    table = _table("", "count")
    table.add_row("fine", f"{checked.num_fine:,}")
    for reason, count in checked.reasons:
        table.add_row(escape(reason), f"[red]{count:,}[/red]")
    table.add_row("fine, but duration off by more than 1 s", f"{len(checked.off):,}")
    _print("Videos", table)
    for bad in checked.failures[:MAX_LISTED]:
        console.print(f"[red]bad[/red] {escape(bad.detail)}", soft_wrap=True)
    for off in checked.off[:MAX_LISTED]:
        console.print(
            f"[yellow]off[/yellow] {escape(str(off.path))}: annotated {off.annotated_s:.2f} s, "
            f"found {off.duration_s:.2f} s",
            soft_wrap=True,
        )


def _write_failures(path: Path, checked: Health) -> None:
    """Without failures the file is empty: an older one must not speak for this run."""
    lines = [bad.model_dump_json() + "\n" for bad in checked.failures]
    write_file(path, "".join(lines), knob="--failures")


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _print(title: str, content: Table) -> None:
    console.print()
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(content)
