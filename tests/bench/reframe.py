"""Where re-framing loses accuracy: `python -m tests.bench.reframe [--json FILE]` → table, JSON.

Toy clips whose subject is known (16 s, 4 frames a second, 64x64; the highlight is the longest
event): the centred crop, two stages with a replica that knows the subject, which shows what the kit
loses by itself, and two stages with the demo's tiny model, which was never trained for this. No
speed is measured, so the figures are the same on every machine, those of the model nearly so.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

import tempsamp
from jobs.reframe.score import Score, in_words, mean, score
from jobs.reframe.submission import read_submission
from tests.fixtures.pages.documents import ROOT
from tests.fixtures.replicas.reframing import oracle, write_task
from tests.fixtures.replicas.stand_in_replica import serving

COUNT = 48
MODEL = ("--model", "deploy/tiny-qwen3vl", "--config", "deploy/configs/demo.toml")
KNOWING: dict[str, tuple[str, ...]] = {
    "knows the subject, every frame": ("--every", "1"),
    "knows the subject, every 2nd frame": ("--every", "2"),
    "knows the subject, every 5th frame": ("--every", "5"),
    "knows the subject, every 15th frame": (),
    "knows the subject, every 5th frame, --smooth 1": ("--every", "5", "--smooth", "1"),
}


def measure(folder: Path, *, with_model: bool = True) -> dict[str, Score]:
    """Figures of every way to crop, in a folder for the clips."""
    write_task(folder, count=COUNT)
    found = {"centred crop": _scored(folder, "center")}
    with serving(oracle) as replica:
        for name, options in KNOWING.items():
            found[name] = _scored(folder, "qwen", "--endpoint", replica.url, *options)
    if with_model:
        found["tiny model, every 5th frame"] = _scored(folder, "qwen", "--every", "5", *MODEL)
    return found


def _scored(folder: Path, command: str, *options: str) -> Score:
    out = folder / "sub.jsonl"
    where = ["--index", str(folder / "test_index.json"), "--video-dir", str(folder / "videos")]
    arguments = ["reframe", command, *where, "--out", str(out), *options]
    with _at_the_root():
        ended = CliRunner().invoke(tempsamp.app, arguments)
    # A model whose replies cannot be read is a result: all fall-backs, exit code 1.
    assert out.exists(), (ended.output, ended.exception)
    found = read_submission(out, knob="sub")
    out.unlink()
    return mean(score(found, truth=read_submission(folder / "truth.jsonl", knob="truth")))


@contextlib.contextmanager
def _at_the_root() -> Iterator[None]:
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


def main(
    model: Annotated[bool, typer.Option(help="Ask the tiny model too: half a minute more.")] = True,
    output: Annotated[Path | None, typer.Option("--json", help="Also write this file.")] = None,
) -> None:
    """Score every way to crop."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), with_model=model)
    table = Table(title=f"{COUNT} toy clips, mean over clips")
    for heading in ("boxes", "frame F1", "box IoU", "jitter px/frame"):
        table.add_column(heading)
    for name, one in found.items():
        figures = (one.frame_f1, one.box_iou, one.jitter_px)
        table.add_row(name, *map(in_words, figures))
    Console().print(table)
    if output is not None:
        output.write_text(json.dumps({k: asdict(v) for k, v in found.items()}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
