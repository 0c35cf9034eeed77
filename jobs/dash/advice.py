"""What goes wrong in a run, and which knob to turn (pure): figures and fleet → `Advice`.

Thresholds are named and say why; each looks at the last `RECENT` steps, so that one odd step says
nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from jobs.dash.folder import Columns, Floats
from jobs.dash.state import wait_share
from jobs.demo.echo import DROWNING_CONTAMINATION, DROWNING_FLIPS
from jobs.fleet.services import Fleet
from jobs.local.terminal import short

RECENT = 20
"""Steps: an average over fewer is noise, over many more comes too late."""
FIRST_ADVICE = 5
"""Steps before which nothing but faults is said."""
ENTROPY_LOW = 0.3
"""Nats a token: answers with more differ, whatever they began with. Plain GRPO ended at .03 to .27
in all runs but two, and best-of-8 fell (docs/compare.md); see `ENTROPY_SHARE`."""
ENTROPY_SHARE = 0.4
"""Of what the phase began with: a model whose answers are short and certain from the start has not
collapsed. Runs with injection kept .52 and more."""
TIED_SHARE = 0.5
"""Groups of a step whose advantages are all zero: half of the rollouts are paid for nothing."""
NONE_POSITIVE_SHARE = 0.6
"""Groups in which no policy answer lies above the mean. With eight answers and a truth that always
wins, one policy answer above the mean is usual; below that the truth alone is imitated."""
PARSE_LOW = 0.9
PARSE_FALL = 0.05
"""Held-out answers that can be read: below nine in ten, and fewer than there were."""
FORMAT_FALL = 0.15
"""Of the policy's mean format reward, from its best stretch of steps."""
WAIT_HIGH = 0.5
"""Of the learner's time: half of its GPUs stand still."""
UNSCORED_HIGH = 0.05
"""Answers without a verdict: one in twenty is no hiccup of the reward service."""
TRUNCATED_SHARE = 0.2
"""Policy answers that ran out of tokens."""
GAP_NATS = {"float32": 0.01, "bfloat16": 1.0}
"""By shared.dtype: where the learner stops unless learner.probe_max_gap_nats says otherwise."""
STALE_SHARE = 0.2
"""Groups thrown away as too old, of all that came."""

Level = Literal["fault", "warning", "hint"]


class Advice(BaseModel):
    """One thing to look at."""

    name: str
    level: Level
    title: str
    text: str
    knob: str


def advice(
    metrics: Columns, validation: Columns, *, settings: Mapping[str, Any], fleet: Fleet | None
) -> list[Advice]:
    """Everything that is wrong, faults first.

    Args:
        metrics: of the steps.
        validation: of the held-out rows.
        settings: the resolved config, or nothing.
        fleet: the services as they say now; None where none answers.
    """
    learner, shared = settings.get("learner") or {}, settings.get("shared") or {}
    found = [*_faults(metrics)]
    if len(metrics.steps) >= FIRST_ADVICE:
        found += _learning(metrics, learner=learner, shared=shared)
        found += _answers(metrics, validation, learner=learner, shared=shared)
        found += _ring(metrics, learner=learner, dtype=shared.get("dtype", "float32"))
    if fleet is not None:
        found += _fleet(fleet, max_staleness=learner.get("max_staleness"))
    order = {"fault": 0, "warning": 1, "hint": 2}
    return sorted(found, key=lambda one: order[one.level])


def _faults(metrics: Columns) -> Iterator[Advice]:
    skipped = metrics.tail("learner/skipped_steps", RECENT)
    if skipped.sum() > 0:
        yield Advice(
            name="skipped_steps",
            level="fault",
            title="Steps are skipped",
            text=f"{skipped.sum():.0f} of the last {len(skipped)} steps had a gradient that is not "
            "finite and changed nothing.",
            knob="learner.optimizer.lr, learner.optimizer.max_grad_norm",
        )
    dead = metrics.last("queue/dead_letters", 0.0)
    if dead > 0:
        yield Advice(
            name="dead_letters",
            level="fault",
            title="Prompts were given up",
            text=f"{dead:.0f} dead letters: rows that no replica could answer.",
            knob="given_up_rows.jsonl in the run folder, tempsamp audit",
        )


def _learning(
    metrics: Columns, *, learner: Mapping[str, Any], shared: Mapping[str, Any]
) -> Iterator[Advice]:
    entropy = _of_this_phase(metrics, "learner/entropy_nats")
    now, start = _mean(entropy[-RECENT:]), _mean(entropy[:RECENT])
    if now < ENTROPY_LOW and now < ENTROPY_SHARE * start:
        more = (
            ""
            if _injects(learner, shared)
            else f"{_strategy_knob(learner)} (injection keeps it alive), "
        )
        yield Advice(
            name="entropy_collapse",
            level="warning",
            title="Entropy collapses",
            text=f"{short(now)} nats a token after {short(start)} at first: the answers of a "
            "group are nearly alike.",
            knob=f"{more}learner.loss.clip_high, learner.loss.kl_coef, learner.optimizer.lr",
        )
    injected = metrics.of("reward/injected_reward")
    if np.isnan(injected[-RECENT:]).all() and _injects(learner, shared):
        yield Advice(
            name="nothing_injected",
            level="warning",
            title="Nothing is injected",
            text=f"None of the last {len(injected[-RECENT:])} steps holds a true answer. In think "
            'mode "splice" puts it behind the thought of the best answer; without a closed thought '
            "there is nothing to splice onto.",
            knob="shared.scoring.think_injection, learner.phases (thoughts are unlearned in a long "
            "one of answers), shared.scoring.format_weight",
        )
    groups = learner.get("groups_per_step")
    if not groups:
        return
    tied = _mean(metrics.of("advantage/groups_tied")[-RECENT:]) / groups
    if tied > TIED_SHARE:
        yield Advice(
            name="all_tied",
            level="warning",
            title="Most groups are tied",
            text=f"In {100 * tied:.0f} % of the groups every answer earns the same, and nothing is "
            "learned from them.",
            knob="learner.pool (rows of another difficulty), shared.group_size",
        )
    none = _mean(metrics.of("advantage/groups_without_positive")[-RECENT:]) / groups
    moved = _mean(metrics.of("advantage/contamination")[-RECENT:])
    flips = _mean(metrics.of("advantage/sign_flip_share")[-RECENT:])
    # Few nearly equal rewards make any shift many of their stds: only with flips does it matter.
    drowns = moved > DROWNING_CONTAMINATION and flips > DROWNING_FLIPS
    if none > NONE_POSITIVE_SHARE or drowns:
        turned = (
            f", and the injected rows move the mean by {short(moved)} stds and push "
            f"{100 * flips:.0f} % of the policy's answers the other way"
        )
        yield Advice(
            name="truth_dominates",
            level="warning",
            title="The injected truth dominates",
            text=f"In {100 * none:.0f} % of the groups no policy answer has a positive advantage"
            f"{turned if drowns else ''}: the run imitates more than it explores.",
            knob=f"{_strategy_knob(learner)}, shared.scoring.alpha1 and alpha2 (shaping), "
            "learner.advantage.downscale or anchor",
        )


def _of_this_phase(metrics: Columns, key: str) -> Floats:
    """Values since the phase in force began: thoughts and bare answers cannot be held together."""
    phase = metrics.of("learner/phase")
    known = np.flatnonzero(~np.isnan(phase))
    began = known[1:][np.diff(phase[known]) != 0]
    return metrics.of(key)[began[-1] if len(began) else 0 :]


def _injects(learner: Mapping[str, Any], shared: Mapping[str, Any]) -> bool:
    """Whether true answers are due in every phase."""
    strategy = shared.get("strategy", "none")
    return all((phase.get("strategy") or strategy) != "none" for phase in _phases(learner))


def _strategy_knob(learner: Mapping[str, Any]) -> str:
    """Where the strategy in force is set."""
    is_phased = any(phase.get("strategy") for phase in _phases(learner))
    return "strategy in learner.phases" if is_phased else "shared.strategy"


def _phases(learner: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """One without settings where there are none."""
    return learner.get("phases") or [{}]


def _answers(
    metrics: Columns,
    validation: Columns,
    *,
    learner: Mapping[str, Any],
    shared: Mapping[str, Any],
) -> Iterator[Advice]:
    read = validation.of("val/parse_rate")
    read = read[~np.isnan(read)]
    if len(read) and read[-1] < PARSE_LOW and read.max() - read[-1] > PARSE_FALL:
        yield Advice(
            name="parse_rate",
            level="warning",
            title="Fewer answers can be read",
            text=f"{100 * read[-1]:.0f} % of the held-out answers hold a span, after "
            f"{100 * read.max():.0f} %.",
            knob="shared.scoring.format_weight, shared.sampling.max_tokens",
        )
    form = metrics.of("reward/format")
    now, best = _mean(form[-RECENT:]), _best_stretch(form)
    if best - now > FORMAT_FALL:
        yield Advice(
            name="format",
            level="warning",
            title="The format is given up",
            text=f"The policy's format reward is {short(now)} after {short(best)}.",
            knob="shared.scoring.format_weight",
        )
    samples = (learner.get("groups_per_step") or 0) * (shared.get("group_size") or 0)
    cut = metrics.tail("advantage/samples_truncated", RECENT)
    if samples and len(cut) and cut.mean() / samples > TRUNCATED_SHARE:
        yield Advice(
            name="truncated",
            level="warning",
            title="Answers run out of tokens",
            text=f"{100 * cut.mean() / samples:.0f} % of the answers end at "
            f"{(shared.get('sampling') or {}).get('max_tokens', 'the most')} tokens.",
            knob="shared.sampling.max_tokens, learner.advantage.truncated",
        )
    unscored = _mean(metrics.of("reward/unscored_fraction")[-RECENT:])
    if unscored > UNSCORED_HIGH:
        yield Advice(
            name="unscored",
            level="fault",
            title="Answers get no verdict",
            text=f"{100 * unscored:.0f} % of them: the grader fails or is away.",
            knob="shared.reward_url, reward.scorer_timeout_s",
        )


def _ring(metrics: Columns, *, learner: Mapping[str, Any], dtype: str) -> Iterator[Advice]:
    share = wait_share(metrics)
    if share is not None and share > WAIT_HIGH:
        yield Advice(
            name="waiting",
            level="hint",
            title="The learner waits",
            text=f"{100 * share:.0f} % of its time goes by without groups to train on.",
            knob="more replicas (tempsamp rollout serve), learner.max_staleness",
        )
    gap = metrics.last("learner/probe_logprob_gap_nats")
    most = learner.get("probe_max_gap_nats") or GAP_NATS.get(dtype, 1.0)
    if gap > most / 2:
        yield Advice(
            name="gap",
            level="warning",
            title="Engine and learner drift apart",
            text=f"Their log-probabilities differ by up to {short(gap)} nats at equal weights; at "
            f"{short(most)} the run stops.",
            knob="shared.dtype, learner.kernels, learner.probe_max_gap_nats",
        )
    stale = _grown(metrics, "intake/groups_stale")
    taken = _grown(metrics, "intake/groups_taken")
    if stale + taken > 0 and stale / (stale + taken) > STALE_SHARE:
        yield Advice(
            name="stale",
            level="hint",
            title="Groups come too late",
            text=f"{100 * stale / (stale + taken):.0f} % of them were too old and thrown away.",
            knob="learner.max_staleness, fewer replicas, rollout.concurrent_prompts",
        )


def _fleet(fleet: Fleet, *, max_staleness: int | None) -> Iterator[Advice]:
    newest = fleet.learner.version if fleet.learner else None
    for replica in fleet.replicas:
        status = replica.status
        if status.phase == "broken" or replica.report is None:
            yield Advice(
                name=f"replica:{status.replica}",
                level="fault",
                title=f"Replica {status.replica} does not answer",
                text=replica.unreachable or "It is about to end: new weights were half applied.",
                knob="its log; it leaves the registry when its lease ends",
            )
        elif newest is not None and status.version is not None and max_staleness is not None:
            behind = newest - status.version
            if behind > max_staleness:
                yield Advice(
                    name=f"lagging:{status.replica}",
                    level="warning",
                    title=f"Replica {status.replica} lags behind",
                    text=f"It serves version {status.version}, {behind} behind the learner: its "
                    "answers are too old to be trained on.",
                    knob="learner.publish_timeout_s, learner.bucket_bytes, its network",
                )


def _mean(values: Any) -> float:
    """NaN, which no comparison holds for, where there is none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def _best_stretch(values: Any) -> float:
    present = values[~np.isnan(values)]
    if len(present) < 2 * RECENT:
        return float("nan")
    means = np.convolve(present, np.full(RECENT, 1 / RECENT), mode="valid")
    return float(means.max())


def _grown(metrics: Columns, key: str) -> float:
    """How much a total grew over the recent steps."""
    values = metrics.tail(key, RECENT + 1)
    return float(values[-1] - values[0]) if len(values) > 1 else 0.0
