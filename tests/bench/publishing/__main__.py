"""Speed of the weight path: `python -m tests.bench.publishing [--json FILE]` → table, JSON.

    transfers   256 MiB to 1 and 3 receivers: whole against a bare gloo broadcast, deltas against
                whole
    faults      a receiver is killed, or frozen, in the middle of a broadcast
    beside      a real replica: what a transfer costs generation, and the demo's own publish

What is compared alternates within one run. The JSON opens with the medians; `spreads` has medians,
extremes and the rest.
"""

import datetime
import json
import logging
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from services.learner import parallel
from tests.bench.publishing.beside import Demo, Large, measure_demo, measure_large
from tests.bench.publishing.faults import Faults, measure_faults
from tests.bench.publishing.transfers import Transfers, measure_transfers
from tests.bench.publishing.weights import Weights
from tests.bench.publishing.weights import megabytes as shapes_of
from tests.bench.reward import machine
from tests.bench.spread import Spread

RECEIVERS = (1, 3)
FAULT_MB = 64


@dataclass(frozen=True)
class Report:
    """Everything that one run found."""

    transfers: list[Transfers]
    faults: Faults
    large: Large
    demo: Demo

    def medians(self) -> dict[str, Any]:
        """The figures by which runs are compared."""
        by_receivers = {str(item.receivers): item for item in self.transfers}

        def each(name: str) -> dict[str, float]:
            return {key: _short(getattr(item, name)) for key, item in by_receivers.items()}

        return {
            "share_of_bare": each("share_of_bare"),
            "share_of_bare_applied": each("share_of_bare_applied"),
            "delta_bytes_ratio": _short(self.transfers[-1].delta_bytes_ratio),
            "delta_speedup": each("delta_speedup"),
            "generation_share": _short(self.large.generation_share),
            "pause_ms": _short(self.demo.pause_ms),
            "demo_publish_ms": _short(self.demo.demo_publish_ms),
            "kill_s": _short(self.faults.kill_s),
            "freeze_s": _short(self.faults.freeze_s),
            "freeze_deadline_s": self.faults.deadline_s,
        }

    def spreads(self) -> dict[str, Any]:
        """All figures with their extremes."""
        return {
            "transfers": {str(item.receivers): asdict(item) for item in self.transfers},
            "faults": asdict(self.faults),
            "large": asdict(self.large),
            "demo": asdict(self.demo),
        }


def measure(*, megabytes: int, depth: int, repeats: int, console: Console) -> Report:
    """All of it; each part says what it took."""
    torch.set_num_threads(1)  # one core each for learner and replica, as the demo and compose say
    ranks = parallel.start_ranks("cpu", timeout_s=60)
    transfers = []
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), time.monotonic()

        def done(part: str) -> None:
            load = f"load {os.getloadavg()[0]:.1f}"
            console.print(f"{part}: at {time.monotonic() - started:.0f} s, {load}", style="dim")

        weights = Weights(shapes_of(megabytes), device=ranks.device)
        for receivers in RECEIVERS:
            transfers.append(
                measure_transfers(
                    receivers=receivers,
                    weights=weights,
                    ranks=ranks,
                    repeats=repeats,
                )
            )
            done(f"{megabytes} MiB to {receivers}")
        del weights
        faults = measure_faults(
            weights=Weights(shapes_of(FAULT_MB), device=ranks.device),
            ranks=ranks,
            repeats=repeats,
        )
        done("killed and frozen receivers")
        large = measure_large(ranks=ranks, folder=folder, depth=depth, repeats=repeats)
        done("a long transfer beside generation")
        demo = measure_demo(ranks=ranks, folder=folder, repeats=3 * repeats)
        done("the demo's publish beside generation")
    return Report(transfers, faults, large, demo)


def table_of(report: Report) -> Table:
    """The result for the terminal, beside what was wanted."""
    table = Table()
    for heading in ("what", "found: median (lowest-highest)", "wanted"):
        table.add_column(heading)
    for item in report.transfers:
        to = f"to {item.receivers}"
        table.add_row(f"bare broadcast {to}", item.bare_s.text("{:.3f} s"), "")
        table.add_row(f"whole {to}, verified", item.full_s.text("{:.3f} s"), "")
        table.add_row(f"  share of bare {to}", item.share_of_bare.text("{:.0%}"), ">= 70%")
        table.add_row("  with apply", item.share_of_bare_applied.text("{:.0%}"), "")
        table.add_row(f"2 % delta {to}, verified", item.delta_s.text("{:.3f} s"), "")
        table.add_row("  times faster than whole", item.delta_speedup.text("{:.2f}"), "> 1")
        table.add_row("  times fewer bytes", item.delta_bytes_ratio.text("{:.1f}"), ">= 10")
    faults, large, demo = report.faults, report.large, report.demo
    table.add_row("killed in mid-broadcast", faults.kill_s.text("{:.2f} s"), "<= 3 s")
    table.add_row(
        f"frozen, beyond {faults.deadline_s:g} s of deadline",
        faults.freeze_after_deadline_s.text("{:.2f} s"),
        "<= 2 s",
    )
    table.add_row(
        f"generation during {large.num_bytes / 1e6:.0f} MB ({large.transfer_s.median:.1f} s)",
        large.generation_share.text("{:.0%}"),
        ">= 60%",
    )
    table.add_row("  pause to apply them", large.pause_ms.text("{:.0f} ms"), "")
    table.add_row(
        f"the demo's {demo.num_bytes / 1e6:.1f} MB beside generation",
        demo.demo_publish_ms.text("{:.0f} ms"),
        "<= 80 ms",
    )
    table.add_row("  of it the pause", demo.pause_ms.text("{:.0f} ms"), "")
    return table


def _short(spread: Spread) -> float:
    return float(f"{spread.median:.4g}")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(
    repeats: Annotated[int, typer.Option(min=3)] = 5,
    megabytes: Annotated[int, typer.Option(help="Of bfloat16 weights; a multiple of 8.")] = 256,
    depth: Annotated[int, typer.Option(help="Blocks of the large model's tower, 60 MB each.")] = 12,
    output: Annotated[Path | None, typer.Option("--json", help="Also write them here.")] = None,
) -> None:
    """Measure the weight path."""
    logging.disable(logging.WARNING)  # replicas are meant to fail
    console = Console(width=120)
    load_average = os.getloadavg()[0]
    report = measure(megabytes=megabytes, depth=depth, repeats=repeats, console=console)
    console.print(table_of(report))
    if output is not None:
        content = {
            **report.medians(),
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "load_average": load_average,
            "repeats": repeats,
            "spreads": _rounded(report.spreads()),
        }
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
