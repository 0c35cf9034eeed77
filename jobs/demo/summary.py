"""`runs/<name>/summary.json`: what a run did and reached, as one flat object of plain figures.

`build_summary` makes it from two evaluations, the baselines and the learner's metrics.jsonl;
`jobs.demo.report` shows it, `jobs.demo.comparing` aggregates many. Key names are fixed: other
tools read them. IoUs and shares are in [0, 1], times in seconds, entropy in nats per token; null:
not measured.
"""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from common.messages import Mode
from common.queue.lines import read_figures
from jobs.demo.baselines import Baselines
from jobs.demo.figures import Evaluation, SampledMetrics

StepMetrics = Mapping[str, float]
"""One line of metrics.jsonl or validation.jsonl: `hop/quantity_unit` → value, and `step`."""

SUMMARY_FILE = "summary.json"
METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
ANSWERS_BEFORE = "evaluation/before"
ANSWERS_AFTER = "evaluation/after"
ANSWERS_BEST = "evaluation/best"
"""Below the folder of a run: each what `jobs.evaluation.held_out` writes of one policy."""
TAIL_BYTES = 65_536
"""Longer than a line of metrics.jsonl."""
PROBE_GAP = "learner/probe_logprob_gap_nats"
FEW_STEPS = 20
"""Steps at either end of a run that a mean is taken over, as single ones jump."""


def _sampled(figure: Callable[[SampledMetrics], float]) -> Callable[[Evaluation], float | None]:
    return lambda evaluation: figure(evaluation.sampled) if evaluation.sampled else None


FIGURES: Mapping[str, Callable[[Evaluation], float | None]] = {
    "miou": lambda e: e.greedy.miou,
    "r1_at_0.3": lambda e: e.greedy.r1_at_0_3,
    "r1_at_0.5": lambda e: e.greedy.r1_at_0_5,
    "r1_at_0.7": lambda e: e.greedy.r1_at_0_7,
    "parse_rate": lambda e: e.greedy.parse_rate,
    "distractor_iou": lambda e: e.greedy.distractor_iou,
    "answers_differ": lambda e: e.greedy.answers_differ,
    "sampled_miou": _sampled(lambda s: s.miou),
    "sampled_r1_at_0.5": _sampled(lambda s: s.r1_at_0_5),
    "sampled_r1_at_0.7": _sampled(lambda s: s.r1_at_0_7),
    "best_of_g": _sampled(lambda s: s.best_of_g),
    "without_hit": _sampled(lambda s: s.without_hit),
    "entropy": _sampled(lambda s: s.entropy_nats),
}
"""Figures of a policy; the summary has each as `<name>_start`, `<name>_end` and, where the version
that validated best was evaluated, `<name>_best`."""


@dataclass(frozen=True)
class BestEvaluation:
    """The version that validated best, where it was evaluated."""

    step: int
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What only the one who ran it knows; goes into the summary as it is."""

    run: str
    """Name of the run."""
    method: str
    steps: int
    seed: int
    eval_split: str
    validation_mode: Mode
    """How held-out queries are asked while training; `start` and `end` are asked for the answer."""
    wall_s: float
    """The whole run: services up, trained, evaluated."""
    train_wall_s: float
    """First prompt to last step."""
    weight_versions: int
    """Verified transfers of new weights."""
    groups_trained: int
    groups_unscored: int
    """Groups dropped because the grader gave no verdict."""
    policy_version_start: int
    """Weights that wrote every answer of the evaluation before; likewise below."""
    policy_version_end: int
    restarts: int
    """How often a process of the run died and was started again."""


def build_summary(
    facts: RunFacts,
    *,
    start: Evaluation,
    end: Evaluation,
    best: BestEvaluation | None = None,
    baselines: Baselines,
    metrics: Sequence[StepMetrics],
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
        facts: settings, times and counters of the run.
        start: the start checkpoint's evaluation, on the same rows as `end`.
        end: the trained policy's evaluation.
        best: that of the version which validated best; its figures are `<name>_best`.
        baselines: over the same rows.
        metrics: lines of metrics.jsonl.
    """
    gaps = [line[PROBE_GAP] for line in metrics if PROBE_GAP in line]
    evaluations = {"start": start, "end": end}
    if best is not None:
        evaluations["best"] = best.evaluation
    return {
        **asdict(facts),
        **{
            f"{name}_{when}": figure(evaluation)
            for name, figure in FIGURES.items()
            for when, evaluation in evaluations.items()
        },
        "best_step": best and best.step,
        "eval_queries": end.greedy.num_answers,
        "failed_queries_start": len(start.failures),
        "failed_queries_end": len(end.failures),
        "gt_distractor_iou": end.greedy.gt_distractor_iou,
        "num_samples": end.sampled.num_samples if end.sampled else 0,
        "best_constant_span": baselines.constant_span,
        "best_constant_miou": baselines.constant_miou,
        "best_constant_r1_at_0.5": baselines.constant_r1_at_0_5,
        "random_span_miou": baselines.random_miou,
        "random_span_r1_at_0.5": baselines.random_r1_at_0_5,
        "max_logprob_gap": max(gaps, default=None),
        **mechanism(metrics),
        "machine": machine(),
    }


def mechanism(metrics: Sequence[StepMetrics]) -> dict[str, float | None]:
    """What happened inside the groups of a run; None where no step says it."""
    first, last = metrics[:FEW_STEPS], metrics[-FEW_STEPS:]
    return {
        "train_iou_end": _mean(last, "reward/iou"),
        "train_without_hit_start": _mean(first, "advantage/without_hit_share"),
        "train_without_hit_end": _mean(last, "advantage/without_hit_share"),
        "injected_advantage_start": _mean(first, "advantage/injected_without_hit_mean"),
        "injected_advantage": _mean(metrics, "advantage/injected_without_hit_mean"),
        "contamination": _mean(metrics, "advantage/contamination"),
        "sign_flip_share": _mean(metrics, "advantage/sign_flip_share"),
    }


def _mean(metrics: Sequence[StepMetrics], key: str) -> float | None:
    found = [line[key] for line in metrics if key in line]
    return fmean(found) if found else None


def read_metrics(path: Path) -> list[StepMetrics]:
    """Lines of a metrics.jsonl or validation.jsonl in step order; empty when there is none."""
    return sorted(read_figures(path), key=lambda line: line["step"])


def last_metrics(path: Path) -> StepMetrics | None:
    """The last whole line of a file that is being written; None before the first."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        whole, _, _ = file.read().rpartition(b"\n")
    try:
        line: StepMetrics | None = json.loads(whole.rpartition(b"\n")[2]) if whole else None
    except ValueError:  # damaged; who reads the whole file says so
        return None
    return line


def machine() -> str:
    """Cores and processor of this machine, such as `2 cores, AMD EPYC 7763`."""
    return f"{os.cpu_count()} cores, {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
