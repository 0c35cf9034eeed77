"""The learner: `python -m tests.bench.learner [--trl PYTHON] [--json FILE]` → table, JSON.

    trl       the whole ring beside TRL's GRPOTrainer on the same step (`beside_trl.py`), and how
              much of a step saving takes; PYTHON has trl.lock, without it this part is left out
    sharing   prompt once per group beside the naive batch (`sharing.py`)
    balance   how evenly drawn steps fall on ranks, and padding; by FLOPs, not timed (`balance.py`)

Ratios of one run, everything in turn; medians and extremes.
"""

import argparse
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.bench.learner import balance, beside_trl, sharing
from tests.bench.spread import rounded
from tests.fixtures.learner.tiny_models import ARCHITECTURES

PROMPT_TOKENS, ANSWER_TOKENS, GROUP_SIZE = 1024, 16, 8
"""Of the group in `sharing`."""

Rows = list[tuple[str, str, str]]
"""What, found, wanted."""
Part = Callable[[Path, argparse.Namespace], tuple[dict[str, Any], Rows]]


def beside(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], Rows]:
    """`beside_trl.py`."""
    if options.trl is None:
        return {}, [("beside TRL", "left out: no --trl", "")]
    found = beside_trl.measure(folder, trl_python=options.trl, repeats=options.repeats)
    stall = found.checkpoint_stall
    report = {
        "trl": found.report(),
        "checkpoint_stall": stall.median,
        "checkpoint_stall_spread": asdict(stall),
    }
    return report, [
        ("vision patches of a step, TRL's over ours", found.vision_ratio.text("{:.1f}"), ">= 8"),
        ("LLM token-forwards, likewise", found.token_ratio.text("{:.2f}"), ">= 4"),
        ("seconds a step, likewise", found.wall_ratio.text("{:.2f}"), ">= 7"),
        (
            f"a save, as share of {beside_trl.DEFAULT_CHECKPOINT_EVERY} steps",
            stall.text("{:.1%}"),
            "< 5 %",
        ),
    ]


def shared(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], Rows]:
    """`sharing.py`."""
    torch.set_num_threads(1)
    rows: Rows = []
    report: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for architecture in ARCHITECTURES:
        found = sharing.measure(
            architecture,
            folder=folder,
            prompt_tokens=options.prompt_tokens,
            answer_tokens=ANSWER_TOKENS,
            group_size=GROUP_SIZE,
            repeats=options.repeats,
        )
        wanted = ".70" if architecture == "qwen3_5" else ".85"
        share = found.share_of_ideal
        report[architecture] = share.median
        details[architecture] = asdict(found)
        rows += [
            (f"{architecture}: share of the ideal", share.text("{:.2f}"), f">= {wanted}"),
            (
                f"{architecture}: peak memory, naive's",
                f"{found.peak_mib:.0f} MiB, {found.naive_peak_mib:.0f} MiB",
                "less",
            ),
            (
                f"{architecture}: gradients apart",
                f"{found.relative_gradient_error:.0e}",
                "< 1e-5",
            ),
        ]
    return {"sharing": report, "sharing_details": details}, rows


def balanced(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], Rows]:
    """`balance.py`."""
    found = balance.figures()
    rows: Rows = []
    for (groups, ranks), wanted in zip(balance.FLEETS, (">= .85", ">= .80"), strict=True):
        useful = f"{found[f'{groups}/{ranks}']:.2f}"
        rows.append((f"useful share of {ranks} ranks' time, {groups} groups", useful, wanted))
    rows.append(("padding of answer tokens", f"{found['padding']:.2f}", "< .10"))
    shares = {fleet: share for fleet, share in found.items() if fleet != "padding"}
    return {"balance": shares, "padding": found["padding"]}, rows


PARTS: dict[str, Part] = {
    "balance": balanced,
    "sharing": shared,
    "trl": beside,
}
"""Each adds its keys to the report and its rows to the table."""


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trl", type=Path, help="an interpreter that has TRL")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=PROMPT_TOKENS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="also write the result here")
    return parser.parse_args()


def main() -> None:
    """Measure all parts."""
    options = arguments()
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "repeats": options.repeats,
    }
    table = Table("what", "found", "wanted", title="the learner")
    for name in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            found, rows = PARTS[name](Path(folder), options)
        report |= found
        for row in rows:
            table.add_row(*row)
    report["load_after"] = os.getloadavg()[0]
    Console(width=110, file=sys.stdout).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(rounded(report), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
