"""What the engine sampled with against what the learner computes → importance weights.

`loss.py` multiplies each policy token's term by its weight. Engine and learner differ in kernels
and precision, and by the versions that a group is stale. Pure functions of tensors, exact in
float64.

Shapes: G groups, S samples a group, R answer tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from common import config

MAX_LOG_WEIGHT = 20.0
"""Log weights are clamped to ±20 before exp, as log ratios are (SPEC A7)."""


class Correction(NamedTuple):
    """Weights of one micro-batch, without gradient."""

    weight_GSR: Tensor
    """>= 0; 1 off policy rows and with `correction = "off"`."""
    masked_GSR: Tensor
    """bool, policy tokens whose weight was set to 0."""
    moments: Tensor
    """[3] float64: how many weights there are, their sum and the sum of their squares, before any
    bound: one an answer for sequence corrections, one a token else."""


def correction(log_weight_GSR: Tensor, *, policy_GSR: Tensor, settings: config.Loss) -> Correction:
    """Importance weights of a micro-batch, by name.

        token:     w_t = exp(log π_old(t) - log π_rollout(t))
        sequence:  w_t = exp(Σ_answer (log π_old - log π_rollout))   for each of its tokens
        truncate:  min(w, high)
        mask:      w if w <= high else 0
        icepop:    w_t if low <= w_t <= high else 0

    Truncation keeps every token at the price of a bias; a mask gives up tokens (an answer, for
    sequence_mask) on which engine and learner disagree; icepop also those that the engine thought
    far likelier than the learner does. Sequence weights are unbiased for a whole answer, but their
    variance grows with its length. Masked tokens still count in the loss's denominator.

    Left out: self-normalised weights (their sum over a step would be one more collective before
    the backward pass), and a lower bound outside icepop (a small weight does no harm).

    Args:
        log_weight_GSR: float, nats, log π_old - log π_rollout; anything off policy tokens.
        policy_GSR: bool, True for trained tokens of policy rows.
        settings: `[learner.loss]`: correction and its bounds.
    """
    log_weight_GSR = log_weight_GSR.detach().masked_fill(~policy_GSR, 0.0)
    whole_answers = settings.correction.startswith("sequence")
    if whole_answers:
        log_weight_GSR = log_weight_GSR.sum(-1, keepdim=True).expand_as(log_weight_GSR)
    raw_GSR = log_weight_GSR.clamp(-MAX_LOG_WEIGHT, MAX_LOG_WEIGHT).exp()
    masked_GSR = _outside(raw_GSR, settings) & policy_GSR
    weight_GSR = raw_GSR if settings.correction != "off" else torch.ones_like(raw_GSR)
    weight_GSR = weight_GSR.clamp(max=settings.correction_high).masked_fill(masked_GSR, 0.0)
    weight_GSR = torch.where(policy_GSR, weight_GSR, 1.0)
    if whole_answers:
        moments = _moments(raw_GSR[..., 0], policy_GSR.any(-1))
    else:
        moments = _moments(raw_GSR, policy_GSR)
    return Correction(weight_GSR, masked_GSR, moments)


def effective_sample_size(num_weights: float, total: float, total_of_squares: float) -> float:
    """Kish's (Σw)² / (n Σw²), in (0, 1]: 1 when all weights are equal, and without any weight."""
    if num_weights == 0:
        return 1.0
    return total**2 / (num_weights * total_of_squares)


def _outside(raw_GSR: Tensor, settings: config.Loss) -> Tensor:
    if settings.correction == "icepop":
        return (raw_GSR < settings.correction_low) | (raw_GSR > settings.correction_high)
    if settings.correction in ("token_mask", "sequence_mask"):
        return raw_GSR > settings.correction_high
    return torch.zeros_like(raw_GSR, dtype=torch.bool)


def _moments(weights: Tensor, counted: Tensor) -> Tensor:
    counted_weights = weights[counted].to(torch.float64)
    squares = counted_weights.square()
    return torch.stack([counted.sum().to(torch.float64), counted_weights.sum(), squares.sum()])
