"""A checkpoint is restored by another number of ranks, and by an optimizer with other groups."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from common import config
from services.learner.model.optimizer import adamw
from services.learner.model.policy import Policy, load_policy
from services.learner.parallel import Ranks
from services.learner.state.checkpoint import Checkpoints
from tests.fixtures.learner.checkpoint_rank import run_state
from tests.fixtures.learner.groups import clip_ref, scored_group
from tests.fixtures.learner.learner_rank import Case, write_cases
from tests.fixtures.learner.ranks import RunRanks
from tests.fixtures.learner.tiny_models import Architecture

ROOT = Path(__file__).parents[4]
DEADLINE_S = 120
ModelFolder = Callable[[Architecture], Path]


def trained_on(run_ranks: RunRanks, folder: Path, mode: str, count: int) -> Path:
    """The weights after the second step."""
    module = "tests.fixtures.learner.checkpoint_rank"
    run_ranks(count, module, str(folder), mode, timeout_s=DEADLINE_S)
    return folder / f"after-{mode}-{count}.safetensors"


@pytest.fixture(scope="module")
def saved(
    run_ranks: RunRanks,
    tiny_model: ModelFolder,
    clip_paths: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folder of a checkpoint of two ranks, three groups for each step."""
    folder, model = tmp_path_factory.mktemp("saved"), tiny_model("qwen3_vl")
    groups = [
        scored_group(
            model,
            clip_ref(clip_paths[i % 2], architecture="qwen3_vl"),
            video_token_id=AutoConfig.from_pretrained(model).video_token_id,
            answer_lengths=(3, 5, 2),
            query="When?" * (1 + i),
            seed=i,
        ).model_dump_json()
        for i in range(3)
    ]
    case = Case(
        "saved", str(model), freeze_vision=True, gradient_checkpointing=False, groups=groups
    )
    write_cases(folder, [case])
    trained_on(run_ranks, folder, "save", 2)
    return folder


@pytest.mark.parametrize(
    ("count", "gap"), [(1, 1e-6), (2, 0.0), pytest.param(4, 1e-6, marks=pytest.mark.chaos)]
)
def test_a_checkpoint_of_two_ranks_goes_on_at_other_numbers(
    count: int, gap: float, saved: Path, run_ranks: RunRanks
) -> None:
    wanted = load_file(saved / "after-save-2.safetensors")
    found = load_file(trained_on(run_ranks, saved, "restore", count))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] - value).abs().max().item() <= gap, name


def test_a_checkpoint_of_one_group_of_parameters_is_restored_into_two(
    tiny_model: ModelFolder, ranks: Ranks, tmp_path: Path
) -> None:
    """Checkpoints from before vectors were left out of weight decay."""
    start = tiny_model("qwen3_vl")
    document = {
        "shared": {"run_id": "r", "model": str(start)},
        "learner": {"rows": "none", "run_dir": str(tmp_path), "steps": 1},
    }
    run = config.parse(document, environ={})

    def checkpoints(
        make: Callable[[Policy], torch.optim.Optimizer],
    ) -> tuple[Checkpoints, torch.optim.Optimizer, Policy]:
        policy = load_policy(start)
        optimizer = make(policy)
        own = Checkpoints(run, start=start, policy=policy, optimizer=optimizer, ranks=ranks)
        return own, optimizer, policy

    def of_one_group(policy: Policy) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-3)

    older, optimizer, policy = checkpoints(of_one_group)
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    older.begin(run_state(1))
    older.finish(wait=True)
    newer, restored, again = checkpoints(lambda policy: adamw(policy, config.Optimizer(lr=1e-3)))
    assert newer.restore() is not None
    for before, after in zip(policy.parameters(), again.parameters(), strict=True):
        assert torch.equal(before, after)
        if before.requires_grad:
            assert torch.equal(optimizer.state[before]["exp_avg"], restored.state[after]["exp_avg"])
            assert restored.state[after]["step"] == 1
    assert [group["weight_decay"] for group in restored.param_groups] == [0.01, 0.0]
    assert [group["fused"] for group in restored.param_groups] == [True, True]
