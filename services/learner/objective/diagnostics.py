"""Rewards and advantages of a step → what the injected rows did to them (SPEC A7), as figures.

`train.py` writes them into the step's line. Pure Python in float64.
"""

import statistics
from collections.abc import Sequence
from statistics import fmean

from common.messages import Scored, ScoredGroup
from services.learner.objective.advantage import MIN_GROUP, Rows, SampleAdvantages, StepAdvantages

HIT_IOU = 0.5
"""An answer with so much IoU has found its span, as R1@.5 counts."""


def diagnostics(step: StepAdvantages) -> dict[str, float]:
    """Metric name → value, over the groups of a step.

    Over groups with an injected row and two or more policy rows; mean and std (n - 1) of rewards
    as they enter the advantages (downscaled ones, where that is the strategy):

    - `advantage/{mean,std}_{group,policy}`: with the injected row and without, means.
    - `advantage/contamination`: |mean_group - mean_policy| / std_policy, mean where that is > 0:
      how far the ground truth moves the bar for the policy's own answers.
    - `advantage/sign_flip_share`: policy answers above one mean and below the other: they are
      pushed the other way because of the injected row. Nothing flips with strategy anchor, whose
      mean is the policy's; there the figure says what it avoids.
    - `advantage/injected_abs_{mean,max}`: |A| of injected rows that are trained on.

    And over all groups: `advantage/groups_tied`, `advantage/groups_without_positive` (no policy row
    that is trained on has A > 0: only the injected row says what to do) and
    `advantage/samples_truncated`.
    """
    pairs = list(zip(step.rows, step.by_group, strict=True))
    injected = [abs(a) for rows, found in pairs for a in _advantages(rows, found, injected=True)]
    figures = {
        "advantage/groups_tied": float(step.num_tied),
        "advantage/groups_without_positive": float(sum(_has_no_positive(*pair) for pair in pairs)),
        "advantage/samples_truncated": float(step.num_truncated),
    }
    if injected:
        figures["advantage/injected_abs_mean"] = fmean(injected)
        figures["advantage/injected_abs_max"] = max(injected)
    mixed = [rows for rows in step.rows if any(rows.injected)]
    mixed = [rows for rows in mixed if len(rows.policy_rewards) >= MIN_GROUP]
    return figures | (_shift(mixed) if mixed else {})


def search(groups: Sequence[ScoredGroup], step: StepAdvantages) -> dict[str, float]:
    """What the policy finds by itself, and what the ground truth does where it finds nothing.

    Over groups in which a policy answer has an IoU; empty without one (other tasks have none):

    - `advantage/without_hit_share`: of them, those in which none reaches IoU `HIT_IOU`.
    - `advantage/injected_without_hit_mean`: A of the injected row in those, where it is trained on.
    """
    best = [_best_iou(group) for group in groups]
    missed = [iou < HIT_IOU for iou in best if iou is not None]
    if not missed:
        return {}
    injected = [
        advantage
        for iou, rows, found in zip(best, step.rows, step.by_group, strict=True)
        if iou is not None and iou < HIT_IOU
        for advantage in _advantages(rows, found, injected=True)
    ]
    figures = {"advantage/without_hit_share": fmean(missed)}
    return figures | ({"advantage/injected_without_hit_mean": fmean(injected)} if injected else {})


def _best_iou(group: ScoredGroup) -> float | None:
    ious = (
        verdict.parts["iou"]
        for sample, verdict in zip(group.samples, group.verdicts, strict=True)
        if sample.provenance == "policy" and isinstance(verdict, Scored) and "iou" in verdict.parts
    )
    return max(ious, default=None)


def _shift(groups: list[Rows]) -> dict[str, float]:
    means = [(fmean(rows.rewards), fmean(rows.policy_rewards)) for rows in groups]
    stds = [
        (statistics.stdev(rows.rewards), statistics.stdev(rows.policy_rewards)) for rows in groups
    ]
    flips = [
        (reward - mean) * (reward - policy_mean) < 0
        for rows, (mean, policy_mean) in zip(groups, means, strict=True)
        for reward in rows.policy_rewards
    ]
    figures = {
        "advantage/mean_group": fmean(mean for mean, _ in means),
        "advantage/mean_policy": fmean(mean for _, mean in means),
        "advantage/std_group": fmean(std for std, _ in stds),
        "advantage/std_policy": fmean(std for _, std in stds),
        "advantage/sign_flip_share": fmean(flips),
    }
    moved = [
        abs(mean - policy_mean) / policy_std
        for (mean, policy_mean), (_, policy_std) in zip(means, stds, strict=True)
        if policy_std > 0
    ]
    return figures | ({"advantage/contamination": fmean(moved)} if moved else {})


def _advantages(rows: Rows, found: SampleAdvantages, *, injected: bool) -> list[float]:
    """Of the injected or of the policy rows that are trained on."""
    pairs = zip(rows.samples, rows.injected, strict=True)
    of_rows = [found[sample] for sample, is_injected in pairs if is_injected == injected]
    return [advantage for advantage in of_rows if advantage is not None]


def _has_no_positive(rows: Rows, found: SampleAdvantages) -> bool:
    return not any(advantage > 0 for advantage in _advantages(rows, found, injected=False))
