"""Which parameters are decayed, and that fused steps repeat themselves bit by bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common import config
from services.learner.model.optimizer import adamw
from services.learner.model.policy import load_policy
from tests.fixtures.learner.tiny_models import ARCHITECTURES, Architecture

ModelFolder = Callable[[Architecture], Path]


def gradients(policy: torch.nn.Module, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_norms_biases_and_other_vectors_are_not_decayed(
    architecture: Architecture, tiny_model: ModelFolder
) -> None:
    policy = load_policy(tiny_model(architecture), freeze_vision=False)
    optimizer = adamw(policy, config.Optimizer(weight_decay=0.5))
    decayed, spared = optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)
    names = {id(parameter): name for name, parameter in policy.named_weights()}
    found = {names[id(parameter)] for parameter in spared["params"]}
    wanted = {
        name
        for name in names.values()
        if name.endswith((".bias", "dt_bias", "A_log")) or "norm" in name or "ln_q" in name
    }
    assert found == wanted
    rest = {names[id(parameter)] for parameter in decayed["params"]}
    assert rest == set(names.values()) - wanted
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight"} <= rest


def test_without_a_gradient_only_matrices_shrink(tiny_model: ModelFolder) -> None:
    policy = load_policy(tiny_model("qwen3_vl"))
    before = {name: value.detach().clone() for name, value in policy.named_weights()}
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    adamw(policy, config.Optimizer(lr=0.1, weight_decay=0.5)).step()
    for name, value in policy.named_weights():
        factor = 0.95 if value.requires_grad and value.ndim > 1 else 1.0
        torch.testing.assert_close(value.detach(), before[name] * factor)


def test_fused_steps_are_repeated_bit_by_bit_and_close_to_plain_ones(
    tiny_model: ModelFolder,
) -> None:
    settings = config.Optimizer(lr=1e-3)
    results = []
    for fused in (True, True, False):
        policy = load_policy(tiny_model("qwen3_5"))
        optimizer = adamw(policy, settings)
        for group in optimizer.param_groups:
            assert group["fused"]
            group["fused"] = fused
        for seed in range(3):
            gradients(policy, seed=seed)
            optimizer.step()
        results.append([parameter.detach() for parameter in policy.parameters()])
    first, again, plain = results
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    for one, other in zip(first, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
