"""`learner.preset = "seed"` gives the public code's numbers (SPEC A7, A8) on recorded groups."""

import math
from typing import Any

import pytest
import torch

from common import config
from common.config import Run
from common.errors import ConfigError
from common.messages import Sample, Scored, ScoredGroup, Timings
from services.learner.batching.batch import MicroBatch, collate
from services.learner.objective.advantage import step_advantages
from services.learner.objective.loss import LossStats, denominator, policy_loss
from tests.fixtures.learner.groups import injected_sample, limits, made_up_clip, policy_sample

EOS = 2
CUT = "length"
Answers = list[tuple[list[int], str]]
# Rewards of the reference table (IoU .6, .7, .5 and the truth, shaped), then a group that ties.
RECORDED: list[tuple[list[float], Answers]] = [
    (
        [0.6711487519141585, 0.7387929754399108, 0.5963903232976884, 0.8018232155679396],
        [([5, 6, EOS], "stop"), ([7, EOS], "stop"), ([5, 6, 7, 8], CUT), ([9, 9, EOS], "stop")],
    ),
    (
        [0.8018232155679396] * 4,
        [([5], CUT), ([6, EOS], "stop"), ([EOS], "stop"), ([9, 9, EOS], "stop")],
    ),
]
ADVANTAGES = (-0.34958094909885556, 0.4159445406076403, -1.1956174573680933, 1.1292538658593048)
LENGTHS = (3, 2, 4, 3)
NUM_TOKENS = 12 + 7
LARGER = 3 + 12 - 4
"""Tokens forwarded of the first group: its prompt, and answers but for their last tokens."""


def run_of(**tables: dict[str, Any]) -> Run:
    learner = {"rows": "r", "run_dir": "d", "steps": 125, "preset": "seed"}
    shared = {"run_id": "a", "model": "m"}
    return config.parse(
        {
            "shared": shared | tables.get("shared", {}),
            "learner": learner | tables.get("learner", {}),
        },
        environ={},
    )


def recorded_groups() -> list[ScoredGroup]:
    return [group_of(str(i), *recorded) for i, recorded in enumerate(RECORDED)]


def group_of(name: str, rewards: list[float], answers: Answers) -> ScoredGroup:
    samples: list[Sample] = [
        policy_sample(ids, logprob=-3.0).model_copy(update={"finish_reason": reason})
        for ids, reason in answers[:-1]
    ]
    samples.append(injected_sample(answers[-1][0]))
    return ScoredGroup(
        prompt_id=name,
        row_id=name,
        epoch=0,
        mode="answer",
        clip=made_up_clip(name),
        prompt_token_ids=(1, 2, 3),
        num_visual_tokens=1,
        grid_thw=(1, 2, 2),
        samples=tuple(samples),
        verdicts=tuple(Scored(reward=reward, parts={}) for reward in rewards),
        replica="r",
        timings=Timings(decode_s=0, generate_s=0, score_s=0),
    )


def micro_batches(run: Run, *, together: bool) -> tuple[tuple[MicroBatch, ...], float]:
    """Of the recorded groups, and the step's denominator."""
    groups = recorded_groups()
    step = step_advantages(groups, strategy=run.shared.strategy, settings=run.learner.advantage)
    batch = collate(groups, step.by_group, limits=limits() if together else limits(LARGER))
    return batch.micro_batches, denominator(
        batch.num_tokens, batch.num_sequences, settings=run.learner.loss
    )


def loss_of(
    run: Run, batch: MicroBatch, logprobs: torch.Tensor, share: float, old: torch.Tensor
) -> tuple[torch.Tensor, LossStats]:
    return policy_loss(
        logprobs,
        old_logprobs_GSR=old,
        rollout_logprobs_GSR=batch.rollout_logprobs_GSR.double(),
        advantages_GS=batch.advantages_GS.double(),
        mask_GSR=batch.answer_mask_GSR,
        is_policy_GS=batch.is_policy_GS,
        entropy_GSR=torch.zeros_like(logprobs),
        denominator=share,
        settings=run.learner.loss,
    )


def test_the_preset_is_what_was_published() -> None:
    run = run_of()
    assert (run.shared.strategy, run.shared.group_size, run.shared.seed) == ("shaping", 8, 42)
    sampling = run.shared.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 0.85, 256)
    loss, learner = run.learner.loss, run.learner
    assert (loss.clip_low, loss.clip_high, loss.dual_clip) == (0.2, 0.28, 3.0)
    assert (loss.level, loss.normalize, loss.kl_coef, loss.correction) == (
        *("token", "tokens"),
        *(0.0, "off"),
    )
    assert (learner.groups_per_step, learner.max_staleness) == (16, 0)
    assert learner.optimizer.model_dump() == {
        "lr": 1e-6,
        "betas": (0.9, 0.999),
        "weight_decay": 0.01,
        "warmup_steps": 6,
        "max_grad_norm": 1.0,
    }


def test_what_a_run_file_states_stands_above_the_preset() -> None:
    run = run_of(
        shared={"sampling": {"max_tokens": 2048}, "strategy": "none"},
        learner={"steps": 40, "loss": {"clip_high": 0.2}, "optimizer": {"lr": 1e-5}},
    )
    assert (run.shared.strategy, run.shared.sampling.max_tokens) == ("none", 2048)
    assert run.shared.sampling.top_p == 0.85
    assert (run.learner.loss.clip_high, run.learner.loss.correction) == (0.2, "off")
    assert (run.learner.optimizer.lr, run.learner.optimizer.warmup_steps) == (1e-5, 2)
    with pytest.raises(ConfigError, match=r"top_p: found 0\.85, wanted 1\.0 while"):
        run_of(learner={"loss": {"correction": "token_mask"}})


def test_an_unknown_preset_is_refused_and_a_resolved_config_reads_back() -> None:
    with pytest.raises(ConfigError, match=r"learner\.preset: found 'sed'"):
        run_of(learner={"preset": "sed"})
    resolved = run_of().model_dump(mode="json", exclude_none=True)
    assert config.parse(resolved, environ={}) == run_of()


def test_masks_hold_each_answer_up_to_its_first_eos_and_cut_ones_whole() -> None:
    (batch,), share = micro_batches(run_of(), together=True)
    assert share == NUM_TOKENS
    assert batch.answer_mask_GSR.sum(-1).tolist() == [list(LENGTHS), [1, 2, 1, 3]]
    last = [
        [row[mask][-1].item() for row, mask in zip(rows, masks, strict=True)]
        for rows, masks in zip(batch.answer_ids_GSR, batch.answer_mask_GSR, strict=True)
    ]
    assert last == [[EOS, EOS, 8, EOS], [5, EOS, EOS, EOS]]


@pytest.mark.parametrize("together", [False, True])
def test_loss_and_gradient_are_the_token_mean_of_advantages_at_ratio_1(*, together: bool) -> None:
    """However far the engine's log-probabilities (-3) are from the learner's: no importance
    weight. The group that ties adds nothing but its tokens in the denominator.

    -(3 x -.349581 + 2 x .415945 + 4 x -1.195617 + 3 x 1.129254) / 19 = .084819
    """
    total = 0.0
    gradients = []
    batches, share = micro_batches(run_of(), together=together)
    for batch in batches:
        logprobs = torch.full(batch.answer_mask_GSR.shape, -1.0, dtype=torch.float64)
        logprobs.requires_grad_()
        loss, _ = loss_of(run_of(), batch, logprobs, share, logprobs)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
        assert logprobs.grad is not None
        gradients += [
            [row[mask].tolist() for row, mask in zip(rows, masks, strict=True)]
            for rows, masks in zip(logprobs.grad, batch.answer_mask_GSR, strict=True)
        ]
    assert total == pytest.approx(0.0848190, abs=1e-6)
    wanted = [
        pytest.approx([-advantage / NUM_TOKENS] * length, abs=1e-7)
        for advantage, length in zip(ADVANTAGES, LENGTHS, strict=True)
    ]
    tied = [pytest.approx([0.0] * length, abs=1e-9) for length in (1, 2, 1, 3)]
    assert gradients == [wanted, tied]


def test_a_stored_old_policy_is_clipped_at_8_and_128_and_3() -> None:
    """What its loss does once ratios are not 1, in the first group; the truth keeps ratio 1.

    Ratios 1.5, .5, 5 and 1.5: min(1.5, 1.28) and max of .8 and .5 for advantages above and below 0,
    3 at most below 0: 3 x .349581 x 1.5 - 2 x .415945 x .5 + 4 x 1.195617 x 3 - 3 x 1.129254.
    """
    (batch, *_), share = micro_batches(run_of(), together=False)
    logprobs = torch.full(batch.answer_mask_GSR.shape, -1.0, dtype=torch.float64)
    ratios = torch.tensor([1.5, 0.5, 5.0, 1.5], dtype=torch.float64)
    old = logprobs - ratios.log()[None, :, None]
    loss, stats = loss_of(run_of(), batch, logprobs, share, old)
    tokens = (
        *(3 * -ADVANTAGES[0] * 1.5, -2 * ADVANTAGES[1] * 0.5),
        *(4 * -ADVANTAGES[2] * 3.0, -3 * ADVANTAGES[3] * 1.0),
    )
    assert loss.item() == pytest.approx(math.fsum(tokens) / NUM_TOKENS, abs=1e-6)
    assert stats.metrics()["learner/clip_fraction"] == pytest.approx(4 / 9)
