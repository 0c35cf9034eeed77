"""The policy loss in float64 against numbers worked out by hand."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from common.config import Loss
from services.learner.objective.loss import LossStats, denominator, policy_loss

PLAIN = Loss(correction="off")


def tensor(rows: list[list[float]]) -> Tensor:
    """One group: S rows of R tokens."""
    return torch.tensor([rows], dtype=torch.float64)


def compute(
    logprobs_GSR: Tensor, *, settings: Loss = PLAIN, **changed: Any
) -> tuple[Tensor, LossStats]:
    """The loss with everything not named at its most neutral: all tokens trained, all policy."""
    num_groups, num_samples, _ = logprobs_GSR.shape
    arguments: dict[str, Any] = {
        "old_logprobs_GSR": logprobs_GSR.detach(),
        "rollout_logprobs_GSR": logprobs_GSR.detach(),
        "advantages_GS": torch.ones(num_groups, num_samples, dtype=torch.float64),
        "mask_GSR": torch.ones_like(logprobs_GSR, dtype=torch.bool),
        "is_policy_GS": torch.ones(num_groups, num_samples, dtype=torch.bool),
        "entropy_GSR": torch.zeros_like(logprobs_GSR),
        "denominator": 1.0,
        **changed,
    }
    return policy_loss(logprobs_GSR, settings=settings, **arguments)


def ratios(values: list[float]) -> tuple[Tensor, Tensor]:
    """(new, old) log-probabilities of one row whose ratios are `values`."""
    old = torch.full((1, 1, len(values)), -1.0, dtype=torch.float64)
    return old + torch.tensor([[values]], dtype=torch.float64).log(), old


@pytest.mark.parametrize(
    ("advantage", "ratio", "objective"),
    [
        (1.0, 1.1, 1.1),  # inside the clip range
        (1.0, 1.5, 1.28),  # capped at 1 + clip_high
        (1.0, 0.5, 0.5),  # the pessimistic bound keeps what is worse
        (-1.0, 0.5, -0.8),  # capped at 1 - clip_low
        (-1.0, 2.0, -2.0),
        (-1.0, 5.0, -3.0),  # dual clip
    ],
)
def test_clipped_surrogate(advantage: float, ratio: float, objective: float) -> None:
    new, old = ratios([ratio])
    loss, _ = compute(new, old_logprobs_GSR=old, advantages_GS=torch.tensor([[advantage]]))
    assert loss.item() == pytest.approx(-objective, abs=1e-12)


def test_dual_clip_can_be_off() -> None:
    new, old = ratios([5.0])
    settings = Loss(correction="off", dual_clip=None)
    minus = torch.tensor([[-1.0]])
    loss, _ = compute(new, old_logprobs_GSR=old, advantages_GS=minus, settings=settings)
    assert loss.item() == pytest.approx(5.0)


def test_clip_fraction_counts_tokens_without_gradient() -> None:
    new, old = ratios([1.1, 1.5, 0.5, 1.3])
    new.requires_grad_()
    loss, stats = compute(new, old_logprobs_GSR=old)
    loss.backward()
    assert new.grad is not None
    assert (new.grad[0, 0] == 0).tolist() == [False, True, False, True]
    assert stats.metrics()["learner/clip_fraction"] == pytest.approx(0.5)


def test_on_policy_gradient_is_advantage_over_denominator() -> None:
    logprobs = tensor([[-1.0, -2.0], [-3.0, -4.0]]).requires_grad_()
    loss, _ = compute(
        logprobs, advantages_GS=torch.tensor([[2.0, -1.0]], dtype=torch.float64), denominator=4.0
    )
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == [[-0.5, -0.5], [0.25, 0.25]]
    assert loss.item() == pytest.approx(-0.5)


def test_masked_tokens_neither_count_nor_learn_even_when_not_finite() -> None:
    logprobs = tensor([[-1.0, -2.0]]).requires_grad_()
    mask = torch.tensor([[[True, False]]])
    rollout = tensor([[-1.0, -math.inf]])
    loss, stats = compute(logprobs, mask_GSR=mask, rollout_logprobs_GSR=rollout, settings=Loss())
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == [[-1.0, 0.0]]
    assert stats.metrics()["learner/logprob_gap_max_nats"] == 0.0


def test_importance_weight_is_truncated_and_has_no_gradient() -> None:
    logprobs = tensor([[-1.0, -1.0]]).requires_grad_()
    rollout = tensor([[-1.0 - math.log(1.5), -1.0 - math.log(7.0)]])
    loss, stats = compute(logprobs, rollout_logprobs_GSR=rollout, settings=Loss())
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0, 0].tolist() == pytest.approx([-1.5, -2.0])
    metrics = stats.metrics()
    assert metrics["learner/importance_weight_mean"] == pytest.approx(1.75)
    assert metrics["learner/importance_weight_max"] == pytest.approx(2.0)
    assert metrics["learner/logprob_gap_max_nats"] == pytest.approx(math.log(7.0))
    assert metrics["learner/logprob_gap_mean_nats"] == pytest.approx(math.log(10.5) / 2)


def test_injected_row_has_ratio_1_and_weight_1_whatever_old_and_rollout_say() -> None:
    logprobs = tensor([[-1.0], [-1.0]]).requires_grad_()
    loss, stats = compute(
        logprobs,
        old_logprobs_GSR=tensor([[-1.0], [-9.0]]),
        rollout_logprobs_GSR=tensor([[-1.0], [0.0]]),
        advantages_GS=torch.tensor([[0.0, 3.0]], dtype=torch.float64),
        is_policy_GS=torch.tensor([[True, False]]),
        settings=Loss(),
    )
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == [[0.0], [-3.0]]
    assert stats.metrics()["learner/logprob_gap_max_nats"] == 0.0


def test_log_ratio_is_clamped() -> None:
    settings = Loss(correction="off", dual_clip=None)
    logprobs, old = tensor([[0.0]]), tensor([[-500.0]])
    minus = torch.tensor([[-1.0]])
    loss, _ = compute(logprobs, old_logprobs_GSR=old, advantages_GS=minus, settings=settings)
    assert loss.item() == pytest.approx(math.exp(20.0))


def test_sequence_ratio_is_the_geometric_mean_and_an_answer_one_term() -> None:
    new, old = ratios([1.2, 0.9])
    settings = Loss(correction="off", level="sequence")
    new.requires_grad_()
    loss, _ = compute(new, old_logprobs_GSR=old, settings=settings)
    loss.backward()
    ratio = math.sqrt(1.2 * 0.9)
    assert loss.item() == pytest.approx(-ratio)
    assert new.grad is not None
    assert new.grad[0, 0].tolist() == pytest.approx([-ratio / 2, -ratio / 2])


def test_sequence_length_leaves_out_padding() -> None:
    new, old = ratios([1.2, 7.0])
    settings = Loss(correction="off", level="sequence")
    mask = torch.tensor([[[True, False]]])
    loss, _ = compute(new, old_logprobs_GSR=old, mask_GSR=mask, settings=settings)
    assert loss.item() == pytest.approx(-1.2)


def test_kl_is_k3_on_policy_rows_only() -> None:
    logprobs = tensor([[-1.0], [-1.0]]).requires_grad_()
    reference = tensor([[-1.5], [-3.0]])
    loss, stats = compute(
        logprobs,
        reference_logprobs_GSR=reference,
        advantages_GS=torch.zeros(1, 2, dtype=torch.float64),
        is_policy_GS=torch.tensor([[True, False]]),
        settings=Loss(correction="off", kl_coef=0.1),
    )
    loss.backward()
    k3 = math.exp(-0.5) + 0.5 - 1
    assert loss.item() == pytest.approx(0.1 * k3)
    assert logprobs.grad is not None
    assert logprobs.grad[0, 0, 0].item() == pytest.approx(0.1 * (1 - math.exp(-0.5)))
    assert logprobs.grad[0, 1, 0].item() == 0.0
    assert stats.metrics()["learner/kl_nats"] == pytest.approx(k3)


def test_kl_without_reference_is_refused() -> None:
    with pytest.raises(ValueError, match=r"learner\.loss\.kl_coef is 0\.1"):
        compute(tensor([[-1.0]]), settings=Loss(kl_coef=0.1))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (Loss(), 70.0),
        (Loss(normalize="constant", constant_tokens=32), 160.0),
        (Loss(level="sequence", correction="off"), 5.0),
    ],
)
def test_denominator(settings: Loss, wanted: float) -> None:
    assert denominator(70, 5, settings=settings) == wanted


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_gradient_equals_finite_differences(level: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 4)
    logprobs = -torch.rand(shape, generator=generator, dtype=torch.float64)
    old = logprobs + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    rollout = old + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    fixed = {
        "old_logprobs_GSR": old,
        "rollout_logprobs_GSR": rollout,
        "reference_logprobs_GSR": old.flip(0),
        "advantages_GS": torch.randn(2, 3, generator=generator, dtype=torch.float64),
        "mask_GSR": torch.rand(shape, generator=generator) < 0.8,
        "denominator": 17.0,
    }
    correction = "sequence_truncate" if level == "sequence" else "token_truncate"
    settings = Loss(level=level, correction=correction, kl_coef=0.05)

    def loss_of(values: Tensor) -> Tensor:
        return compute(values, settings=settings, **fixed)[0]

    assert torch.autograd.gradcheck(loss_of, logprobs.requires_grad_())


def test_two_micro_batches_add_up_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    rollout = logprobs + 0.1 * torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    whole, stats = compute(
        logprobs, rollout_logprobs_GSR=rollout, denominator=24.0, settings=Loss()
    )
    halves = [
        compute(
            logprobs[half],
            rollout_logprobs_GSR=rollout[half],
            denominator=24.0,
            settings=Loss(),
        )
        for half in (slice(0, 1), slice(1, 2))
    ]
    assert sum(loss.item() for loss, _ in halves) == pytest.approx(whole.item(), abs=1e-12)
    merged = LossStats.merged([part for _, part in halves])
    assert merged.metrics() == pytest.approx(stats.metrics(), abs=1e-12)


def test_cispo_keeps_the_gradient_of_a_token_whose_ratio_it_cuts() -> None:
    new, old = ratios([1.1, 5.0, 0.5])
    new.requires_grad_()
    settings = Loss(correction="off", surrogate="cispo")
    minus_two = torch.tensor([[-2.0]], dtype=torch.float64)
    loss, stats = compute(new, old_logprobs_GSR=old, advantages_GS=minus_two, settings=settings)
    loss.backward()
    assert new.grad is not None
    assert new.grad[0, 0].tolist() == pytest.approx([2.2, 2.56, 1.0])
    assert loss.item() == pytest.approx(
        2 * sum(r * n for r, n in zip((1.1, 1.28, 0.5), new[0, 0].tolist(), strict=True))
    )
    assert stats.metrics()["learner/clip_fraction"] == pytest.approx(1 / 3)


def test_cispo_and_clip_have_the_same_gradient_at_ratio_1() -> None:
    gradients = []
    for surrogate in ("clip", "cispo"):
        logprobs = tensor([[-1.0, -2.0], [-3.0, -4.0]]).requires_grad_()
        advantages = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
        settings = Loss(correction="off", surrogate=surrogate)  # type: ignore[arg-type]
        compute(logprobs, advantages_GS=advantages, settings=settings)[0].backward()
        gradients.append(logprobs.grad)
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert torch.equal(gradients[0], gradients[1])


D = 0.5
"""log π_θ - log π_ref below."""


@pytest.mark.parametrize(
    ("estimate", "ratio", "value", "gradient"),
    [
        ("k1", 1.0, D, D),
        ("k1", 1.2, 1.2 * D, 1.2 * D),
        ("k2", 1.2, D**2 / 2, D),
        ("k3", 1.2, math.exp(-D) + D - 1, 1 - math.exp(-D)),
        ("k3_weighted", 1.0, math.exp(-D) + D - 1, D),
        ("k3_weighted", 1.2, 1.2 * (math.exp(-D) + D - 1), 1.2 * D),
    ],
)
def test_kl_estimates(estimate: Any, ratio: float, value: float, gradient: float) -> None:
    new, old = ratios([ratio])
    new.requires_grad_()
    loss, stats = compute(
        new,
        old_logprobs_GSR=old,
        reference_logprobs_GSR=new.detach() - D,
        advantages_GS=torch.zeros(1, 1, dtype=torch.float64),
        settings=Loss(correction="off", kl_coef=0.1, kl=estimate),
    )
    loss.backward()
    assert loss.item() == pytest.approx(0.1 * value)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(0.1 * gradient)
    assert stats.metrics()["learner/kl_nats"] == pytest.approx(value)


@pytest.mark.parametrize("estimate", ["k1", "k2", "k3_weighted"])
def test_estimates_have_the_gradient_of_the_kl_itself(estimate: Any) -> None:
    """Summed over all tokens of a small vocabulary, each weighed by its probability."""
    logits = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64).log_softmax(-1)
    policy = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits)
    logprobs = logits.log_softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    for token, probability in enumerate(policy.exp().tolist()):
        loss, _ = compute(
            logprobs[token].reshape(1, 1, 1),
            reference_logprobs_GSR=reference[token].reshape(1, 1, 1),
            advantages_GS=torch.zeros(1, 1, dtype=torch.float64),
            settings=Loss(correction="off", kl_coef=1.0, kl=estimate),
        )
        total = total + probability * loss
    (found,) = torch.autograd.grad(total, logits)
    assert found.tolist() == pytest.approx(exact.tolist(), abs=1e-12)


def test_gspo_has_one_weight_an_answer() -> None:
    logprobs = tensor([[-1.0, -1.0], [-1.0, -1.0]]).requires_grad_()
    rollout = logprobs.detach() - tensor([[1.5, 0.8], [4.0, 3.0]]).log()
    settings = Loss(level="sequence", correction="sequence_truncate")
    compute(logprobs, rollout_logprobs_GSR=rollout, settings=settings)[0].backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == [
        pytest.approx([-0.6, -0.6]),  # 1.5 x .8 = 1.2, over two tokens
        pytest.approx([-1.0, -1.0]),  # 12, at most 2
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"level": "sequence"}, r"loss\.correction: found 'token_truncate', .*'sequence_mask'"),
        (
            {"level": "sequence", "correction": "off", "normalize": "constant"},
            r"loss\.normalize: found 'constant', .*no effect .*level = 'sequence'",
        ),
        (
            {"level": "sequence", "correction": "off", "surrogate": "cispo"},
            r"loss\.surrogate: found 'cispo', wanted 'clip' with learner\.loss\.level",
        ),
        ({"constant_tokens": 512}, r"constant_tokens: found 512, .*normalize = 'tokens'"),
        ({"surrogate": "cispo", "clip_low": 0.1}, r"clip_low: found 0\.1, .*'cispo'"),
        ({"surrogate": "cispo", "dual_clip": 4.0}, r"dual_clip: found 4\.0, .*'cispo'"),
        ({"kl": "k1"}, r"loss\.kl: found 'k1', .*kl_coef = 0"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Loss(**settings)
