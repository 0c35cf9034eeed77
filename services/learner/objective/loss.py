"""Token log-probabilities and advantages → policy loss and its statistics, for one micro-batch.

`policy.py` gives the log-probabilities, `batch.py` the rest; `step.py` sums the micro-batches and
calls backward. Pure functions of tensors, exact in float64.

Shapes: G groups, S samples a group, R answer tokens.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from common import config
from services.learner.objective.correction import (
    Correction,
    correction,
    effective_sample_size,
)

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped to ±20 before exp, as the public code does (SPEC A7)."""


def denominator(num_tokens: int, num_sequences: int, *, settings: config.Loss) -> float:
    """What the summed loss of a step is divided by: one number for all micro-batches and ranks.

    Args:
        num_tokens: trained tokens of the step, over all ranks.
        num_sequences: trained answers of the step, over all ranks.
        settings: `level = sequence` averages over answers (GSPO); `normalize = constant` over
            `constant_tokens` an answer (Dr.GRPO); else over tokens (DAPO, and the public code).
    """
    if settings.level == "sequence":
        return float(num_sequences)
    if settings.normalize == "constant":
        return float(num_sequences * settings.constant_tokens)
    return float(num_tokens)


def policy_loss(
    logprobs_GSR: Tensor,
    *,
    old_logprobs_GSR: Tensor,
    rollout_logprobs_GSR: Tensor,
    advantages_GS: Tensor,
    mask_GSR: Tensor,
    is_policy_GS: Tensor,
    entropy_GSR: Tensor,
    denominator: float,
    settings: config.Loss,
    reference_logprobs_GSR: Tensor | None = None,
) -> tuple[Tensor, "LossStats"]:
    """This micro-batch's part of the step's loss, to be summed over micro-batches and ranks.

        L  = 1/D Σ_tokens -w · J + β k
        J  = max(min(r A, clip(r, 1 - low, 1 + high) A), dual · A if A < 0)    surrogate = "clip"
        J  = sg(min(r, 1 + high)) A log π_θ                                    surrogate = "cispo"
        r  = exp(log π_θ - log π_old)                  1 in injected rows (π_old = π_θ, detached)
        w  = `correction` of exp(log π_old - log π_rollout)   1 in injected rows
        k  = an estimate of KL(π_θ, π_ref), see `_kl`         0 in injected rows
        D  = `denominator`, the same on all ranks

    With `level = "sequence"` (GSPO) r is the geometric mean over an answer's tokens, w one number
    an answer, and an answer counts as one term. With one update a batch π_old is π_θ detached: r is
    1 in value everywhere and the clips are inert; they act from the second update of a batch on.

    Where answers were sampled with top_p or top_k and bring their masks, each π of a policy row is
    over the ids that were kept of each token (`model/scoring.py`); of injected rows it never is.

    Left out: an entropy bonus (the paper has none; injection keeps exploration alive), importance
    weights toward whoever wrote an injected row (its policy is unknown: its gradient is
    advantage-weighted SFT, SPEC A7), a KL there (it is estimated from the policy's own samples
    only), and weighting by group size or answer length (one global denominator, no mean of means).

    Args:
        logprobs_GSR: float, nats, with gradient.
        old_logprobs_GSR: float, nats, of the policy that the ratio is taken to.
        rollout_logprobs_GSR: float, nats, by the engine that sampled.
        advantages_GS: float.
        mask_GSR: bool, True where a token is trained on.
        is_policy_GS: bool, False in injected rows.
        entropy_GSR: float, nats, for the statistics.
        denominator: see `denominator`.
        settings: `[learner.loss]`.
        reference_logprobs_GSR: float, nats, of the start checkpoint; needed when kl_coef > 0.

    Returns:
        The loss, a scalar, and its statistics.
    """
    if settings.kl_coef > 0 and reference_logprobs_GSR is None:
        raise ValueError(
            f"found no reference log-probabilities, wanted them: learner.loss.kl_coef is "
            f"{settings.kl_coef}"
        )
    policy_GSR = mask_GSR & is_policy_GS[..., None]
    old_GSR = torch.where(policy_GSR, old_logprobs_GSR.detach(), logprobs_GSR.detach())
    ratio_GSR = _ratio(logprobs_GSR - old_GSR, mask_GSR, level=settings.level)
    advantages_GS1 = advantages_GS[..., None].to(logprobs_GSR.dtype)
    if settings.surrogate == "cispo":
        surrogate_GSR, clipped_GSR = _cispo(logprobs_GSR, ratio_GSR, advantages_GS1, settings)
    else:
        surrogate_GSR, clipped_GSR = _surrogate(ratio_GSR, advantages_GS1, settings)
    corrected = correction(old_GSR - rollout_logprobs_GSR, policy_GSR=policy_GSR, settings=settings)
    kl_GSR = torch.zeros_like(logprobs_GSR)
    if reference_logprobs_GSR is not None:
        log_ratio_GSR = reference_logprobs_GSR.detach() - logprobs_GSR
        token_ratio_GSR = _ratio(logprobs_GSR - old_GSR, mask_GSR, level="token")
        kl_GSR = _kl(log_ratio_GSR, token_ratio_GSR, estimate=settings.kl) * policy_GSR
    terms_GSR = -corrected.weight_GSR * surrogate_GSR + settings.kl_coef * kl_GSR
    share_GSR = mask_GSR.to(logprobs_GSR.dtype)
    if settings.level == "sequence":
        share_GSR = share_GSR / mask_GSR.sum(-1, keepdim=True).clamp(min=1)
    loss = (terms_GSR * share_GSR).sum() / denominator
    gap_GSR = (rollout_logprobs_GSR - logprobs_GSR.detach()).abs()
    stats = LossStats.of(
        policy_GSR,
        loss=loss,
        clipped=clipped_GSR,
        entropy=entropy_GSR,
        correction=corrected,
        logprob_gap=gap_GSR,
        kl=kl_GSR,
    )
    return loss, stats


def _ratio(log_ratio_GSR: Tensor, mask_GSR: Tensor, *, level: str) -> Tensor:
    """π_θ / π_old; padding is 1, so that nothing non-finite meets the mask."""
    log_ratio_GSR = log_ratio_GSR.masked_fill(~mask_GSR, 0.0)
    if level == "sequence":
        lengths_GS1 = mask_GSR.sum(-1, keepdim=True).clamp(min=1)
        log_ratio_GSR = (log_ratio_GSR.sum(-1, keepdim=True) / lengths_GS1).expand_as(log_ratio_GSR)
    return log_ratio_GSR.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _surrogate(
    ratio_GSR: Tensor, advantages_GS1: Tensor, settings: config.Loss
) -> tuple[Tensor, Tensor]:
    """The clipped objective, and where a clip took the gradient away."""
    plain_GSR = ratio_GSR * advantages_GS1
    clipped_GSR = ratio_GSR.clamp(1 - settings.clip_low, 1 + settings.clip_high) * advantages_GS1
    surrogate_GSR = torch.minimum(plain_GSR, clipped_GSR)
    was_clipped_GSR = clipped_GSR < plain_GSR
    if settings.dual_clip is not None:
        floor_GSR = torch.where(advantages_GS1 < 0, settings.dual_clip * advantages_GS1, -math.inf)
        was_clipped_GSR = was_clipped_GSR | (surrogate_GSR < floor_GSR)
        surrogate_GSR = torch.maximum(surrogate_GSR, floor_GSR)
    return surrogate_GSR, was_clipped_GSR


def _cispo(
    logprobs_GSR: Tensor, ratio_GSR: Tensor, advantages_GS1: Tensor, settings: config.Loss
) -> tuple[Tensor, Tensor]:
    """CISPO's objective, and where the ratio was cut (which keeps its gradient there)."""
    bound = 1 + settings.clip_high
    cut_GSR = ratio_GSR.detach().clamp(max=bound)
    return cut_GSR * advantages_GS1 * logprobs_GSR, ratio_GSR > bound


def _kl(log_ratio_GSR: Tensor, token_ratio_GSR: Tensor, *, estimate: str) -> Tensor:
    """Schulman's estimates of KL(π_θ, π_ref) from the policy's own tokens, d = log π_ref - log π_θ.

    - k1 = r · sg(-d): unbiased, of either sign. As it stands -d has the gradient ∇log π_θ, whose
      mean is zero: it would hold nothing back. This has the gradient -d ∇log π_θ, the KL's own.
    - k2 = d² / 2, >= 0: biased, its gradient is the KL's own.
    - k3 = exp(d) - d - 1, >= 0: unbiased; its gradient is that of KL(π_ref, π_θ) at r = 1.
    - k3_weighted = r · k3: k3's low variance with the KL's own gradient, also off policy.
    """
    d_GSR = log_ratio_GSR.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimate == "k1":
        return token_ratio_GSR * -d_GSR.detach()
    if estimate == "k2":
        return d_GSR.square() / 2
    k3_GSR = d_GSR.exp() - d_GSR - 1
    return token_ratio_GSR * k3_GSR if estimate == "k3_weighted" else k3_GSR


MEANS = (
    "clip_fraction",
    "entropy_nats",
    "importance_weight_mean",
    "importance_masked_share",
    "logprob_gap_mean_nats",
    "kl_nats",
)
MAXIMA = ("importance_weight_max", "logprob_gap_max_nats")


@dataclass(frozen=True, slots=True)
class LossStats:
    """What the loss saw over policy tokens, in a form that micro-batches and ranks can merge."""

    sums: Tensor
    """[2 + len(MEANS)] float64: loss, number of policy tokens, then sums over them."""
    moments: Tensor
    """[3] float64, of importance weights before any bound: number, sum, sum of squares."""
    maxima: Tensor
    """[len(MAXIMA)] float64, 0 without policy tokens."""

    @classmethod
    def of(
        cls,
        policy_GSR: Tensor,
        *,
        loss: Tensor,
        clipped: Tensor,
        entropy: Tensor,
        correction: Correction,
        logprob_gap: Tensor,
        kl: Tensor,
    ) -> "LossStats":
        """Statistics over the tokens where `policy_GSR` is True."""

        def over_policy(values_GSR: Tensor) -> Tensor:
            return torch.where(policy_GSR, values_GSR.detach().to(torch.float64), 0.0)

        weight, masked = correction.weight_GSR, correction.masked_GSR
        averaged = [over_policy(v) for v in (clipped, entropy, weight, masked, logprob_gap, kl)]
        totals = [loss.detach().to(torch.float64), policy_GSR.sum().to(torch.float64)]
        maxima = [over_policy(values).amax() for values in (weight, logprob_gap)]
        return cls(
            sums=torch.stack([*totals, *(values.sum() for values in averaged)]),
            moments=correction.moments,
            maxima=torch.stack(maxima),
        )

    @classmethod
    def of_nothing(cls) -> "LossStats":
        """Those of a step without any token."""
        sums, moments, maxima = (
            torch.zeros(size, dtype=torch.float64) for size in (2 + len(MEANS), 3, len(MAXIMA))
        )
        return cls(sums=sums, moments=moments, maxima=maxima)

    @classmethod
    def merged(cls, parts: Iterable["LossStats"]) -> "LossStats":
        """Statistics of several micro-batches as one."""
        parts = list(parts)
        return cls(
            sums=torch.stack([part.sums for part in parts]).sum(0),
            moments=torch.stack([part.moments for part in parts]).sum(0),
            maxima=torch.stack([part.maxima for part in parts]).amax(0),
        )

    def metrics(self) -> dict[str, float]:
        """Metric name → value: the summed loss, means and maxima over policy tokens."""
        loss, num_tokens, *totals = self.sums.tolist()
        means = [total / max(num_tokens, 1.0) for total in totals]
        named = zip(
            ("policy_loss", *MEANS, *MAXIMA), (loss, *means, *self.maxima.tolist()), strict=True
        )
        size = effective_sample_size(*self.moments.tolist())
        return {f"learner/{name}": value for name, value in named} | {
            "learner/importance_effective_share": size
        }
