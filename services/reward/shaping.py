"""Task score → shaped score (pure): paper eq. 4 and downscaling; SPEC A6 and B1 have the traps.

    nonlinear   r >= tau:  tau + alpha1 * ln(r - tau + 1)
                r <  tau:  tau - (e^{alpha2 (tau - r)} - 1) / (e^{alpha2} - 1)
    downscale   min(cap, scale * r), for the injected answer alone

Left out on purpose: any clamp to [0, 1]. The curve gives 0.0868 at r = 0 and 0.80182 at r = 1; a
group's advantages do not change under a common shift.
"""

import math
from collections.abc import Callable

from common.rest.reward_api import Shaping

Shaper = Callable[[float], float]


def nonlinear(
    reward: float, *, threshold: float = 0.8, alpha1: float = 0.01, alpha2: float = 1.0
) -> float:
    """Non-linear shaping (paper eq. 4): monotone, continuous at the threshold.

    Args:
        reward: task score, usually in [0, 1].
        threshold: tau, in (0, 1).
        alpha1: slope above tau at tau, >= 0.
        alpha2: curvature below tau; where e^alpha2 - 1 <= 0 it is max(0, reward) below tau, as in
            the public code (SPEC A6) and close to the limit alpha2 -> 0, the reward.
    """
    if reward >= threshold:
        return threshold + alpha1 * math.log(reward - threshold + 1.0)
    denominator = math.exp(alpha2) - 1.0
    if denominator <= 0:
        return max(0.0, reward)
    return threshold - (math.exp(alpha2 * (threshold - reward)) - 1.0) / denominator


def downscaled(reward: float, *, scale: float = 0.8, cap: float | None = None) -> float:
    """Reward of an injected answer times `scale`, then at most `cap` (SPEC A6, B1 strategy 1).

    The published rule sets the GT reward to 0.8 x the maximum reward; the injected answer earns the
    maximum by construction, so scaling its own reward is the same. It covers the format reward too.
    """
    scaled = scale * reward
    return scaled if cap is None else min(scaled, cap)


def score_shaper(shaping: Shaping) -> Shaper:
    """What is done to every task score of a request; `downscale` leaves task scores alone."""
    if shaping.kind != "nonlinear":
        return lambda score: score
    tau, alpha1, alpha2 = shaping.threshold, shaping.alpha1, shaping.alpha2
    return lambda score: nonlinear(score, threshold=tau, alpha1=alpha1, alpha2=alpha2)


def injected_shaper(shaping: Shaping) -> Shaper:
    """What is done to the whole reward of an injected answer."""
    if shaping.kind != "downscale":
        return lambda reward: reward
    return lambda reward: downscaled(reward, scale=shaping.scale, cap=shaping.cap)


def shape_all(rewards: tuple[float, ...], shaping: Shaping) -> list[float]:
    """POST /v1/shape: each reward through the named kind; `downscale` treats all as injected."""
    shaper = injected_shaper(shaping) if shaping.kind == "downscale" else score_shaper(shaping)
    return [shaper(reward) for reward in rewards]
