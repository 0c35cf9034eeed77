"""Summaries of many runs → means over seeds, paired differences, ties, tables. Pure.

Neighbours: `jobs.demo.compare_methods` makes the runs and states the rule; `docs/compare.md` is
what `markdown` makes of the JSON. A difference is called one only when its 95 % interval leaves out
zero.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Literal

from rich.table import Table
from scipy.special import stdtrit

from jobs.demo.figures import Record

Summary = Mapping[str, Any]
"""Content of a summary.json (`jobs.demo.summary`)."""

FIGURES: Mapping[str, str] = {
    "miou": "greedy mIoU",
    "sampled_miou": "sampled mIoU",
    "r1_at_0.5": "greedy R1@.5",
    "sampled_r1_at_0.5": "sampled R1@.5",
    "r1_at_0.7": "greedy R1@.7",
    "sampled_r1_at_0.7": "sampled R1@.7",
    "answers_differ": "answers differ",
    "entropy": "entropy (nats per token)",
    "best_of_g": "best of G",
}
"""Key in the summary (without `_end`) → what it is called."""
PAIRS = (
    ("mixed", "grpo"),
    ("tempsamp", "grpo"),
    ("sft", "grpo"),
    ("tempsamp", "mixed"),
    ("tempsamp", "sft"),
)
"""Differences looked at: first minus second. Others than these are against grpo."""
REFERENCE = "grpo"
CONFIDENCE = 0.95

Verdict = Literal["higher", "lower", "tie", "one seed"]


class Spread(Record):
    """One figure of one method over the seeds."""

    mean: float
    std: float | None
    """With n - 1; None for a single seed."""
    values: tuple[float, ...]
    """In the order of `Comparison.seeds`."""


class Difference(Record):
    """One figure of one method minus that of another, paired by seed."""

    mean: float
    low: float | None
    """Ends of the 95 % interval; None for a single seed."""
    high: float | None
    verdict: Verdict


class Pair(Record):
    """Two methods and their differences in every figure."""

    method: str
    against: str
    differences: dict[str, Difference]


class Comparison(Record):
    """Everything `make compare` reports."""

    steps: int
    split: str
    queries: int
    num_samples: int
    """G of best of G."""
    seeds: tuple[int, ...]
    start: dict[str, float]
    """Figures of the start checkpoint, means over the runs."""
    best_constant_miou: float
    random_span_miou: float
    methods: dict[str, dict[str, Spread]]
    pairs: tuple[Pair, ...]
    findings: tuple[str, ...]
    """The differences in sentences."""
    failed_queries: int
    """Requests without an answer, over all runs; they are in no figure."""
    train_minutes: float
    """Mean training time of a run."""
    machine: str


def compare(summaries: Sequence[Summary]) -> Comparison:
    """Aggregate runs.

    Raises:
        ValueError: a method lacks a seed, runs differ in steps or split, or a run was evaluated
            with other weights than its last.
    """
    _refuse_unequal(summaries)
    methods = list(dict.fromkeys(summary["method"] for summary in summaries))
    by_run = {(summary["method"], summary["seed"]): summary for summary in summaries}
    seeds = sorted({seed for _, seed in by_run})
    missing = [(m, seed) for m in methods for seed in seeds if (m, seed) not in by_run]
    if missing:
        raise ValueError(f"found no run for {missing}, wanted every method with every seed")
    spreads = {
        method: {
            key: _spread([by_run[method, seed][f"{key}_end"] for seed in seeds]) for key in FIGURES
        }
        for method in methods
    }
    pairs = tuple(_pair(spreads, method, against) for method, against in _pairs_of(methods))
    first = summaries[0]
    return Comparison(
        steps=first["steps"],
        split=first["eval_split"],
        queries=max(summary["eval_queries"] for summary in summaries),
        num_samples=first["num_samples"],
        seeds=tuple(seeds),
        start={key: fmean(summary[f"{key}_start"] for summary in summaries) for key in FIGURES},
        best_constant_miou=first["best_constant_miou"],
        random_span_miou=first["random_span_miou"],
        methods=spreads,
        pairs=pairs,
        findings=tuple(_finding(pair) for pair in pairs),
        failed_queries=sum(
            summary["failed_queries_start"] + summary["failed_queries_end"] for summary in summaries
        ),
        train_minutes=fmean(summary["train_wall_s"] for summary in summaries) / 60,
        machine=first["machine"],
    )


def paired_difference(values: Sequence[float], *, against: Sequence[float]) -> Difference:
    """Mean difference over seeds with the interval of Student's t, n - 1 degrees of freedom.

    Args:
        values: one figure, one value per seed.
        against: the same seeds' values of the other method.
    """
    deltas = [value - other for value, other in zip(values, against, strict=True)]
    mean = fmean(deltas)
    if len(deltas) < 2:
        return Difference(mean=mean, low=None, high=None, verdict="one seed")
    quantile = float(stdtrit(len(deltas) - 1, (1 + CONFIDENCE) / 2))
    half = quantile * stdev(deltas) / math.sqrt(len(deltas))
    low, high = mean - half, mean + half
    verdict: Verdict = "higher" if low > 0 else "lower" if high < 0 else "tie"
    return Difference(mean=mean, low=low, high=high, verdict=verdict)


def tables(comparison: Comparison) -> list[Table]:
    """Means and differences for a terminal."""
    means = Table("", title=_heading(comparison))
    means.add_column("start", justify="right")
    for method in comparison.methods:
        means.add_column(method, justify="right")
    for row in _mean_rows(comparison):
        means.add_row(*row)
    differences = Table("", title=f"paired differences, {CONFIDENCE:.0%} intervals")
    for pair in comparison.pairs:
        differences.add_column(f"{pair.method} - {pair.against}", justify="right")
    for row in _difference_rows(comparison):
        differences.add_row(*row)
    return [means, differences]


def markdown(comparison: Comparison) -> str:
    """The text of docs/compare.md."""
    pairs = [f"{pair.method} - {pair.against}" for pair in comparison.pairs]
    parts = [
        "# Methods compared",
        f"{_heading(comparison)}. Training took {comparison.train_minutes:.1f} minutes a run on "
        f"{comparison.machine}. Mean ± standard deviation over seeds; the best constant span has "
        f"mIoU {comparison.best_constant_miou:.3f}, a random span "
        f"{comparison.random_span_miou:.3f}. Made by `make compare`; the rule it follows, written "
        "before the results, heads `jobs/demo/compare_methods.py`.",
        _markdown_table(["", "start", *comparison.methods], _mean_rows(comparison)),
        f"## Differences\n\nPaired by seed, with {CONFIDENCE:.0%} intervals of Student's t, not "
        "corrected for the number of figures. An interval that holds zero is a tie.",
        _markdown_table(["", *pairs], _difference_rows(comparison)),
        "\n".join(f"- {finding}" for finding in comparison.findings),
        "## Every run",
        _markdown_table(["", "seed", *FIGURES.values()], _run_rows(comparison)),
    ]
    if comparison.failed_queries:
        parts.append(
            f"{comparison.failed_queries} requests got no answer and are in none of the figures."
        )
    return "\n\n".join(part for part in parts if part) + "\n"


def _refuse_unequal(summaries: Sequence[Summary]) -> None:
    if not summaries:
        raise ValueError("found no finished run, wanted at least one")
    for key in ("steps", "eval_split", "num_samples"):
        found = sorted({str(summary[key]) for summary in summaries})
        if len(found) > 1:
            raise ValueError(f"found runs with {key} {', '.join(found)}, wanted one value")
    for summary in summaries:
        if summary["policy_version_end"] != summary["steps"]:
            raise ValueError(
                f"{summary['run']}: found an evaluation of weight version "
                f"{summary['policy_version_end']}, wanted {summary['steps']}: run it again"
            )


def _spread(values: Sequence[float]) -> Spread:
    std = stdev(values) if len(values) > 1 else None
    return Spread(mean=fmean(values), std=std, values=tuple(values))


def _pairs_of(methods: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs to look at among these methods."""
    others = [(m, REFERENCE) for m in methods if m != REFERENCE and (m, REFERENCE) not in PAIRS]
    return [pair for pair in (*PAIRS, *others) if set(pair) <= set(methods)]


def _pair(spreads: Mapping[str, Mapping[str, Spread]], method: str, against: str) -> Pair:
    return Pair(
        method=method,
        against=against,
        differences={
            key: paired_difference(
                spreads[method][key].values, against=spreads[against][key].values
            )
            for key in FIGURES
        },
    )


def _finding(pair: Pair) -> str:
    """Such as `tempsamp against sft: higher in best of G; tie in greedy mIoU`."""
    if any(difference.verdict == "one seed" for difference in pair.differences.values()):
        return f"{pair.method} against {pair.against}: one seed decides nothing."
    grouped: dict[Verdict, list[str]] = {}
    for key, difference in pair.differences.items():
        grouped.setdefault(difference.verdict, []).append(FIGURES[key])
    order: tuple[Verdict, ...] = ("higher", "lower", "tie")
    said = [f"{word} in {', '.join(grouped[word])}" for word in order if word in grouped]
    return f"{pair.method} against {pair.against}: {'; '.join(said)}."


def _heading(comparison: Comparison) -> str:
    seeds = "1 seed" if len(comparison.seeds) == 1 else f"{len(comparison.seeds)} seeds"
    return (
        f"{seeds}, {comparison.steps} steps, {comparison.split} split, "
        f"{comparison.queries} queries, G = {comparison.num_samples}"
    )


def _mean_rows(comparison: Comparison) -> Iterable[list[str]]:
    for key, name in FIGURES.items():
        cells = [_mean_cell(spreads[key]) for spreads in comparison.methods.values()]
        yield [name, f"{comparison.start[key]:.3f}", *cells]


def _difference_rows(comparison: Comparison) -> Iterable[list[str]]:
    for key, name in FIGURES.items():
        yield [name, *(_difference_cell(pair.differences[key]) for pair in comparison.pairs)]


def _run_rows(comparison: Comparison) -> Iterable[list[str]]:
    for method, spreads in comparison.methods.items():
        for number, seed in enumerate(comparison.seeds):
            values = [f"{spreads[key].values[number]:.3f}" for key in FIGURES]
            yield [method, str(seed), *values]


def _mean_cell(spread: Spread) -> str:
    return f"{spread.mean:.3f}" + ("" if spread.std is None else f" ± {spread.std:.3f}")


def _difference_cell(difference: Difference) -> str:
    if difference.high is None:
        return f"{difference.mean:+.3f} (one seed)"
    interval = f"{difference.mean:+.3f} [±{difference.high - difference.mean:.3f}]"
    return f"tie {interval}" if difference.verdict == "tie" else interval


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    if len(header) == 1:
        return ""
    aligned = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, aligned, *rows))
