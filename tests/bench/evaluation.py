"""Speed of scoring: `python -m tests.bench.evaluation [--json FILE]` → table, JSON.

Made predictions in our format, scored as `tempsamp eval score` does: read, matched, judged under
every protocol with intervals, written as JSON. Then the QVHighlights evaluator on made queries of
the benchmark's size. One process, one core.
"""

import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from jobs.evaluation.scoring.moment_detr import Submission, Truth, evaluate
from jobs.evaluation.scoring.predictions import PredictionRecord
from jobs.evaluation.scoring.score import score_file
from tests.bench.reward import machine

QUERIES = 1550
"""Of QVHighlights' validation set."""
CLIPS = 75
OUTPUT = Path("docs/bench/evaluation.json")


@dataclass(frozen=True)
class Result:
    """Seconds on one core; lower is better."""

    machine: str
    load_average: float
    """Of the minute before."""
    predictions: int
    score_s: float
    """Read, matched, five protocols, intervals, breakdowns."""
    score_cpu_s: float
    """Its processor time, which other work on the machine changes less."""
    score_from_annotations_s: float
    """The same with the truth in a file of its own."""
    queries: int
    qvhighlights_s: float


def records(count: int) -> list[PredictionRecord]:
    """Predictions of the kinds that models give: tagged, thought, prose, clock times, none."""
    rng = random.Random(0)
    return [_record(index, rng) for index in range(count)]


def _record(index: int, rng: random.Random) -> PredictionRecord:
    start_s = round(rng.uniform(0, 100), 2)
    end_s = round(start_s + rng.uniform(1, 40), 2)
    said_s = max(0.0, start_s + rng.gauss(0, 5)), end_s + rng.gauss(0, 5)
    text = rng.choices(
        [
            f"<answer> {said_s[0]:.2f} to {said_s[1]:.2f} </answer>",
            f"<think> It starts at about {said_s[0]:.0f} s and is over soon after, so I say the "
            f"following. </think><answer> {said_s[0]:.2f} to {said_s[1]:.2f} </answer>",
            f"The event happens in {said_s[0]:.1f} - {said_s[1]:.1f} seconds.",
            f"From 00:{said_s[0] % 60:02.0f} to 01:{said_s[1] % 60:02.0f}.",
            "I cannot find it.",
        ],
        weights=[50, 20, 15, 10, 5],
    )[0]
    return PredictionRecord(
        id=f"line {index + 1}",
        video=f"video_{index // 4}.mp4",
        query=f"person number {index} opens a door.",
        gt=((start_s, end_s),),
        duration_s=150.0,
        mode="answer",
        text=text,
        answer_logprob=-0.5,
        fingerprint="bench",
    )


def highlights(count: int) -> tuple[dict[str, Truth], dict[str, Submission]]:
    """Annotations and ten ranked windows with clip scores for each."""
    rng = np.random.default_rng(0)
    truths, submissions = {}, {}
    for index in range(count):
        first = int(rng.integers(0, CLIPS - 20))
        clip_ids = list(range(first, first + int(rng.integers(3, 20))))
        truths[str(index)] = Truth(
            windows=[(2.0 * first, 2.0 * (clip_ids[-1] + 1))],
            duration_s=2.0 * CLIPS,
            clip_ids=clip_ids,
            saliency=rng.integers(0, 5, size=(len(clip_ids), 3)).tolist(),
        )
        starts_s = rng.uniform(0, 100, size=10)
        submissions[str(index)] = Submission(
            windows=[(s, s + 30.0, c) for s, c in zip(starts_s, rng.uniform(size=10), strict=True)],
            saliency=rng.normal(size=CLIPS).tolist(),
        )
    return truths, submissions


def measure(*, predictions: int) -> Result:
    """Everything, in about half a minute."""
    load_average = os.getloadavg()[0]
    truths, submissions = highlights(QUERIES)
    with tempfile.TemporaryDirectory() as folder:
        answers, truth = Path(folder, "predictions.jsonl"), Path(folder, "charades_sta_test.txt")
        made = records(predictions)
        answers.write_text("".join(f"{record.model_dump_json()}\n" for record in made))
        truth.write_text("".join(_charades_line(record) for record in made))
        cpu_s = time.process_time()
        score_s = _timed_s(lambda: score_file(answers, bench="rows").model_dump_json())
        cpu_s = time.process_time() - cpu_s
        annotated_s = _timed_s(lambda: score_file(answers, bench="charades-sta", gt=truth))
    return Result(
        machine=machine(),
        load_average=load_average,
        predictions=predictions,
        score_s=score_s,
        score_cpu_s=cpu_s,
        score_from_annotations_s=annotated_s,
        queries=QUERIES,
        qvhighlights_s=_timed_s(
            lambda: evaluate(truths, submissions=submissions, moments=True, highlights=True)
        ),
    )


def _charades_line(record: PredictionRecord) -> str:
    start_s, end_s = record.gt[0]
    return f"{record.video.removesuffix('.mp4')} {start_s} {end_s}##{record.query}\n"


def _timed_s(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def table_of(result: Result) -> Table:
    """The result for the terminal, beside what was wanted."""
    table = Table(title=f"{result.machine}, load {result.load_average:.1f}")
    for heading in ("figure", "found", "wanted"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    scored = f"{result.predictions:,} predictions"
    table.add_row(f"{scored}, five protocols", f"{result.score_s:.1f} s", "< 10 s")
    table.add_row("  in processor time", f"{result.score_cpu_s:.1f} s", "")
    table.add_row("  with an annotation file", f"{result.score_from_annotations_s:.1f} s", "")
    table.add_row(
        f"QVHighlights evaluator, {result.queries:,} queries",
        f"{result.qvhighlights_s:.2f} s",
        "< 20 s",
    )
    return table


def main(
    predictions: int = 100_000,
    output: Annotated[Path, typer.Option("--json", help="Where the figures go.")] = OUTPUT,
) -> None:
    """Measure scoring and write the figures."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    result = measure(predictions=predictions)
    Console(width=110).print(table_of(result))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(asdict(result), indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
