"""The best checkpoint on held-out rows is kept beside the newest ones, and every rank saves it."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from common import config
from services.learner.model.policy import load_policy
from services.learner.parallel import Ranks
from services.learner.state.best import FILE, Best, best_so_far, is_best, name_best
from services.learner.state.checkpoint import Checkpoints, list_checkpoints
from services.learner.train import Learner
from tests.fixtures.learner.checkpoint_rank import run_state
from tests.fixtures.learner.tiny_models import Architecture


def validated(run_dir: Path, version: int, miou: float) -> None:
    with (run_dir / "validation.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"policy_version": version, "val/miou": miou}) + "\n")


def test_the_first_of_the_highest_is_the_best_and_the_start_does_not_count(tmp_path: Path) -> None:
    assert best_so_far(tmp_path) is None
    validated(tmp_path, 0, 0.9)
    assert best_so_far(tmp_path) is None
    for version, miou in ((2, 0.3), (4, 0.5), (6, 0.5), (8, 0.4)):
        validated(tmp_path, version, miou)
    assert best_so_far(tmp_path) == Best(step=4, value=0.5)
    assert [version for version in (0, 2, 4, 6, 8) if is_best(tmp_path, version)] == [4]


def test_a_checkpoint_that_is_not_there_is_not_named(tmp_path: Path) -> None:
    name_best(tmp_path, Best(step=4, value=0.5))
    assert not (tmp_path / FILE).exists()


def run_of(run_dir: Path, model: Path, **learner: Any) -> config.Run:
    settings = {"rows": "none", "run_dir": str(run_dir), "steps": 100, **learner}
    document = {"shared": {"run_id": "r", "model": str(model)}, "learner": settings}
    return config.parse(document, environ={})


@pytest.mark.parametrize(("keep_best", "kept"), [(True, [2, 4, 5]), (False, [4, 5])])
def test_it_outlives_the_newest_ones(
    keep_best: bool,
    kept: list[int],
    ranks: Ranks,
    tiny_model: Callable[[Architecture], Path],
    tmp_path: Path,
) -> None:
    start = tiny_model("qwen3_vl")
    policy = load_policy(start)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad])
    run = run_of(tmp_path, start, keep_best=keep_best)
    checkpoints = Checkpoints(run, start=start, policy=policy, optimizer=optimizer, ranks=ranks)
    for version, miou in enumerate((0.1, 0.5, 0.4, 0.3, 0.2), 1):
        validated(tmp_path, version, miou)
        checkpoints.begin(run_state(version))
        checkpoints.finish(wait=True)
    folder = tmp_path / "checkpoints"
    assert [int(path.name[5:]) for path in list_checkpoints(folder)] == kept
    assert (folder / FILE).exists() == keep_best
    if keep_best:
        assert Best.model_validate_json((folder / FILE).read_text()) == Best(step=2, value=0.5)
    validated(tmp_path, 6, 0.6)
    checkpoints.begin(run_state(6))
    checkpoints.finish(wait=True)
    assert [int(path.name[5:]) for path in list_checkpoints(folder)] == [5, 6]
    state = checkpoints.restore()
    assert state is not None
    assert state.step == 6


@pytest.mark.parametrize("is_main", [True, False])
def test_every_rank_learns_that_a_version_is_the_best(is_main: bool, tmp_path: Path) -> None:
    """Rank 0 reads it from what it has just written, and says so with the order to go on."""
    orders: list[dict[str, Any]] = [{"do": "wait"}, {"do": "go on", "is_best": True}]
    told: list[dict[str, Any]] = []

    def broadcast(order: dict[str, Any] | None) -> dict[str, Any]:
        told.extend([order] if order else [])
        return order or orders.pop(0)

    def validate(version: int, **_: object) -> None:
        validated(tmp_path, version, {2: 0.5, 4: 0.4}[version])

    parts = {
        "ranks": SimpleNamespace(broadcast_json=broadcast),
        "stop": SimpleNamespace(agree=lambda ranks: False),
        "saving": SimpleNamespace(finish=lambda: None),
        "publisher": SimpleNamespace(settle=lambda: None, member_urls=list),
        "desk": SimpleNamespace(validate=validate) if is_main else None,
        "run": run_of(tmp_path, tmp_path, validation={"every": 2}),
    }
    names = (
        "policy",
        "stepper",
        "budget",
        "share",
        "first_version",
    )
    learner = Learner(**cast("Any", dict.fromkeys(names) | parts), validates=True)
    learner.validate(2)
    assert learner.is_best
    assert told == ([{"do": "go on", "is_best": True}] if is_main else [])
    learner.validate(3)
    assert not learner.is_best, "it was not validated"
    if is_main:
        learner.validate(4)
        assert not learner.is_best
        assert told[-1] == {"do": "go on", "is_best": False}
