"""Columns of a run → the panels of its overview, decimated: `panels(metrics, validation, …)`.

What the policy wrote and what was injected are never one curve. A panel without any figure is left
out; so is a curve. Keys are those of the step lines (`services/learner/metrics.py`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel

from jobs.dash.drawing.decimation import Floats, buckets_of, extremes, places, smoothed, window
from jobs.dash.folder import Columns

Tone = Literal["policy", "injected", "best", "heldout", "other", "quiet", "alarm"]
"""Whose figure a curve is; the page has one colour for each."""
BUCKETS = 240
"""Of a panel: each is at most two pixels wide on the widest that a page shows."""
SMOOTH_FROM = 40
"""Steps from which on a noisy curve gets a smoothed one over it."""
EXTRA_PARTS = 4
"""Reward parts that get a curve of their own."""
PARTS_KNOWN = {"reward", "iou", "iou_shaped", "best_of_group_iou", "unscored_fraction"}


@dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    key: str
    label: str
    tone: Tone
    is_heldout: bool = False
    """Of validation.jsonl."""
    only_if_any: bool = False
    """Left out while it is zero: what it measures is switched off."""


@dataclass(frozen=True)
class Panel:
    """One chart."""

    name: str
    title: str
    says: str
    """What to look for."""
    curves: tuple[Curve, ...]
    unit: str = ""
    from_zero: bool = True


class DrawnCurve(BaseModel):
    """One line with its points."""

    label: str
    tone: Tone
    last: float | None
    values: list[float | None]
    smooth: list[float | None] | None = None


class Lines(BaseModel):
    """Curves over the same places."""

    x: list[float]
    curves: list[DrawnCurve]


class DrawnPanel(BaseModel):
    """One chart as the page draws it."""

    name: str
    title: str
    says: str
    unit: str
    from_zero: bool
    lines: list[Lines]


PANELS = (
    Panel(
        "grounding",
        "Grounding",
        "IoU of sampled answers, the best of each group, and greedy answers to held-out rows",
        (
            Curve("reward/iou", "policy", "policy"),
            Curve("reward/best_of_group_iou", "best of group", "best"),
            Curve("val/miou", "held out", "heldout", is_heldout=True),
        ),
        unit="IoU",
    ),
    Panel(
        "reward",
        "Reward",
        "what the policy earns beside what the injected truth earns",
        (
            Curve("reward/reward", "policy", "policy"),
            Curve("reward/injected_reward", "injected", "injected"),
        ),
    ),
    Panel(
        "entropy",
        "Entropy",
        "near zero the answers of a group are all alike, and nothing is left to compare",
        (Curve("learner/entropy_nats", "policy tokens", "policy"),),
        unit="nats",
    ),
    Panel(
        "injection",
        "What the injected rows do",
        "their advantage, and how far they move the mean that the policy is judged by",
        (
            Curve("advantage/injected_abs_mean", "advantage of the truth", "injected"),
            Curve("advantage/contamination", "shift of the mean, in stds", "other"),
            Curve("advantage/sign_flip_share", "answers whose sign it flips", "quiet"),
        ),
    ),
    Panel(
        "teaching",
        "Groups that teach little",
        "of each step: all answers tied, no policy answer above the mean",
        (
            Curve("advantage/groups_tied", "tied", "other"),
            Curve("advantage/groups_without_positive", "none above the mean", "policy"),
            Curve("advantage/samples_truncated", "answers cut short", "quiet"),
        ),
        unit="a step",
    ),
    Panel(
        "reading",
        "Answers that can be read",
        "held-out answers with a span in them, and answers without a verdict",
        (
            Curve("val/parse_rate", "held out, read", "heldout", is_heldout=True),
            Curve("reward/unscored_fraction", "without a verdict", "alarm"),
        ),
    ),
    Panel(
        "time",
        "Time of a step",
        "what the learner waits for, trains, publishes and validates",
        (
            Curve("learner/wait_s", "waiting for groups", "alarm"),
            Curve("learner/step_s", "training", "policy"),
            Curve("learner/publish_s", "publishing", "other"),
            Curve("learner/validate_s", "validating", "quiet"),
        ),
        unit="s",
    ),
    Panel(
        "throughput",
        "Throughput",
        "groups trained on in a minute",
        (Curve("groups_a_minute", "groups a minute", "policy"),),
        unit="groups/min",
    ),
    Panel(
        "staleness",
        "Staleness",
        "versions that the groups of a step lag behind the policy that trains on them",
        (
            Curve("intake/staleness_steps_mean", "mean", "policy"),
            Curve("intake/staleness_steps_max", "oldest", "other"),
        ),
        unit="versions",
    ),
    Panel(
        "queues",
        "Queues",
        "prompts that wait, prompts in work, groups that the learner has not read",
        (
            Curve("queue/prompts_waiting", "prompts waiting", "quiet"),
            Curve("queue/prompts_claimed", "prompts in work", "policy"),
            Curve("queue/groups_unread", "groups unread", "other"),
            Curve("queue/dead_letters", "dead letters", "alarm"),
        ),
    ),
    Panel(
        "agreement",
        "Engine and learner",
        "distance of their log-probabilities, and the importance weights that follow",
        (
            Curve("learner/logprob_gap_mean_nats", "mean gap", "policy"),
            Curve("learner/logprob_gap_max_nats", "largest gap", "other"),
            Curve("learner/probe_logprob_gap_nats", "largest in a probe", "alarm"),
        ),
        unit="nats",
    ),
    Panel(
        "gradient",
        "Gradient",
        "its norm before clipping; -1: not finite, the step was skipped",
        (
            Curve("learner/grad_norm", "norm", "policy"),
            Curve("learner/clip_fraction", "clipped share of tokens", "quiet"),
        ),
    ),
    Panel(
        "kl",
        "Distance from the start",
        "KL against the start checkpoint",
        (Curve("learner/kl_nats", "KL", "policy", only_if_any=True),),
        unit="nats",
    ),
    Panel(
        "lengths",
        "Length of answers",
        "tokens that the policy writes",
        (Curve("rollout/answer_tokens_mean", "tokens", "policy"),),
        unit="tokens",
    ),
)


def panels(
    metrics: Columns,
    validation: Columns,
    *,
    low: float | None = None,
    high: float | None = None,
    num_buckets: int = BUCKETS,
) -> list[DrawnPanel]:
    """All panels with something in them.

    Args:
        metrics: of the steps.
        validation: of the held-out rows.
        low: first step to draw; None: from the start.
        high: last step to draw.
        num_buckets: how finely; a curve has at most twice as many points.
    """
    drawn = (
        _panel(panel, metrics, validation, seen=(low, high), num_buckets=num_buckets)
        for panel in (*PANELS[:2], *_parts(metrics), *PANELS[2:])
    )
    return [panel for panel in drawn if panel.lines]


def latest(metrics: Columns, validation: Columns) -> dict[str, dict[str, float]]:
    """The newest value of each curve, by panel and label: what moves while the curves stand."""
    found: dict[str, dict[str, float]] = {}
    for panel in (*PANELS, *_parts(metrics)):
        for curve in panel.curves:
            values = values_of(validation if curve.is_heldout else metrics, curve.key)
            present = values[~np.isnan(values)]
            if len(present):
                found.setdefault(panel.name, {})[curve.label] = float(present[-1])
    return found


def _parts(metrics: Columns) -> Iterator[Panel]:
    """The reward's other parts, whatever a scorer calls them."""
    found = [re.fullmatch(r"reward/(?!injected_)(.+)", key) for key in metrics.names]
    names = [match[1] for match in found if match and match[1] not in PARTS_KNOWN]
    curves = [
        Curve(f"reward/{prefix}{name}", f"{name.replace('_', ' ')}, {who}", tone)
        for name in names[:EXTRA_PARTS]
        for prefix, who, tone in _SIDES
    ]
    if curves:
        says = "what else the reward is made of, of policy and injected answers"
        yield Panel("parts", "Parts of the reward", says, tuple(curves))


_SIDES: tuple[tuple[str, str, Tone], ...] = (
    ("", "policy", "policy"),
    ("injected_", "injected", "injected"),
)


def _panel(
    panel: Panel,
    metrics: Columns,
    validation: Columns,
    *,
    seen: tuple[float | None, float | None],
    num_buckets: int,
) -> DrawnPanel:
    sides = (
        (metrics, [curve for curve in panel.curves if not curve.is_heldout]),
        (validation, [curve for curve in panel.curves if curve.is_heldout]),
    )
    drawn = [_lines(columns, curves, seen, num_buckets) for columns, curves in sides]
    return DrawnPanel(
        name=panel.name,
        title=panel.title,
        says=panel.says,
        unit=panel.unit,
        from_zero=panel.from_zero,
        lines=[lines for lines in drawn if lines is not None],
    )


def _lines(
    columns: Columns,
    curves: Sequence[Curve],
    seen: tuple[float | None, float | None],
    num_buckets: int,
) -> Lines | None:
    steps = np.array(columns.steps, dtype=np.float64)
    part = window(columns.steps, low=seen[0], high=seen[1])
    edges = buckets_of(len(steps[part]), num_buckets=num_buckets)
    drawn = []
    for curve in curves:
        values = values_of(columns, curve.key)
        if np.isnan(values[part]).all() or (curve.only_if_any and not np.nan_to_num(values).any()):
            continue
        calm = None
        if len(steps) >= SMOOTH_FROM and not curve.is_heldout:
            calm = extremes(smoothed(values)[part], edges=edges)
        present = values[~np.isnan(values)]
        drawn.append(
            DrawnCurve(
                label=curve.label,
                tone=curve.tone,
                last=float(present[-1]),
                values=extremes(values[part], edges=edges),
                smooth=calm,
            )
        )
    return Lines(x=places(steps[part], edges=edges), curves=drawn) if drawn else None


def values_of(columns: Columns, key: str) -> Floats:
    """[N] a column, or what is computed from several."""
    if key != "groups_a_minute":
        return columns.of(key)
    taken = columns.of("intake/groups_taken")
    # What is read ahead counts before its step, so the difference is smoothed by the curve.
    trained = np.diff(taken, prepend=0.0) if len(taken) else taken
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = 60 * trained / step_seconds(columns)
    return np.where(np.isfinite(rate) & (rate >= 0), rate, np.nan)


LAPS = ("learner/wait_s", "learner/step_s", "learner/publish_s", "learner/validate_s")


def step_seconds(columns: Columns) -> Floats:
    """[N] wall time of each step, with everything in it."""
    total: Floats = np.nansum([columns.of(key) for key in LAPS], axis=0)
    return total
