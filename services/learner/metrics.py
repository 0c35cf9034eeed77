"""Figures of one step from its groups: what the policy earned, how stale it was, where time went.

`train` logs them and appends them to `<run_dir>/metrics.jsonl`, one JSON object a step. Rewards are
those of policy rows; injected rows are reported apart, so that the ground truth's own reward never
passes for the policy's (the public code mixed them, SPEC A7). Names are `hop/quantity_unit`;
`SERIES` says as what Prometheus sees each (`status.py` shows them).
"""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

from common.messages import Provenance, Scored, ScoredGroup
from common.queue.lines import read_figures
from services.learner.state import durable

Kind = Literal["gauge", "counter", "sum"]
"""Of a figure: its last value counts, it is a total already, or each step's value is added up."""


@dataclass(frozen=True)
class Series:
    """What Prometheus sees of figures of a step or validation line."""

    key: str
    """Of the line, as a regular expression; its named groups become labels."""
    name: str
    """Of the metric; a counter's is shown with `_total` behind it."""
    kind: Kind
    help: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels whose value the key alone does not give."""

    @property
    def label_names(self) -> list[str]:
        """In alphabetical order."""
        return sorted([*self.labels, *re.compile(self.key).groupindex])

    def labels_of(self, key: str) -> dict[str, str] | None:
        """Labels for a key of a line; None when it is not this one's."""
        found = re.fullmatch(self.key, key)
        return None if found is None else {**self.labels, **found.groupdict()}


SERIES = (
    Series("step", "tempsamp_learner_step", "gauge", "Steps trained."),
    Series("policy_version", "tempsamp_learner_policy_version", "gauge", "Version last published."),
    Series(
        "learner/wait_s", "tempsamp_learner_wait_seconds", "sum", "Time spent waiting for groups."
    ),
    Series(
        "learner/step_s",
        "tempsamp_learner_step_seconds",
        "sum",
        "Time in forward, backward and optimizer.",
    ),
    Series(
        "learner/publish_s",
        "tempsamp_learner_publish_seconds",
        "sum",
        "Time in which publishing kept the learner from going on.",
    ),
    Series(
        "learner/transfer_s",
        "tempsamp_learner_transfer_seconds",
        "gauge",
        "Time of the last delivery, until all replicas that took it had acknowledged it.",
    ),
    Series(
        "learner/transfer_bytes",
        "tempsamp_learner_transfer_bytes",
        "gauge",
        "Bytes of that delivery, each group of replicas counted once.",
    ),
    Series(
        "learner/pause_ms",
        "tempsamp_learner_pause_milliseconds",
        "gauge",
        "Longest time that generation stood still for that delivery, over replicas.",
    ),
    Series(
        "learner/validate_s",
        "tempsamp_learner_validate_seconds",
        "sum",
        "Time waiting for held-out answers.",
    ),
    Series(
        "learner/checkpoint_stall_s",
        "tempsamp_learner_checkpoint_stall_seconds",
        "sum",
        "Time in which saving kept the learner from going on.",
    ),
    Series(
        "learner/checkpoint_write_s",
        "tempsamp_learner_checkpoint_write_seconds",
        "gauge",
        "Time that the last checkpoint took to be written, beside the steps.",
    ),
    Series(
        "learner/phase",
        "tempsamp_learner_phase",
        "gauge",
        "Phase of learner.phases that prompts are fed in, from 1.",
    ),
    Series("learner/policy_loss", "tempsamp_learner_policy_loss", "gauge", "Loss of the step."),
    Series(
        "learner/entropy_nats",
        "tempsamp_learner_entropy_nats",
        "gauge",
        "Mean entropy of policy tokens.",
    ),
    Series(
        "learner/kl_nats",
        "tempsamp_learner_kl_nats",
        "gauge",
        "KL estimate against the start checkpoint.",
    ),
    Series(
        "learner/clip_fraction",
        "tempsamp_learner_clip_fraction",
        "gauge",
        "Policy tokens whose ratio was clipped.",
    ),
    Series(
        "learner/importance_weight_(?P<over>mean|max)",
        "tempsamp_learner_importance_weight",
        "gauge",
        "Learner over rollout probability of policy tokens, bounded by learner.loss.correction.",
    ),
    Series(
        "learner/importance_effective_share",
        "tempsamp_learner_importance_effective_share",
        "gauge",
        "Effective sample size of the importance weights before any bound, 1: all equal.",
    ),
    Series(
        "learner/importance_masked_share",
        "tempsamp_learner_importance_masked_share",
        "gauge",
        "Policy tokens that the correction gave weight 0.",
    ),
    Series(
        "learner/logprob_gap_(?P<over>mean|max)_nats",
        "tempsamp_learner_logprob_gap_nats",
        "gauge",
        "Distance of the engine's and the learner's log-probabilities of policy tokens.",
    ),
    Series(
        "learner/probe_logprob_gap_nats",
        "tempsamp_learner_probe_logprob_gap_nats",
        "gauge",
        "Largest such distance at equal weights, from the last probe.",
    ),
    Series(
        "learner/probe_logprob_gap_mean_nats",
        "tempsamp_learner_probe_logprob_gap_mean_nats",
        "gauge",
        "Mean such distance at equal weights, from the last probe.",
    ),
    Series(
        "learner/grad_norm",
        "tempsamp_learner_grad_norm",
        "gauge",
        "Gradient norm before clipping; -1: skipped.",
    ),
    Series("learner/lr", "tempsamp_learner_learning_rate", "gauge", "Learning rate of the step."),
    Series(
        "learner/skipped_steps",
        "tempsamp_learner_skipped_steps",
        "sum",
        "Steps whose gradient was not finite.",
    ),
    Series(
        "learner/updates",
        "tempsamp_learner_updates",
        "sum",
        "Optimizer updates that were applied.",
    ),
    Series(
        "advantage/(?P<of>mean|std)_(?P<rows>group|policy)",
        "tempsamp_learner_group_reward",
        "gauge",
        "Mean and std of rewards as they enter advantages, with the injected answer and without.",
    ),
    Series(
        "advantage/contamination",
        "tempsamp_learner_advantage_contamination",
        "gauge",
        "Distance of those two means in stds of the policy's rewards.",
    ),
    Series(
        "advantage/sign_flip_share",
        "tempsamp_learner_advantage_sign_flip_share",
        "gauge",
        "Policy answers above one of those means and below the other.",
    ),
    Series(
        "advantage/groups_without_positive",
        "tempsamp_learner_groups_without_positive",
        "sum",
        "Groups in which no policy answer has a positive advantage.",
    ),
    Series(
        "advantage/without_hit_share",
        "tempsamp_learner_groups_without_hit_share",
        "gauge",
        "Groups of the step in which no policy answer reaches IoU 0.5.",
    ),
    Series(
        "advantage/injected_without_hit_mean",
        "tempsamp_learner_injected_advantage_without_hit",
        "gauge",
        "Mean advantage of injected answers in those groups.",
    ),
    Series(
        "advantage/groups_tied",
        "tempsamp_learner_groups_tied",
        "sum",
        "Groups whose advantages were all zero.",
    ),
    Series(
        "advantage/samples_truncated",
        "tempsamp_learner_samples_truncated",
        "sum",
        "Policy answers that ran out of tokens.",
    ),
    Series(
        "advantage/injected_abs_(?P<over>mean|max)",
        "tempsamp_learner_injected_advantage",
        "gauge",
        "Absolute advantage of injected answers.",
    ),
    Series(
        "batch/micro_batches",
        "tempsamp_learner_micro_batches",
        "gauge",
        "Times that each rank went forward and backward in the step.",
    ),
    Series(
        "batch/(?P<part>useful|padding)_fraction",
        "tempsamp_learner_batch_fraction",
        "gauge",
        "Of all ranks' time (FLOPs) what groups need as such; padding of answer tokens.",
    ),
    Series(
        "batch/max_tokens_per_rank",
        "tempsamp_learner_max_tokens_per_rank",
        "gauge",
        "Tokens that a rank may forward at once.",
    ),
    Series(
        "batch/memory_retries",
        "tempsamp_learner_memory_retries",
        "sum",
        "Steps repeated with fewer tokens at once because memory had run out.",
    ),
    Series(
        "clips/(?P<what>features|pixels)_hit_fraction",
        "tempsamp_learner_clip_hit_fraction",
        "gauge",
        "Clips of the step whose features were cached; of the others, those decoded ahead.",
    ),
    Series(
        "reward/best_of_group_iou",
        "tempsamp_learner_best_of_group_iou",
        "gauge",
        "Mean of groups' best IoU.",
    ),
    Series(
        "reward/unscored_fraction",
        "tempsamp_learner_unscored_fraction",
        "gauge",
        "Answers without a verdict.",
    ),
    Series(
        "reward/injected_(?P<part>.+)",
        "tempsamp_learner_reward_mean",
        "gauge",
        "Mean reward and its parts, of policy and injected answers apart.",
        {"provenance": "injected"},
    ),
    Series(
        "reward/(?P<part>.+)",
        "tempsamp_learner_reward_mean",
        "gauge",
        "Mean reward and its parts, of policy and injected answers apart.",
        {"provenance": "policy"},
    ),
    Series(
        "intake/staleness_steps_(?P<over>mean|max)",
        "tempsamp_learner_staleness_steps",
        "gauge",
        "Versions that the groups of the step lagged behind.",
    ),
    Series(
        "intake/groups_(?P<outcome>taken|stale|duplicate|unscored|unusable)",
        "tempsamp_learner_groups",
        "counter",
        "Groups by what became of them.",
    ),
    Series(
        "intake/samples_unscored",
        "tempsamp_learner_samples_unscored",
        "counter",
        "Answers without a verdict.",
    ),
    Series(
        "intake/samples_aborted",
        "tempsamp_learner_samples_aborted",
        "counter",
        "Answers that their engine cut short: never trained on.",
    ),
    Series(
        "intake/prompts_dead",
        "tempsamp_learner_prompts_dead",
        "counter",
        "Prompts given up: listed in given_up_rows.jsonl.",
    ),
    Series(
        "intake/prompts_lost",
        "tempsamp_learner_prompts_lost",
        "counter",
        "Prompts that Redis lost, fed again.",
    ),
    Series(
        "queue/(?P<queue>prompts_waiting|prompts_claimed|groups_unread|dead_letters)",
        "tempsamp_learner_queue_depth",
        "gauge",
        "Entries in the run's Redis streams.",
    ),
    Series(
        "rollout/(?P<side>answer|prompt)_tokens_mean",
        "tempsamp_learner_tokens_mean",
        "gauge",
        "Tokens, mean.",
    ),
    Series(
        "rollout/(?P<stage>decode|generate|score)_s_mean",
        "tempsamp_learner_group_seconds_mean",
        "gauge",
        "Time that a group of the step spent in a stage of its replica.",
    ),
    Series(
        "val/miou",
        "tempsamp_learner_validation_miou",
        "gauge",
        "Mean IoU on held-out rows, 0 to 1.",
    ),
    Series(
        "val/r1_at_(?P<iou>.+)",
        "tempsamp_learner_validation_recall",
        "gauge",
        "Held-out answers at or above an IoU.",
    ),
    Series(
        "val/parse_rate",
        "tempsamp_learner_validation_parse_rate",
        "gauge",
        "Held-out answers that were read.",
    ),
    Series(
        "val/queries",
        "tempsamp_learner_validation_queries",
        "gauge",
        "Held-out rows that were scored.",
    ),
    Series(
        "val/failures",
        "tempsamp_learner_validation_failures",
        "gauge",
        "Held-out rows without an answer.",
    ),
    Series(
        "val/wall_s",
        "tempsamp_learner_validation_wall_seconds",
        "gauge",
        "Time of the last validation.",
    ),
)
"""In order: the first that fits a key has it."""


def series_of(key: str) -> tuple[Series, dict[str, str]] | None:
    """The series of a key of a step or validation line, and its labels; None: not shown."""
    for series in SERIES:
        labels = series.labels_of(key)
        if labels is not None:
            return series, labels
    return None


def group_metrics(groups: Sequence[ScoredGroup], *, version: int) -> dict[str, float]:
    """Means over the groups that a step trains on.

    Args:
        groups: fresh scored groups.
        version: the policy version they are consumed at.
    """
    policy = [_scored(group, "policy") for group in groups]
    injected = [verdict for group in groups for verdict in _scored(group, "injected")]
    figures = {f"reward/{part}": value for part, value in _parts([v for g in policy for v in g])}
    figures |= {f"reward/injected_{part}": value for part, value in _parts(injected)}
    best = [max(v.parts["iou"] for v in g) for g in policy if g and "iou" in g[0].parts]
    if best:
        figures["reward/best_of_group_iou"] = fmean(best)
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    unscored = sum(verdict.kind == "unscored" for verdict in verdicts)
    staleness = [version - g.oldest_version for g in groups if g.oldest_version is not None]
    lengths = [len(s.token_ids) for g in groups for s in g.samples if s.provenance == "policy"]
    figures |= {
        "reward/unscored_fraction": unscored / len(verdicts),
        "intake/staleness_steps_mean": fmean(staleness) if staleness else 0.0,
        "intake/staleness_steps_max": float(max(staleness, default=0)),
        "rollout/answer_tokens_mean": fmean(lengths) if lengths else 0.0,
        "rollout/prompt_tokens_mean": fmean(len(g.prompt_token_ids) for g in groups),
        "rollout/decode_s_mean": fmean(group.timings.decode_s for group in groups),
        "rollout/generate_s_mean": fmean(group.timings.generate_s for group in groups),
        "rollout/score_s_mean": fmean(group.timings.score_s for group in groups),
    }
    return figures


class Clock:
    """Seconds between laps, by metric name."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Everything since the last lap is called `name`."""
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now


def append(path: Path, figures: Mapping[str, float | int]) -> None:
    """Add one line to a metrics file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = {name: round(value, 6) for name, value in figures.items()}
    durable.append(path, json.dumps(rounded))


def keep_until(path: Path, *, step: int) -> None:
    """Drop the lines after `step`: a resumed run writes them again. Damaged lines go too."""
    if not path.exists():
        return
    kept = [figures for figures in read_figures(path) if figures["step"] <= step]
    durable.replace_text(path, "".join(f"{json.dumps(figures)}\n" for figures in kept))


def _scored(group: ScoredGroup, provenance: Provenance) -> list[Scored]:
    rows = zip(group.samples, group.verdicts, strict=True)
    return [v for s, v in rows if s.provenance == provenance and isinstance(v, Scored)]


def _parts(verdicts: Sequence[Scored]) -> Iterable[tuple[str, float]]:
    if not verdicts:
        return
    yield "reward", fmean(verdict.reward for verdict in verdicts)
    for part in verdicts[0].parts:
        yield part, fmean(verdict.parts[part] for verdict in verdicts if part in verdict.parts)
