"""Speed and memory of Stage A: `python -m tests.bench.conversion` → table, docs/bench JSON.

Two TimeLens files of one shape, the second ten times the first, are converted by the command's own
function, each in a fresh process; the ratio of their peak memories says whether it streams.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from tests.bench.reward import machine

EVENTS_PER_VIDEO = 5
"""As in the published set."""
SMALL, LARGE = 10_000, 100_000
OUTPUT = Path("docs/bench/conversion.json")
CHILD = """
import re, sys, time, typer
from jobs.data.convert_command import command
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(command)
started, cpu_s = time.perf_counter(), time.process_time()
app(standalone_mode=False)
peak_kib = re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]
print(time.perf_counter() - started, time.process_time() - cpu_s, peak_kib, file=sys.stderr)
"""
"""VmHWM is this process's own peak; ru_maxrss would be the parent's where that was higher."""


@dataclass(frozen=True)
class Run:
    """One conversion in a process of its own."""

    options: str
    rows: int
    """Rows in the file; a sampler writes fewer."""
    input_mb: float
    seconds: float
    """Wall time of the command, imports included."""
    cpu_seconds: float
    peak_rss_mb: float

    @property
    def rows_per_s(self) -> float:
        """Rows a second of wall time."""
        return self.rows / self.seconds


@dataclass(frozen=True)
class Result:
    """What one call of the benchmark found."""

    machine: str
    load_average: float
    """Of the minute before: other work on the machine shows in wall times."""
    runs: tuple[Run, ...]
    peak_large_over_small: float
    """Peak memory at 100,000 rows divided by that at 10,000, without a sampler."""


def write_annotations(path: Path, *, rows: int) -> None:
    """A TimeLens-100K file of as many events."""
    rng = random.Random(rows)
    with path.open("w") as file:
        for video in range(rows // EVENTS_PER_VIDEO):
            duration_s = round(rng.uniform(20, 300), 3)
            record = {
                "source": "bench",
                "video_path": f"bench/{video:08}.mp4",
                "duration": duration_s,
                "events": [_event(rng, duration_s) for _ in range(EVENTS_PER_VIDEO)],
            }
            file.write(json.dumps(record) + "\n")


def _event(rng: random.Random, duration_s: float) -> dict[str, object]:
    start_s = round(rng.uniform(0, duration_s - 2), 1)
    words = rng.sample(["a", "person", "opens", "the", "blue", "door", "and", "leaves"], 6)
    span = [start_s, round(rng.uniform(start_s + 0.5, duration_s), 2)]
    return {"query": " ".join(words) + ".", "span": [span]}


def measured(source: Path, *, rows: int, options: tuple[str, ...] = ()) -> Run:
    """Convert a file in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--input", str(source), "--output", f"{folder}/rows.jsonl", *options]
        child = subprocess.run(
            [sys.executable, "-c", CHILD, *arguments], check=True, capture_output=True, text=True
        )
    seconds, cpu_seconds, peak_kib = (float(word) for word in child.stderr.split()[-3:])
    return Run(
        options=" ".join(options),
        rows=rows,
        input_mb=source.stat().st_size / 1e6,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_rss_mb=peak_kib * 1024 / 1e6,
    )


def measure() -> Result:
    """All conversions, in about half a minute."""
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        files = {rows: Path(folder) / f"{rows}.jsonl" for rows in (SMALL, LARGE)}
        for rows, path in files.items():
            write_annotations(path, rows=rows)
        small, large = (measured(path, rows=rows) for rows, path in files.items())
        sampled = measured(
            files[LARGE],
            rows=LARGE,
            options=("--sampling", "joint", "--max-samples", "20000"),
        )
    return Result(
        machine=machine(),
        load_average=load_average,
        runs=(small, large, sampled),
        peak_large_over_small=large.peak_rss_mb / small.peak_rss_mb,
    )


def table_of(result: Result) -> Table:
    """The result for the terminal, beside what was wanted."""
    table = Table(title=f"{result.machine}, load {result.load_average:.1f}")
    table.add_column("conversion")
    for heading in ("input", "seconds", "CPU seconds", "rows/s", "peak memory"):
        table.add_column(heading, justify="right")
    for run in result.runs:
        table.add_row(
            f"{run.rows:,} rows {run.options}",
            f"{run.input_mb:.1f} MB",
            f"{run.seconds:.1f}",
            f"{run.cpu_seconds:.1f}",
            f"{run.rows_per_s:,.0f}",
            f"{run.peak_rss_mb:.0f} MB",
        )
    table.caption = (
        f"wanted: {LARGE:,} rows in under 30 s, flat memory; "
        f"peak {LARGE:,} / {SMALL:,} rows: {result.peak_large_over_small:.2f}x"
    )
    return table


def main(output: Path = OUTPUT) -> None:
    """Measure conversion, print a table, write JSON."""
    started = time.perf_counter()
    result = measure()
    console = Console(width=120)
    console.print(table_of(result))
    console.print(f"measured in {time.perf_counter() - started:.0f} s")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(asdict(result), indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
