"""Group rewards → advantages: the groups of a step → one advantage a sample, None = not trained on.

`intake.py` hands over groups with their verdicts, `batch.py` takes the numbers, `diagnostics.py`
says what the injected rows did to them. Pure Python in float64: a group has a handful of rewards.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from common import config
from common.messages import Scored, ScoredGroup

STD_EPSILON = 1e-6
"""Added to every std, as the public code does (SPEC A7)."""
MIN_GROUP = 2
"""Scored samples below which a group says nothing relative."""
NOTHING = 1e-9
"""An advantage of this size is rounding: rewards that tie have it."""

SampleAdvantages = tuple[float | None, ...]
"""Of one group, in sample order."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The scored samples of one group, with their rewards as they enter mean and std."""

    samples: tuple[int, ...]
    """Their places in the group."""
    rewards: tuple[float, ...]
    injected: tuple[bool, ...]

    @classmethod
    def of(
        cls, group: ScoredGroup, *, strategy: config.Strategy, settings: config.Advantage
    ) -> Self:
        """What the engine cut short (abort) is left out, as is what has no verdict."""
        scored = [
            (index, verdict.reward, sample.provenance == "injected")
            for index, (sample, verdict) in enumerate(
                zip(group.samples, group.verdicts, strict=True)
            )
            if isinstance(verdict, Scored) and sample.finish_reason != "abort"
        ]
        samples, rewards, injected = zip(*scored, strict=True) if scored else ((), (), ())
        if strategy == "downscale":
            rewards = _downscaled(rewards, injected, settings)
        return cls(samples, rewards, injected)

    @property
    def policy_rewards(self) -> list[float]:
        """Rewards of what the policy wrote."""
        return [r for r, injected in zip(self.rewards, self.injected, strict=True) if not injected]


@dataclass(frozen=True, slots=True)
class StepAdvantages:
    """Advantages of all groups of a step, the same on every rank."""

    by_group: tuple[SampleAdvantages, ...]
    rows: tuple[Rows, ...]
    num_tied: int
    """Groups whose advantages are all zero; with `zero_variance = "skip"` they have none."""
    num_truncated: int
    """Policy answers that ran out of tokens; with `truncated = "drop"` they have none."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to train on: those switches left everything out, or strategy sft
        has no true answer, as in think mode where no thought was closed to splice it behind."""
        return all(a is None for group in self.by_group for a in group)


def step_advantages(
    groups: Sequence[ScoredGroup], *, strategy: config.Strategy, settings: config.Advantage
) -> StepAdvantages:
    """Advantages of a step; the only thing groups have in common is `scale = "batch_std"`.

    Truncated answers (finish reason length) that are not trained on still count in mean and std, as
    in DAPO's overlong filtering: what the others earned is compared with all there was.

    Args:
        groups: of the step.
        strategy: of the run; a group of a phase with its own says so.
        settings: scales and floors.
    """
    strategies = [group.strategy or strategy for group in groups]
    rows = tuple(
        Rows.of(group, strategy=own, settings=settings)
        for group, own in zip(groups, strategies, strict=True)
    )
    entering = map(_entering, rows, strategies)
    batch_std = _std([reward for group_rewards in entering for reward in group_rewards])
    by_group = [
        sample_advantages(group, strategy=own, settings=settings, batch_std=batch_std, rows=row)
        for group, own, row in zip(groups, strategies, rows, strict=True)
    ]
    tied = [_is_tied(advantages) for advantages in by_group]
    truncated = [
        [s.finish_reason == "length" and s.provenance == "policy" for s in group.samples]
        for group in groups
    ]
    skips, drops = settings.zero_variance == "skip", settings.truncated == "drop"
    kept = tuple(
        tuple(
            None if (skips and is_tied) or (drops and is_cut) else advantage
            for advantage, is_cut in zip(advantages, cut, strict=True)
        )
        for advantages, is_tied, cut in zip(by_group, tied, truncated, strict=True)
    )
    return StepAdvantages(
        by_group=kept,
        rows=rows,
        num_tied=sum(tied),
        num_truncated=sum(map(sum, truncated)),
    )


def sample_advantages(
    group: ScoredGroup,
    *,
    strategy: config.Strategy,
    settings: config.Advantage,
    batch_std: float = 0.0,
    rows: Rows | None = None,
) -> SampleAdvantages:
    """Advantages of one group, in sample order (SPEC A7, B1; paper eq. 2).

        A_i = (r_i - mean(r)) / (max(std, std_floor) + 1e-6),    std with n - 1

    - none, mixed: eq. 2 over all rows; mixed has the raw injected row among them.
    - shaping (TempSamp-R1): eq. 2 over all rows; the reward service has already bent the rewards.
    - downscale: before eq. 2 the injected row gets `downscale` times the largest reward of the
      group. Trap: a policy that beats that turns A_GT negative ([1, 1, 1, .8] gives -1.5).
    - anchor: eq. 2 over policy rows only; A_GT = max(anchor x max A_policy, anchor_floor). Trap:
      policy rows that tie have zero advantage, so with floor 0 the ground truth is ignored exactly
      when the policy needs it.
    - sft: the injected row alone, A = 1; policy rows are not trained on.

    std is the group's (`scale = "group_std"`), that of all rewards of the step (`"batch_std"`: easy
    and hopeless groups weigh less than with their own), or 1 without floor and 1e-6 (`"none"`,
    Dr.GRPO).

    Left out: a learned baseline and token-level credit (one reward judges the whole answer), and
    length or difficulty weights (not in the paper). Eq. 2 divides shaping's flattening above tau
    away when all rows are up there: noise is blown up unless `std_floor` says otherwise.

    An unscored sample leaves its group: it gets None and does not enter mean or std, because a
    broken grader is never a zero; so does one that the engine aborted.

    Args:
        group: its verdicts are any finite rewards.
        strategy: how the injected row takes part.
        settings: scales and floors.
        batch_std: of the step's rewards, for `scale = "batch_std"`.
        rows: of the group, where they are known.

    Returns:
        One advantage a sample; None for one that is not trained on. All None, a group that is
        unusable: fewer than two scored samples or, for sft, no injected one.
    """
    rows = rows or Rows.of(group, strategy=strategy, settings=settings)
    advantages = _row_advantages(rows, strategy=strategy, settings=settings, batch_std=batch_std)
    by_index = dict(zip(rows.samples, advantages, strict=True))
    return tuple(by_index.get(index) for index in range(len(group.samples)))


def _row_advantages(
    rows: Rows, *, strategy: config.Strategy, settings: config.Advantage, batch_std: float
) -> list[float | None]:
    if strategy == "sft":
        return [1.0 if is_injected else None for is_injected in rows.injected]
    if len(rows.rewards) < MIN_GROUP:
        return [None] * len(rows.rewards)
    if strategy == "anchor" and any(rows.injected):
        return _anchored(rows, settings, batch_std)
    return list(_normalized(rows.rewards, settings, batch_std))


def _downscaled(
    rewards: Sequence[float], injected: Sequence[bool], settings: config.Advantage
) -> tuple[float, ...]:
    """SPEC B1: the injected reward is set to a share of the largest one, its own among them."""
    return tuple(
        settings.downscale * max(rewards) if is_injected else reward
        for reward, is_injected in zip(rewards, injected, strict=True)
    )


def _anchored(rows: Rows, settings: config.Advantage, batch_std: float) -> list[float | None]:
    policy_rewards = rows.policy_rewards
    if not policy_rewards:
        return [None] * len(rows.rewards)
    policy = _normalized(policy_rewards, settings, batch_std)
    anchored = max(settings.anchor * max(policy), settings.anchor_floor)
    rest = iter(policy)
    return [anchored if is_injected else next(rest) for is_injected in rows.injected]


def _normalized(
    rewards: Sequence[float], settings: config.Advantage, batch_std: float
) -> list[float]:
    mean = math.fsum(rewards) / len(rewards)
    if settings.scale == "none":
        return [reward - mean for reward in rewards]
    std = batch_std if settings.scale == "batch_std" else _std(rewards)
    scale = max(std, settings.std_floor) + STD_EPSILON
    return [(reward - mean) / scale for reward in rewards]


def _entering(rows: Rows, strategy: config.Strategy) -> Sequence[float]:
    """The rewards that mean and std are taken over."""
    return rows.policy_rewards if strategy == "anchor" else rows.rewards


def _std(rewards: Sequence[float]) -> float:
    return statistics.stdev(rewards) if len(rewards) > 1 else 0.0


def _is_tied(advantages: SampleAdvantages) -> bool:
    found = [advantage for advantage in advantages if advantage is not None]
    return bool(found) and all(abs(advantage) <= NOTHING for advantage in found)
