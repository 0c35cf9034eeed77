"""Group rewards → advantages: `ScoredGroup → one advantage a sample, None = not trained on`.

`intake.py` hands over groups with their verdicts, `batch.py` takes the numbers. Pure Python in
float64: a group has a handful of rewards.
"""

import math
import statistics
from collections.abc import Sequence

from common import config
from common.messages import Provenance, Scored, ScoredGroup

STD_EPSILON = 1e-6
"""Added to every std, as the public code does (SPEC A7)."""
MIN_GROUP = 2
"""Scored samples below which a group says nothing relative."""


def sample_advantages(
    group: ScoredGroup, *, strategy: config.Strategy, settings: config.Advantage
) -> tuple[float | None, ...]:
    """Advantages of one group, in sample order.

    An unscored sample leaves its group: it gets None and does not enter mean or std, because a
    broken grader is never a zero. All None: the group is unusable and the trainer counts it.
    """
    scored = [
        (index, verdict.reward, sample.provenance)
        for index, (sample, verdict) in enumerate(zip(group.samples, group.verdicts, strict=True))
        if isinstance(verdict, Scored)
    ]
    advantages = group_advantages(
        [reward for _, reward, _ in scored],
        [provenance for _, _, provenance in scored],
        strategy=strategy,
        settings=settings,
    )
    by_index = dict(zip((index for index, _, _ in scored), advantages, strict=True))
    return tuple(by_index.get(index) for index in range(len(group.samples)))


def group_advantages(
    rewards: Sequence[float],
    provenances: Sequence[Provenance],
    *,
    strategy: config.Strategy,
    settings: config.Advantage,
) -> list[float | None]:
    """Advantages of the scored samples of one group (SPEC A7, B1; paper eq. 2).

        A_i = (r_i - mean(r)) / (max(std(r), std_floor) + 1e-6),    std with n - 1

    - none, mixed: eq. 2 over all rows; mixed has the raw injected row among them.
    - shaping (TempSamp-R1): eq. 2 over all rows; the reward service has already bent the rewards.
    - downscale: the injected row's reward, which is the largest there is, times `downscale` before
      eq. 2. Trap: a policy that beats it turns A_GT negative ([1, 1, 1, .8] gives -1.5).
    - anchor: eq. 2 over policy rows only; A_GT = max(anchor x max A_policy, anchor_floor). Trap:
      policy rows that tie have zero advantage, so with floor 0 the ground truth is ignored exactly
      when the policy needs it.
    - sft: the injected row alone, A = 1; policy rows are not trained on.

    Left out: a learned baseline and token-level credit (one reward judges the whole answer), length
    or difficulty weights (not in the paper), and dropping groups whose rewards tie: their zeros
    still count in the token mean, as in the public code. Eq. 2 divides shaping's flattening above
    tau away when all rows are up there: noise is blown up unless `std_floor` says otherwise.

    Args:
        rewards: any finite values, one a scored sample.
        provenances: who wrote each sample.
        strategy: how the injected row takes part.
        settings: scales and floors.

    Returns:
        One advantage a row; None for a row that is not trained on. All None when there are fewer
        than two rows, or, for sft, no injected row.
    """
    injected = [provenance == "injected" for provenance in provenances]
    if strategy == "sft":
        return [1.0 if is_injected else None for is_injected in injected]
    if len(rewards) < MIN_GROUP:
        return [None] * len(rewards)
    if strategy == "anchor" and any(injected):
        return _anchored(rewards, injected, settings)
    if strategy == "downscale":
        rewards = [
            reward * settings.downscale if is_injected else reward
            for reward, is_injected in zip(rewards, injected, strict=True)
        ]
    return list(_normalized(rewards, settings))


def _anchored(
    rewards: Sequence[float], injected: Sequence[bool], settings: config.Advantage
) -> list[float | None]:
    policy_rewards = [
        r for r, is_injected in zip(rewards, injected, strict=True) if not is_injected
    ]
    if not policy_rewards:
        return [None] * len(rewards)
    policy = _normalized(policy_rewards, settings)
    anchored = max(settings.anchor * max(policy), settings.anchor_floor)
    rest = iter(policy)
    return [anchored if is_injected else next(rest) for is_injected in injected]


def _normalized(rewards: Sequence[float], settings: config.Advantage) -> list[float]:
    mean = math.fsum(rewards) / len(rewards)
    if not settings.scale_by_std:
        return [reward - mean for reward in rewards]
    std = statistics.stdev(rewards) if len(rewards) > 1 else 0.0
    scale = max(std, settings.std_floor) + STD_EPSILON
    return [(reward - mean) / scale for reward in rewards]
