"""Figures of one step from its groups: what the policy earned, how stale it was, where time went.

`train` logs them and appends them to `<run_dir>/metrics.jsonl`, one JSON object a step. Rewards are
those of policy rows; injected rows are reported apart, so that the ground truth's own reward never
passes for the policy's (the public code mixed them, SPEC A7). Names are `hop/quantity_unit`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from common.messages import Provenance, Scored, ScoredGroup


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


def append(path: Path, figures: Mapping[str, float | int]) -> None:
    """Add one line to a metrics file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = {name: round(value, 6) for name, value in figures.items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rounded) + "\n")


def keep_until(path: Path, *, step: int) -> None:
    """Drop the lines after `step`: a resumed run writes them again."""
    if not path.exists():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _scored(group: ScoredGroup, provenance: Provenance) -> list[Scored]:
    rows = zip(group.samples, group.verdicts, strict=True)
    return [v for s, v in rows if s.provenance == provenance and isinstance(v, Scored)]


def _parts(verdicts: Sequence[Scored]) -> Iterable[tuple[str, float]]:
    if not verdicts:
        return
    yield "reward", fmean(verdict.reward for verdict in verdicts)
    for part in verdicts[0].parts:
        yield part, fmean(verdict.parts[part] for verdict in verdicts if part in verdict.parts)
