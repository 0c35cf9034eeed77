"""Learning curves of the report: lines of metrics.jsonl and validation.jsonl → small inline SVGs.

The house look comes from `jobs.local.drawing`.
Neighbour: `jobs.demo.report` puts `learning_curves` into its template.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from common.messages import Mode
from jobs.demo.summary import PROBE_GAP, StepMetrics
from jobs.local.drawing import MUTED, SERIES, THEME, Drawing, svg_of

HEADROOM = 1.12
"""Height of the axis over the highest value."""
SMOOTHED_SHARE = 10
"""Curves are centred means over 1 / SMOOTHED_SHARE of the steps; raw values stay visible behind."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    metric: str
    label: str


@dataclass(frozen=True)
class Chart:
    """What a chart shows; a series without values is left out, a chart without series too."""

    title: str
    note: str
    series: tuple[Series, ...]
    draw: Callable[[Axes, Sequence[StepMetrics], Sequence[Series]], None]


def learning_curves(
    metrics: Sequence[StepMetrics],
    *,
    validations: Sequence[StepMetrics],
    validation_mode: Mode = "answer",
) -> list[Drawing]:
    """All charts that have something to show, in reading order.

    Args:
        metrics: lines of metrics.jsonl.
        validations: lines of validation.jsonl.
        validation_mode: how those queries were asked.
    """
    starts = phase_starts(metrics)
    drawings = (
        _drawing(THOUGHT if validation_mode == "think" else HELD_OUT, validations, starts),
        *(_drawing(chart, metrics, starts) for chart in CHARTS),
    )
    return [drawing for drawing in drawings if drawing is not None]


def phase_starts(metrics: Sequence[StepMetrics]) -> list[float]:
    """Steps at which prompts of another phase than the one before were fed (learner.phases)."""
    return [
        line["step"]
        for before, line in itertools.pairwise(metrics)
        if line.get("learner/phase") != before.get("learner/phase")
    ]


def smoothed(values: Sequence[float], *, window: int) -> list[float]:
    """Centred means over `window` values, over fewer at both ends."""
    half = window // 2
    return [fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def _drawing(
    chart: Chart, metrics: Sequence[StepMetrics], starts: Sequence[float]
) -> Drawing | None:
    present = [s for s in chart.series if any(s.metric in line for line in metrics)]
    if not present:
        return None

    def draw(axes: Axes) -> None:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        chart.draw(axes, metrics, present)
        for start in starts:
            axes.axvline(start, color=MUTED, linewidth=0.8, linestyle="--")
        axes.set_xlim(metrics[0]["step"], max(metrics[-1]["step"], metrics[0]["step"] + 1))

    legend = tuple((THEME[SERIES[k]], series.label) for k, series in enumerate(present))
    svg = svg_of(draw, label=chart.title)
    note = f"{chart.note} Dashed: a phase begins." if starts else chart.note
    return Drawing(title=chart.title, note=note, svg=svg, legend=legend)


def _points(metrics: Sequence[StepMetrics], metric: str) -> tuple[list[float], list[float]]:
    lines = [line for line in metrics if metric in line]
    return [line["step"] for line in lines], [line[metric] for line in lines]


def _draw_smooth(axes: Axes, metrics: Sequence[StepMetrics], series: Sequence[Series]) -> None:
    for colour, one in zip(SERIES, series, strict=False):
        steps, values = _points(metrics, one.metric)
        window = max(1, len(values) // SMOOTHED_SHARE)
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
        axes.plot(steps, smoothed(values, window=window), color=colour)


def _draw_marked(axes: Axes, metrics: Sequence[StepMetrics], series: Sequence[Series]) -> None:
    for colour, one in zip(SERIES, series, strict=False):
        steps, values = _points(metrics, one.metric)
        # Not clipped: the first and the last mark lie on the borders.
        axes.plot(steps, values, color=colour, marker="o", markersize=5, clip_on=False)
    axes.set_ylim(0, max(axes.dataLim.y1, 0.01) * HEADROOM)


def _draw_shares(axes: Axes, metrics: Sequence[StepMetrics], series: Sequence[Series]) -> None:
    _draw_smooth(axes, metrics, series)
    axes.set_ylim(0, 1)


def _draw_from_zero(axes: Axes, metrics: Sequence[StepMetrics], series: Sequence[Series]) -> None:
    _draw_smooth(axes, metrics, series)
    axes.set_ylim(0, max(axes.dataLim.y1, 0.01) * HEADROOM)


def _draw_gaps(axes: Axes, metrics: Sequence[StepMetrics], series: Sequence[Series]) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
    axes.yaxis.set_minor_locator(NullLocator())
    for colour, one in zip(SERIES, series, strict=False):
        steps, values = _points(metrics, one.metric)
        drawn = [value if value > 0 else float("nan") for value in values]
        marker = "o" if one.metric == PROBE_GAP else ""
        axes.plot(steps, drawn, color=colour, marker=marker, markersize=4)


def _power_of_ten(value: float, _position: int) -> str:
    exponent = round(math.log10(value))
    return "10" + str(exponent).translate(SUPERSCRIPTS)


def _draw_stacked(axes: Axes, metrics: Sequence[StepMetrics], series: Sequence[Series]) -> None:
    window = max(1, len(metrics) // SMOOTHED_SHARE)
    values = [smoothed([m.get(s.metric, 0.0) for m in metrics], window=window) for s in series]
    axes.stackplot(
        [line["step"] for line in metrics], values, colors=SERIES[: len(series)], alpha=0.85
    )
    axes.set_ylim(bottom=0)


HELD_OUT = Chart(
    "Held-out queries while training",
    "Greedy answers to queries of the validation split, by weight version.",
    (
        Series("val/miou", "mean IoU"),
        Series("val/r1_at_0.5", "R1@.5"),
    ),
    _draw_marked,
)
THOUGHT = replace(HELD_OUT, note=f"{HELD_OUT.note} The policy was asked to think.")
CHARTS = (
    Chart(
        "IoU of the policy's own answers",
        "Sampled on training clips; injected answers are not counted.",
        (
            Series("reward/iou", "mean"),
            Series("reward/best_of_group_iou", "best of each group"),
        ),
        _draw_shares,
    ),
    Chart(
        "Reward",
        "Shaped IoU plus format; the injected true answer is shown apart.",
        (
            Series("reward/reward", "policy"),
            Series("reward/injected_reward", "injected answer"),
        ),
        _draw_from_zero,
    ),
    Chart(
        "Entropy",
        "Nats per token of the policy's answers. Near zero, all answers of a group are the same.",
        (Series("learner/entropy_nats", "policy"),),
        _draw_from_zero,
    ),
    Chart(
        "Time per step",
        "Seconds: waiting for groups, optimizer step, publishing weights to the replicas.",
        (
            Series("learner/wait_s", "wait"),
            Series("learner/step_s", "step"),
            Series("learner/publish_s", "publish"),
        ),
        _draw_stacked,
    ),
    Chart(
        "Rollout against learner",
        "Largest log-probability gap, nats: stale in training batches, at equal weights in probes.",
        (
            Series("learner/logprob_gap_max_nats", "training batch"),
            Series(PROBE_GAP, "probe"),
        ),
        _draw_gaps,
    ),
    Chart(
        "Staleness",
        "Weight versions between generating a group and training on it.",
        (
            Series("intake/staleness_steps_mean", "mean"),
            Series("intake/staleness_steps_max", "largest"),
        ),
        _draw_from_zero,
    ),
)
