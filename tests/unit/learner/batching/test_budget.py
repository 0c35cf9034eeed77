"""How much a rank forwards at once, and what becomes of a step whose memory runs out."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.config import Run, Shared
from common.errors import ConfigError, MemoryShortError
from common.messages import ScoredGroup
from common.video.frames import load_frames
from services.learner.batching import budget as module
from services.learner.batching.batch import NO_WORK, TrainBatch, collate
from services.learner.batching.budget import CPU_TOKENS, FILE, Budget, step_within
from services.learner.batching.plan import Limits
from services.learner.model.policy import Policy, load_policy
from services.learner.parallel import Ranks, shard_model
from services.learner.step import Stepper
from tests.fixtures.learner.groups import clip_ref, limits, scored_group
from tests.fixtures.learner.tiny_models import Architecture

ModelFolder = Callable[[Architecture], Path]


@pytest.fixture
def model(tiny_model: ModelFolder) -> Path:
    return tiny_model("qwen3_vl")


def run_of(tmp_path: Path, *, dtype: str = "float32", **learner: object) -> Run:
    settings = {"rows": "r", "run_dir": str(tmp_path), "steps": 1, **learner}
    shared = Shared(run_id="r", model="m", dtype=dtype)
    return Run.model_validate({"shared": shared, "learner": settings})


def test_a_cpu_has_a_stated_budget_and_recomputes_nothing(
    tmp_path: Path, model: Path, ranks: Ranks
) -> None:
    made = Budget.of(run_of(tmp_path), start=model, ranks=ranks)
    assert (made.limits.max_tokens, made.recomputed) == (CPU_TOKENS, 0.0)
    asked = run_of(tmp_path, max_tokens_per_rank=500, gradient_checkpointing=2)
    made = Budget.of(asked, start=model, ranks=ranks)
    assert (made.limits.max_tokens, made.recomputed) == (500, 0.5)


def test_a_card_gives_what_the_formula_leaves(
    tmp_path: Path, model: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for gigabytes in (12, 96):
        monkeypatch.setattr(module, "_smallest_card", lambda _, size=gigabytes: size * 1e9)
        found.append(Budget.of(run_of(tmp_path), start=model, ranks=ranks).limits.max_tokens)
    assert found[1] > 8 * found[0]
    monkeypatch.setattr(module, "_smallest_card", lambda _: 3e9)
    with pytest.raises(ConfigError, match=r"found room for 0 tokens at once on a card of 3 GB"):
        Budget.of(run_of(tmp_path), start=model, ranks=ranks)


@pytest.fixture
def groups(model: Path, clip_paths: tuple[Path, Path]) -> list[ScoredGroup]:
    return [
        scored_group(
            model,
            clip_ref(clip_paths[i], architecture="qwen3_vl"),
            video_token_id=load_policy(model).model.config.video_token_id,
            answer_lengths=(6, 3, 5),
            seed=i,
        )
        for i in range(2)
    ]


def stepper_of(run: Run, model: Path, ranks: Ranks) -> Stepper:
    policy = shard_model(
        load_policy(model), ranks=ranks, compute_dtype=getattr(torch, run.shared.dtype)
    )
    made = Stepper.of(run, policy, start=model, ranks=ranks, load_frames=load_frames)
    # AdamW's first step is lr x sign: it would tell noise around 0 apart, and nothing else.
    trained = [p for group in made.optimizer.param_groups for p in group["params"]]
    return replace(made, optimizer=torch.optim.SGD(trained))


class _RunsOut(torch.autograd.Function):
    """Memory runs out in backward."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, _: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("planted in backward")


def plant(policy: Policy, where: str, *, times: int) -> list[int]:
    """The middle of the model fails so often; returns the tokens of each try."""
    seen: list[int] = []

    def fail(_: object, args: Sequence[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        seen.append(output.shape[1])
        if len(seen) > times:
            return output
        if where == "forward":
            raise torch.OutOfMemoryError("planted in forward")
        return _RunsOut.apply(output)

    policy.decoder_layers[-1].mlp.register_forward_hook(fail)
    return seen


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_that_runs_out_of_memory_is_repeated_with_half_and_learns_the_same(
    tmp_path: Path, model: Path, ranks: Ranks, groups: list[ScoredGroup], where: str, dtype: str
) -> None:
    run = run_of(tmp_path, dtype=dtype, optimizer={"lr": 0.01})
    weights, figures = [], []
    for fails in (0, 1):
        stepper = stepper_of(run, model, ranks)
        seen = plant(stepper.policy, where, times=fails)
        made, budget = step_within(
            Budget(limits(), 0.0, configured=2**20),
            run_dir=tmp_path,
            ranks=ranks,
            collate=lambda by: collate(groups, [[1.0, -1.0, 2.0]] * 2, limits=by),
            step=lambda batch, stepper=stepper: stepper.step(batch, number=1),
            forget=stepper.forget,
        )
        figures.append(made)
        weights.append([p.detach().float().clone() for p in stepper.policy.parameters()])
    assert [one["batch/memory_retries"] for one in figures] == [0.0, 1.0]
    assert [one["batch/micro_batches"] for one in figures] == [1.0, 2.0]
    assert max(seen[1:]) <= budget.limits.max_tokens <= seen[0] // 2 + 1
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    for once, again in zip(*weights, strict=True):
        once, again = (getattr(one, "to_local", lambda one=one: one)() for one in (once, again))
        assert torch.allclose(once, again, atol=tolerance)
    assert figures[1]["learner/grad_norm"] == pytest.approx(
        figures[0]["learner/grad_norm"], rel=1e-4 if dtype == "float32" else 5e-2
    )
    assert json.loads((tmp_path / FILE).read_text()) == {
        "configured": 2**20,
        "wanted": budget.limits.max_tokens,
    }


def failing(_: TrainBatch) -> dict[str, float]:
    raise torch.OutOfMemoryError("planted")


def step_that_fails(budget: Budget, groups: list[ScoredGroup], ranks: Ranks, run_dir: Path) -> None:
    def collated(by: Limits) -> TrainBatch:
        return collate(groups, [[1.0, -1.0, 2.0]] * len(groups), limits=by)

    step_within(
        budget,
        run_dir=run_dir,
        ranks=ranks,
        collate=collated,
        step=failing,
        forget=lambda: None,
    )


def test_half_that_is_too_much_ends_the_run(
    tmp_path: Path, ranks: Ranks, groups: list[ScoredGroup]
) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="planted"):
        step_that_fails(Budget(limits(), 0.0, configured=2**20), groups, ranks, tmp_path)


def test_of_several_ranks_one_ends_the_run_and_the_next_start_goes_on_with_half(
    tmp_path: Path, model: Path, ranks: Ranks, groups: list[ScoredGroup]
) -> None:
    run = run_of(tmp_path)
    many = Ranks(rank=3, world_size=4, device=ranks.device, mesh=ranks.mesh)
    before = Budget.of(run, start=model, ranks=ranks)
    with pytest.raises(MemoryShortError, match=r"rank 3 of 4.*\(--resume\)"):
        step_that_fails(before, groups, many, tmp_path)
    after = Budget.of(run, start=model, ranks=ranks)
    assert after.limits.max_tokens < before.limits.max_tokens == after.configured
    other = run_of(tmp_path, max_tokens_per_rank=70_000)
    assert Budget.of(other, start=model, ranks=ranks).limits.max_tokens == 70_000
    for damaged in ("", "{", "[]", '{"configured": 1}', '{"configured": 2, "wanted": []}'):
        (tmp_path / FILE).write_text(damaged)
        again = Budget.of(run, start=model, ranks=ranks)
        assert again.limits.max_tokens == before.limits.max_tokens


def test_what_cannot_be_split_says_so(
    tmp_path: Path, ranks: Ranks, groups: list[ScoredGroup]
) -> None:
    lone = groups[0].model_copy(
        update={"samples": groups[0].samples[:1], "verdicts": groups[0].verdicts[:1]}
    )
    budget = Budget(limits(), 0.0, configured=2**20)
    with pytest.raises(MemoryShortError, match="wanted fewer: shorter clips"):
        step_within(
            budget,
            run_dir=tmp_path,
            ranks=ranks,
            collate=lambda by: collate([lone], [[1.0]], limits=by),
            step=failing,
            forget=lambda: None,
        )
    assert not (tmp_path / FILE).exists()


def test_between_a_steps_updates_it_ends_the_run_instead_of_making_one_twice(
    tmp_path: Path, model: Path, ranks: Ranks, groups: list[ScoredGroup]
) -> None:
    stepper = stepper_of(run_of(tmp_path, updates_per_batch=2), model, ranks)
    calls: list[int] = []

    def fail(_: object, args: Sequence[torch.Tensor], output: torch.Tensor) -> None:
        calls.append(output.shape[1])
        if len(calls) == 2:
            raise torch.OutOfMemoryError("planted in the second update")

    stepper.policy.decoder_layers[-1].mlp.register_forward_hook(fail)
    with pytest.raises(MemoryShortError, match=r"learner\.updates_per_batch.*\(--resume\)"):
        step_within(
            Budget(limits(), 0.0, configured=2**20),
            run_dir=tmp_path,
            ranks=ranks,
            collate=lambda by: collate(groups, [[1.0, -1.0, 2.0]] * 2, limits=by),
            step=lambda batch: stepper.step(batch, number=1),
            forget=stepper.forget,
        )
    assert len(calls) == 2
    assert json.loads((tmp_path / FILE).read_text())["wanted"] < calls[0]


def test_a_step_without_work_has_no_share_of_useful_time(tmp_path: Path, ranks: Ranks) -> None:
    figures, _ = step_within(
        Budget(limits(), 0.0, configured=2**20),
        run_dir=tmp_path,
        ranks=ranks,
        collate=lambda _: NO_WORK,
        step=lambda _: {},
        forget=lambda: None,
    )
    assert figures == {
        "batch/micro_batches": 0.0,
        "batch/max_tokens_per_rank": 2.0**20,
        "batch/memory_retries": 0.0,
    }
