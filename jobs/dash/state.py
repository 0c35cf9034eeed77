"""A run in one sentence, and a few figures beside it (pure): `state_of(...)` → `RunState`.

"Step 83 of 200, learning: validation mIoU .41 → .52, the learner waits 4 % of its time."
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from jobs.dash.drawing.curves import step_seconds, values_of
from jobs.dash.folder import Columns
from jobs.local.terminal import duration, short, steps_in_words, took

WINDOW = 50
"""Steps that "now" is an average over."""
IOU_STD = 0.35
"""Of single queries' IoU, as evaluations of the demo and of Charades-STA have it: with the number
of queries it says how far a mean moves by luck alone."""
SLOW_STEPS = 10.0
LEAST_QUIET_S = 90.0
"""A run whose last step is older than this and than ten of its steps is called quiet: a validation
or a publish with retries takes less."""

Phase = Literal["empty", "training", "quiet", "finished"]
Trend = Literal["learning", "unclear", "falling"]


class Trail(BaseModel):
    """A figure over the run."""

    what: str
    first: float
    last: float
    best: float
    best_step: int
    trend: Trend


class Tile(BaseModel):
    """One figure with its name."""

    label: str
    value: str
    note: str = ""


class RunState(BaseModel):
    """What stands at the top of the overview."""

    phase: Phase
    step: int
    steps: int | None
    sentence: str
    trail: Trail | None
    tiles: list[Tile]


def state_of(
    metrics: Columns,
    validation: Columns,
    *,
    settings: Mapping[str, Any],
    quiet_s: float | None,
) -> RunState:
    """Where a run stands.

    Args:
        metrics: of its steps.
        validation: of its held-out rows.
        settings: the resolved config, or nothing.
        quiet_s: seconds since its last step; None before the first.
    """
    steps = (settings.get("learner") or {}).get("steps")
    step = int(metrics.steps[-1]) if metrics.steps else 0
    trail = _held_out(validation) or _rewards(metrics)
    phase = _phase(metrics, step=step, steps=steps, quiet_s=quiet_s)
    return RunState(
        phase=phase,
        step=step,
        steps=steps,
        sentence=_sentence(phase, step, steps, trail, metrics, quiet_s),
        trail=trail,
        tiles=_tiles(metrics, trail),
    )


def wait_share(metrics: Columns) -> float | None:
    """Part of the last steps' time in which the learner waited for groups."""
    total = float(step_seconds(metrics)[-WINDOW:].sum())
    waited = float(np.nansum(metrics.of("learner/wait_s")[-WINDOW:]))
    return waited / total if total > 0 else None


def _phase(metrics: Columns, *, step: int, steps: int | None, quiet_s: float | None) -> Phase:
    if not metrics.steps:
        return "empty"
    if steps is not None and step >= steps:
        return "finished"
    usual_s = float(np.median(step_seconds(metrics)[-WINDOW:]))
    slow = quiet_s is not None and quiet_s > max(LEAST_QUIET_S, SLOW_STEPS * usual_s)
    return "quiet" if slow else "training"


def _held_out(validation: Columns) -> Trail | None:
    ious = validation.of("val/miou")
    seen = np.flatnonzero(~np.isnan(ious))
    if not len(seen):
        return None
    queries = validation.last("val/queries", 1.0)
    return _trail(
        "validation mIoU",
        ious[seen],
        steps=[validation.steps[index] for index in seen],
        noise=IOU_STD / math.sqrt(max(queries, 1.0)),
    )


def _rewards(metrics: Columns) -> Trail | None:
    """Without held-out rows: what sampled answers earned in the first and the last tenth."""
    for key, what in (("reward/iou", "sampled IoU"), ("reward/reward", "policy reward")):
        values = metrics.of(key)
        seen = np.flatnonzero(~np.isnan(values))
        if len(seen) >= 2:
            tenths = np.array_split(seen, min(10, len(seen)))
            means = np.array([values[part].mean() for part in tenths])
            spread = float(values[seen].std()) / math.sqrt(max(len(tenths[0]), 1))
            ends = [metrics.steps[part[-1]] for part in tenths]
            return _trail(what, means, steps=ends, noise=2 * spread)
    return None


def _trail(what: str, values: Any, *, steps: list[float], noise: float) -> Trail:
    first, last, best = float(values[0]), float(values[-1]), int(values.argmax())
    trend: Trend = "unclear"
    if last - first > noise:
        trend = "learning"
    if float(values[best]) - last > 2 * noise or first - last > noise:
        trend = "falling"
    return Trail(
        what=what,
        first=first,
        last=last,
        best=float(values[best]),
        best_step=int(steps[best]),
        trend=trend,
    )


def _sentence(
    phase: Phase,
    step: int,
    steps: int | None,
    trail: Trail | None,
    metrics: Columns,
    quiet_s: float | None,
) -> str:
    if phase == "empty":
        return "No step yet: the learner loads its model, waits for replicas, or has not begun."
    at = steps_in_words(step, steps)
    where = {
        "finished": f"Finished after {step:,} steps",
        "quiet": f"Quiet since {duration(quiet_s or 0)} at step {at}",
        "training": f"Step {at}",
    }[phase]
    said = [_progress(trail, phase)] if trail is not None else []
    share = wait_share(metrics)
    if share is not None:
        verb = "waits" if phase == "training" else "waited"
        said.append(f"the learner {verb} {100 * share:.0f} % of its time")
    return f"{where}, {', '.join(said)}." if said else f"{where}."


def _progress(trail: Trail, phase: Phase) -> str:
    over = phase == "finished"
    words = {
        "learning": "it learned" if over else "learning",
        "unclear": "no clear change" if over else "no clear change yet",
        "falling": "fell below its best" if over else "falling below its best",
    }[trail.trend]
    moved = f"{trail.what} {short(trail.first)} → {short(trail.last)}"
    if trail.trend == "falling":
        moved += f" after {short(trail.best)} at step {trail.best_step:,}"
    return f"{words}: {moved}"


def _tiles(metrics: Columns, trail: Trail | None) -> list[Tile]:
    tiles = []
    if trail is not None:
        tiles.append(
            Tile(
                label=trail.what,
                value=short(trail.last, digits=3),
                note=f"best {short(trail.best, digits=3)} at step {trail.best_step:,}",
            )
        )
    reward, injected = metrics.tail("reward/reward", WINDOW), metrics.last("reward/injected_reward")
    if len(reward):
        apart = "" if math.isnan(injected) else f"the injected truth {short(injected, digits=3)}"
        tiles.append(Tile(label="policy reward", value=short(reward.mean(), digits=3), note=apart))
    entropy = metrics.tail("learner/entropy_nats", WINDOW)
    if len(entropy):
        first = metrics.of("learner/entropy_nats")[:WINDOW]
        note = f"{short(float(np.nanmean(first)))} at the start"
        tiles.append(Tile(label="entropy", value=f"{short(entropy.mean())} nats", note=note))
    seconds = step_seconds(metrics)[-WINDOW:]
    if len(seconds) and seconds.sum() > 0:
        rates = values_of(metrics, "groups_a_minute")[-WINDOW:]
        rate = f"{np.nanmean(rates):.0f} groups a minute" if not np.isnan(rates).all() else ""
        tiles.append(Tile(label="time of a step", value=took(seconds.mean()), note=rate))
    stale = metrics.tail("intake/staleness_steps_mean", WINDOW)
    if len(stale):
        oldest = metrics.tail("intake/staleness_steps_max", WINDOW).max()
        tiles.append(
            Tile(
                label="staleness",
                value=f"{short(stale.mean())} versions",
                note=f"oldest {oldest:.0f}",
            )
        )
    return tiles
