"""Importance weights in float64 against numbers worked out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from common import config
from common.config import Loss
from common.errors import ConfigError
from services.learner.objective.correction import correction, effective_sample_size
from services.learner.objective.loss import LossStats, policy_loss

WEIGHTS = [[0.25, 1.5, 3.0], [0.8, 0.5, 1.0], [9.0, 9.0, 9.0]]
"""π_old / π_rollout; products of the rows: 1.125, .4, and 729."""
TRAINED = [[True, True, True], [True, True, True], [True, True, False]]
POLICY = [True, True, False]


def weights_of(name: Any, **bounds: float) -> Tensor:
    return compute(name, **bounds).weight_GSR[0]


def compute(name: Any, **bounds: float) -> Any:
    policy = torch.tensor([TRAINED]) & torch.tensor([POLICY])[..., None]
    log_weights = torch.tensor([WEIGHTS], dtype=torch.float64).log()
    return correction(log_weights, policy_GSR=policy, settings=Loss(correction=name, **bounds))


@pytest.mark.parametrize(
    ("name", "bounds", "wanted"),
    [
        ("off", {}, [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]),
        ("token_truncate", {}, [[0.25, 1.5, 2.0], [0.8, 0.5, 1.0]]),
        ("token_truncate", {"correction_high": 1.2}, [[0.25, 1.2, 1.2], [0.8, 0.5, 1.0]]),
        ("token_mask", {}, [[0.25, 1.5, 0.0], [0.8, 0.5, 1.0]]),
        ("icepop", {}, [[0.0, 1.5, 0.0], [0.8, 0.5, 1.0]]),
        ("icepop", {"correction_low": 0.6}, [[0.0, 1.5, 0.0], [0.8, 0.0, 1.0]]),
        ("sequence_truncate", {}, [[1.125] * 3, [0.4] * 3]),
        ("sequence_truncate", {"correction_high": 1.1}, [[1.1] * 3, [0.4] * 3]),
        ("sequence_mask", {"correction_high": 1.1}, [[0.0] * 3, [0.4] * 3]),
    ],
)
def test_weights_of_policy_rows(
    name: str, bounds: dict[str, float], wanted: list[list[float]]
) -> None:
    weights = weights_of(name, **bounds)
    for row, values in zip(weights[:2], wanted, strict=True):
        assert row.tolist() == pytest.approx(values, abs=1e-12)
    assert weights[2].tolist() == [1.0, 1.0, 1.0], "injected rows weigh 1"


def test_masked_tokens_are_those_of_weight_0() -> None:
    masked = compute("icepop").masked_GSR
    assert masked[0].tolist() == [[True, False, True], [False] * 3, [False] * 3]
    assert not compute("token_truncate").masked_GSR.any()


def test_moments_are_before_any_bound_per_token_or_per_answer() -> None:
    tokens = [0.25, 1.5, 3.0, 0.8, 0.5, 1.0]
    for name in ("off", "token_truncate", "token_mask", "icepop"):
        moments = compute(name).moments.tolist()
        assert moments == pytest.approx([6.0, sum(tokens), sum(w * w for w in tokens)])
    answers = compute("sequence_mask").moments.tolist()
    assert answers == pytest.approx([2.0, 1.525, 1.125**2 + 0.4**2])


def test_effective_sample_size() -> None:
    assert effective_sample_size(4, 4.0, 4.0) == 1.0
    assert effective_sample_size(2, 4.0, 10.0) == pytest.approx(0.8)  # weights 1 and 3
    assert effective_sample_size(0, 0.0, 0.0) == 1.0


def test_weights_are_finite_however_far_engine_and_learner_are_apart() -> None:
    policy = torch.ones(1, 1, 2, dtype=torch.bool)
    apart = torch.tensor([[[-1000.0, 1000.0]]], dtype=torch.float64)
    found = correction(apart, policy_GSR=policy, settings=Loss())
    assert found.weight_GSR.flatten().tolist() == [math.exp(-20.0), 2.0]


def test_weights_scale_gradients_and_have_none_themselves() -> None:
    logprobs = torch.full((1, 1, 2), -1.0, dtype=torch.float64, requires_grad=True)
    rollout = -1.0 - torch.tensor([[[1.5, 7.0]]], dtype=torch.float64).log()
    loss, stats = loss_of(logprobs, rollout, Loss(correction="token_mask"))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    assert logprobs.grad.flatten().tolist() == pytest.approx([-0.75, 0.0])
    metrics = stats.metrics()
    assert metrics["learner/importance_masked_share"] == 0.5
    assert metrics["learner/importance_effective_share"] == pytest.approx(8.5**2 / (2 * 51.25))
    assert metrics["learner/importance_weight_max"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    "name", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "icepop"]
)
def test_gradient_equals_finite_differences_at_a_stored_old_policy(name: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 4)
    old = -torch.rand(shape, generator=generator, dtype=torch.float64)
    rollout = old + 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    logprobs = old + 0.05 * torch.randn(shape, generator=generator, dtype=torch.float64)

    def value(logprobs_GSR: Tensor) -> Tensor:
        return loss_of(logprobs_GSR, rollout, Loss(correction=name), old)[0]

    assert torch.autograd.gradcheck(value, logprobs.requires_grad_())


def loss_of(
    logprobs: Tensor, rollout: Tensor, settings: Loss, old: Tensor | None = None
) -> tuple[Tensor, LossStats]:
    """All tokens trained, all of the policy, every advantage 1."""
    rows = logprobs.shape[:2]
    return policy_loss(
        logprobs,
        old_logprobs_GSR=logprobs if old is None else old,
        rollout_logprobs_GSR=rollout,
        advantages_GS=torch.ones(rows, dtype=torch.float64),
        mask_GSR=torch.ones_like(logprobs, dtype=torch.bool),
        is_policy_GS=torch.ones(rows, dtype=torch.bool),
        entropy_GSR=torch.zeros_like(logprobs),
        denominator=float(logprobs.shape[-1]),
        settings=settings,
    )


def parse(**loss: object) -> Loss:
    document = {
        "shared": {"run_id": "a", "model": "m"},
        "learner": {"rows": "r", "run_dir": "d", "steps": 1, "loss": loss},
    }
    return config.parse(document, environ={}).learner.loss


@pytest.mark.parametrize(
    ("cap", "instead"),
    [(3.0, r'correction = "token_truncate" with correction_high = 3\.0'), ("none", r"'off'")],
)
def test_the_old_cap_is_refused_with_the_new_knob(cap: object, instead: str) -> None:
    with pytest.raises(ConfigError, match=rf"loss\.importance_cap: found .* is gone.*{instead}"):
        parse(importance_cap=cap)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"correction": "off", "correction_high": 3.0}, r"correction_high: found 3\.0.*no effect"),
        ({"correction_low": 0.1}, r"correction_low: found 0\.1.*no effect.*'token_truncate'"),
        (
            {"correction": "icepop", "correction_low": 3.0},
            r"correction_low: found 3\.0, wanted less than learner\.loss\.correction_high = 2\.0",
        ),
    ],
)
def test_bounds_without_effect_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(**settings)
