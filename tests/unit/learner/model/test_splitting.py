"""However a step is cut, the gradients are those of whole groups: parts, unequal prompts, ranks."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from common.messages import ScoredGroup
from services.learner.batching.batch import collate
from services.learner.batching.plan import Limits
from services.learner.model.policy import Policy, load_policy
from tests.fixtures.learner.groups import clip_ref, limits, scored_group
from tests.fixtures.learner.tiny_models import ARCHITECTURES, Architecture

ModelFolder = Callable[[Architecture], Path]
LENGTHS = ((9, 2, 8, 1), (3, 12), (5, 5, 6))


@pytest.fixture(params=ARCHITECTURES)
def step(
    request: pytest.FixtureRequest, tiny_model: ModelFolder, clip_paths: tuple[Path, Path]
) -> tuple[Policy, list[ScoredGroup]]:
    """Groups of unequal prompts and answers."""
    architecture: Architecture = request.param
    model = tiny_model(architecture)
    token_id = AutoConfig.from_pretrained(model).video_token_id
    groups = [
        scored_group(
            model,
            clip_ref(clip_paths[i % 2], architecture=architecture),
            video_token_id=token_id,
            answer_lengths=lengths,
            query="When?" * (1 + i % 2),
            seed=i,
        )
        for i, lengths in enumerate(LENGTHS)
    ]
    return load_policy(model), groups


def gradient(
    policy: Policy, groups: Sequence[ScoredGroup], by: Limits, *, ranks: int = 1
) -> tuple[int, Tensor]:
    """Micro-batches with work, and all gradients in a row, summed over them."""
    advantages = [[(-1.0) ** s * (s + 1) for s in range(len(g.samples))] for g in groups]
    policy.zero_grad()
    count = 0
    for rank in range(ranks):
        batch = collate(groups, advantages, limits=by, rank=rank, world_size=ranks)
        for micro_batch in batch.micro_batches:
            scores = policy(micro_batch).logprobs_GSR
            (scores * micro_batch.advantages_GS[..., None]).sum().backward()
            count += bool(micro_batch.clips)
    trained = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
    return count, torch.cat(trained)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_parts_of_groups_give_the_gradient_of_whole_ones(
    step: tuple[Policy, list[ScoredGroup]],
) -> None:
    policy, groups = step
    together, wanted = gradient(policy, groups, limits())
    longest = max(len(group.prompt_token_ids) for group in groups)
    alone, found = gradient(policy, groups, limits(longest + 12))
    assert (together, alone > len(groups)) == (1, True)
    assert relative(found, wanted) < 1e-6
    spread, found = gradient(policy, groups, limits(longest + 30, splits=True), ranks=3)
    assert spread >= 3
    assert relative(found, wanted) < 1e-6


def test_one_answer_at_a_time_gives_the_gradient_of_the_group(
    step: tuple[Policy, list[ScoredGroup]],
) -> None:
    policy, groups = step
    _, wanted = gradient(policy, groups[:1], limits())
    only = [0.0] * 4
    total = torch.zeros_like(wanted)
    for s in range(4):
        advantages = [[(-1.0) ** s * (s + 1) if s == i else None for i in range(len(only))]]
        (micro_batch,) = collate(groups[:1], advantages, limits=limits()).micro_batches
        policy.zero_grad()
        scores = policy(micro_batch).logprobs_GSR
        (scores * micro_batch.advantages_GS[..., None]).sum().backward()
        total += torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    # Four backward passes are summed here, in another order than one sums them: in float32 that
    # alone went beyond 1e-6 once, in gated delta nets.
    assert relative(total, wanted) < 5e-6
