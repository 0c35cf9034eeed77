"""What both ways to fill the clip cache share: rows in, entries made in processes, a report out.

`jobs.data.preprocess` decodes videos, `jobs.data.import_pt` converts old caches; both bring a
function that makes one entry, and get resuming, failure files, the closing table and the command's
options here.
"""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Generic, NoReturn, Self, TypeVar

import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from common.config import Video, load
from common.config.fields import LONGEST_S
from common.errors import ConfigError, OutputError
from common.queue.disk import FULL, check_file, check_folder, write_file
from common.rows import TrainerRow, UnusableRowError
from common.video.cache import ClipCache, sync_file
from jobs.data.crash_safe_pool import Lost, results
from jobs.local import terminal
from jobs.local.processes import interruptible
from jobs.local.waiting import shown

Key = TypeVar("Key")

NO_ROOM = "no space left"
SHOWN = 20
"""Failures in the terminal where no file can hold them."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default: one per CPU.")]
TimeoutS = Annotated[float, typer.Option(min=0.1, max=LONGEST_S, help="Longest time of one video.")]
InputFiles = Annotated[
    list[Path], typer.Option("--input", exists=True, dir_okay=False, help="Rows; repeatable.")
]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", help="Folder of the clip cache; default: of the run file.")
]
VideoRootFolders = Annotated[
    list[Path] | None,
    typer.Option(
        "--video-root",
        exists=True,
        file_okay=False,
        help="No video outside is opened; relative paths start at the first. Repeatable; default: "
        "the roots of the run file.",
    ),
]
RunFile = Annotated[
    Path | None, typer.Option("--config", "-c", help=r"Run file whose \[shared.video] is taken.")
]
Fps = Annotated[float | None, typer.Option(help="Frames sampled per second.")]
MinFrames = Annotated[int | None, typer.Option(help="Fewest frames.")]
MaxFrames = Annotated[int | None, typer.Option(help="Most frames.")]
MinPixels = Annotated[int | None, typer.Option(help="Fewest pixels of a frame.")]
MaxPixels = Annotated[int | None, typer.Option(help="Most pixels of a frame.")]
TotalPixels = Annotated[int | None, typer.Option(help="Pixel budget of a clip.")]
Factor = Annotated[int | None, typer.Option(help="Sides are multiples: 28 Qwen2.5-VL, 32 Qwen3.")]
FailureFile = Annotated[
    Path | None, typer.Option("--failures", help="Default: INPUT.failed.jsonl beside each input.")
]


@dataclass(frozen=True)
class Done:
    """A video whose entry is there; `fill` waits until it is on the disk."""

    entry: Path
    written: bool
    """False: it was there already."""
    entry_bytes: int
    float32_bytes: int
    """What the same frames take as float32."""

    @classmethod
    def of(cls, cache: ClipCache, *, sha256: str, sampling: str, written: bool) -> Self:
        """Sizes of an entry that is there.

        Raises:
            FileNotFoundError: it is not.
        """
        header = cache.header(sha256, sampling=sampling)
        path = cache.path(sha256, sampling=sampling)
        if header is None:
            raise FileNotFoundError(f"{path}: the entry vanished as soon as it was made")
        height_px, width_px = header.clip.frame_hw
        num_values = len(header.clip.frame_indices) * height_px * width_px * 3
        return cls(
            entry=path,
            written=written,
            entry_bytes=path.stat().st_size,
            float32_bytes=4 * num_values,
        )


class Failure(BaseModel):
    """One line of the failure file."""

    model_config = ConfigDict(frozen=True)

    input: Path
    rows: list[int]
    """Line numbers, from 1."""
    video: str | None
    """As the rows name it, a window in words behind it; None when the line could not be read."""
    reason: str
    """What is counted."""
    detail: str


@dataclass(frozen=True)
class Fault:
    """Why a video has no entry."""

    reason: str
    """What is counted."""
    detail: str


@dataclass
class Report:
    """How a run ended."""

    num_videos: int
    stopped: str | None = None
    """Why it ended before all videos were tried: there is no room for more."""
    unlisted: str | None = None
    """Why the failures are in no file."""
    done: list[Done] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    """Videos without an entry by reason; a video counts once, however many rows have it."""
    bad_rows: Counter[str] = field(default_factory=Counter)
    """Lines that could not be read by reason."""


@dataclass(frozen=True)
class RowsByKey(Generic[Key]):
    """Which rows wait for what."""

    places: dict[Key, dict[Path, list[int]]]
    """Key -> input -> line numbers, from 1."""
    unreadable: tuple[Failure, ...]


def fill(
    work: Callable[[Key], Done | Fault],
    rows: RowsByKey[Key],
    *,
    inputs: Sequence[Path],
    cache: Path,
    workers: int,
    timeout_s: float,
    failures_file: Path | None = None,
    on_video: Callable[[int, int], None] | None = None,
) -> Report:
    """Do the work of every key in worker processes, write the failure files, leave no litter.

    Args:
        work: makes one entry; runs in a spawned process.
        rows: what `group_rows` found.
        inputs: the files it was found in.
        cache: folder of the clip cache.
        workers: processes.
        timeout_s: longest time of one key.
        failures_file: where failures of all inputs go; default: `<input>.failed.jsonl` each.
        on_video: called with (keys finished, keys in all).

    Raises:
        WorkersKeepDyingError: workers die faster than they can be replaced.
        OSError: the disk fails.
    """
    report = Report(num_videos=len(rows.places), failures=list(rows.unreadable))
    report.bad_rows.update(failure.reason for failure in rows.unreadable)
    outcomes = results(work, list(rows.places), workers=workers, timeout_s=timeout_s)
    try:
        # Not in the workers: they would wait 13 ms for each 15 MB entry instead of decoding.
        with ThreadPoolExecutor(workers) as disk:
            synced: list[Future[None]] = []
            for finished, (key, outcome) in enumerate(outcomes, start=1):
                _note(report, str(key), outcome, places=rows.places[key])
                if isinstance(outcome, Fault) and outcome.reason == NO_ROOM:
                    report.stopped = outcome.detail
                    break  # every further video would be decoded in vain
                if isinstance(outcome, Done) and outcome.written:
                    synced.append(disk.submit(sync_file, outcome.entry))
                if on_video is not None:
                    on_video(finished, report.num_videos)
            for future in synced:
                future.result()
    finally:
        outcomes.close()  # before the sweep: a worker that lives may be writing
        ClipCache(cache).remove_leftovers()
        report.unlisted = _write_failures(report.failures, inputs=inputs, file=failures_file)
    return report


def no_entry(error: OSError) -> Fault:
    """Why a cache did not take an entry."""
    return Fault(NO_ROOM if error.errno in FULL else "cannot write", str(error))


def group_rows(inputs: Sequence[Path], *, key: Callable[[TrainerRow], Key]) -> RowsByKey[Key]:
    """Rows of JSONL files by what has to be done for them; `key` may raise UnusableRowError.

    Raises:
        ConfigError: an input has no rows.
        OSError: an input cannot be read.
    """
    places: dict[Key, dict[Path, list[int]]] = {}
    unreadable: list[Failure] = []
    for path in inputs:
        has_rows = False
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                has_rows = True
                try:
                    found = key(TrainerRow.parse(line))
                except UnusableRowError as error:
                    unreadable.append(_bad_row(path, number, error))
                else:
                    places.setdefault(found, {}).setdefault(path, []).append(number)
        if not has_rows:
            raise ConfigError(f"--input: {path}: found nothing, wanted trainer rows, JSONL")
    return RowsByKey(places=places, unreadable=tuple(unreadable))


def _note(
    report: Report, video: str, result: Done | Fault | Lost, *, places: Mapping[Path, Sequence[int]]
) -> None:
    if isinstance(result, Done):
        report.done.append(result)
        return
    reason = f"decoder {result.reason}" if result.reason == "crashed" else result.reason
    report.faults[reason] += 1
    report.failures += [
        Failure(input=path, rows=list(rows), video=video, reason=reason, detail=result.detail)
        for path, rows in places.items()
    ]


def _bad_row(path: Path, number: int, error: UnusableRowError) -> Failure:
    return Failure(input=path, rows=[number], video=None, reason=error.reason, detail=error.detail)


def _write_failures(
    failures: Sequence[Failure], *, inputs: Sequence[Path], file: Path | None
) -> str | None:
    """One file for all inputs, or one beside each; without failures an older file is removed.

    Returns:
        Why it cannot be written; None if it is.
    """
    targets = {path: file or failures_path(path) for path in inputs}
    try:
        for target in dict.fromkeys(targets.values()):
            lines = [f.model_dump_json() + "\n" for f in failures if targets[f.input] == target]
            if lines:
                write_file(target, "".join(lines), knob="--failures")
            else:
                target.unlink(missing_ok=True)
    except (OutputError, OSError) as error:
        return str(error)
    return None


def failures_path(path: Path) -> Path:
    """`rows.jsonl` -> `rows.jsonl.failed.jsonl`."""
    return path.with_name(f"{path.name}.failed.jsonl")


def fill_in_terminal(
    title: str,
    work: Callable[[Key], Done | Fault],
    rows: RowsByKey[Key],
    *,
    inputs: Sequence[Path],
    cache: Path,
    workers: int | None,
    timeout_s: float,
    failures_file: Path | None,
    reads: Sequence[Path | None] = (),
) -> NoReturn:
    """`fill` with a progress bar and the closing table; one process per CPU without `workers`.

    Args as of `fill`, and
        reads: further files that the command reads, which no failure file may overwrite.

    Raises:
        ConfigError: the cache or a failure file cannot be written or would overwrite an input;
            nothing was done.
        OutputError: there is no room for further entries, or for the failure file.
        typer.Exit: 0 if every row has its entry, 1 if one has not, 130 after Ctrl-C.
    """
    console = terminal.console(stderr=True)
    check_folder(cache, knob="--cache")
    for path in inputs:
        target = failures_file or failures_path(path)
        check_file(target, knob="--failures", inputs=itertools.chain(inputs, reads))
    try:
        with interruptible(), shown(_progress_bar(console)) as bar:
            task = bar.add_task(title, total=len(rows.places))
            report = fill(
                work,
                rows,
                inputs=inputs,
                cache=cache,
                workers=workers or len(os.sched_getaffinity(0)),
                timeout_s=timeout_s,
                failures_file=failures_file,
                on_video=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except KeyboardInterrupt:
        console.print("stopped: finished entries are kept, run it again to go on")
        raise typer.Exit(INTERRUPTED) from None
    terminal.console().print(table_of(report))
    _raise_what_is_not_written(report, console=console)
    raise typer.Exit(1 if report.failures else 0)


def _raise_what_is_not_written(report: Report, *, console: Console) -> None:
    if report.unlisted is not None:
        for failure in report.failures[:SHOWN]:
            line = f"{failure.input}: rows {failure.rows}: {failure.reason}: {failure.detail}"
            console.print(line, markup=False, soft_wrap=True)
    if report.stopped is not None:
        raise OutputError(
            f"--cache: {report.stopped}: found room for {len(report.done)} of {report.num_videos} "
            "videos; those are kept, and the same command goes on"
        )
    if report.unlisted is not None:
        raise OutputError(f"{report.unlisted}; the failures above are listed nowhere")


class _Speed(ProgressColumn):
    """Videos per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} videos/s" if task.speed else "")


def _progress_bar(console: Console) -> Progress:
    """What, how many, how fast, how long yet."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=2,  # the decoders need the processor
    )


def table_of(report: Report) -> Table:
    """How many videos are there, what is missing and why, and what the cache takes."""
    table = Table("what", "count", title="clip cache", show_header=False)
    table.columns[1].justify = "right"
    written = sum(done.written for done in report.done)
    table.add_row("videos", str(report.num_videos))
    table.add_row("written", str(written))
    table.add_row("there already", str(len(report.done) - written))
    for reason, count in report.faults.most_common():
        table.add_row(f"failed: {reason}", str(count), style="red")
    for reason, count in report.bad_rows.most_common():
        table.add_row(f"unreadable rows: {reason}", str(count), style="red")
    table.add_row("MB", f"{sum(done.entry_bytes for done in report.done) / 1e6:,.1f}")
    table.add_row("MB as float32", f"{sum(done.float32_bytes for done in report.done) / 1e6:,.1f}")
    return table


def video_settings(
    config: Path | None,
    *,
    cache: Path | None,
    video_root: Sequence[Path] | None,
    **sampling: float | None,
) -> Video:
    """`[shared.video]` of a run file, or the defaults, with the given options over it.

    Raises:
        ConfigError: the file or an option is wrong, or neither says where cache and videos are.
    """
    base = {} if config is None else load(config).shared.video.model_dump()
    options = {"cache": cache, "roots": tuple(video_root) if video_root else None, **sampling}
    chosen = base | {name: option for name, option in options.items() if option is not None}
    if chosen.get("cache") is None:
        raise ConfigError(
            "found no cache folder, wanted --cache, or shared.video.cache in --config"
        )
    if chosen.get("roots") is None:
        raise ConfigError(
            "found no folder of videos, wanted --video-root, or shared.video.roots in --config"
        )
    try:
        return Video(**chosen)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:  # options that contradict each other, named as settings
            raise ConfigError(str(first["msg"]).removeprefix("Value error, ")) from error
        option = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{option}: found {first['input']}: {first['msg']}") from error
