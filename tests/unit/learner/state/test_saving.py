"""Checkpoints written while training goes on: what they contain, when they count, how they fail."""

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from common import config
from common.errors import CheckpointError, RunLostError
from services.learner.model.policy import Policy, load_policy
from services.learner.parallel import Ranks, start_ranks
from services.learner.state import checkpoint as module
from services.learner.state.checkpoint import Checkpoints, list_checkpoints
from services.learner.state.saving import Saving
from tests.fixtures.learner.checkpoint_rank import run_state
from tests.fixtures.learner.tiny_models import Architecture


class Disk:
    """What shards are written to: waits, or fails, when it is told to."""

    def __init__(self) -> None:
        self._free = threading.Event()
        self._free.set()
        self.failure: Exception | None = None
        self.written: list[str] = []
        self._save = module.save_sharded

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is written inside."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    def save(self, tensors: Any, *, checkpoint_id: Path, **others: Any) -> None:
        assert self._free.wait(30)
        if self.failure is not None:
            raise self.failure
        self._save(tensors, checkpoint_id=checkpoint_id, **others)
        self.written.append(checkpoint_id.parent.name)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(module, "save_sharded", disk.save)
    return disk


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    ranks = start_ranks("cpu", timeout_s=30)
    yield ranks
    ranks.close()


class World:
    """A policy with moments, and where it is saved."""

    def __init__(self, start: Path, folder: Path, ranks: Ranks) -> None:
        document = {
            "shared": {"run_id": "r", "model": str(start)},
            "learner": {"rows": "none", "run_dir": str(folder), "steps": 1},
        }
        self.policy = load_policy(start)
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-2)
        self.checkpoints = Checkpoints(
            config.parse(document, environ={}),
            start=start,
            policy=self.policy,
            optimizer=self.optimizer,
            ranks=ranks,
        )
        self.folder = folder / "checkpoints"

    def step(self) -> None:
        for parameter in self.policy.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        self.optimizer.step()

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def world(
    ranks: Ranks, tiny_model: Callable[[Architecture], Path], tmp_path: Path
) -> Iterator[World]:
    world = World(tiny_model("qwen3_vl"), tmp_path, ranks)
    yield world
    world.checkpoints.close()


def values(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Parameters and moments, copied."""
    found = {}
    for name, parameter in policy.named_parameters():
        found[name] = parameter.detach().clone()
        for moment, value in optimizer.state.get(parameter, {}).items():
            found[f"{name} {moment}"] = value.clone()
    return found


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_steps_that_are_made_while_it_is_written_are_not_in_it(
    world: World, disk: Disk, tiny_model: Callable[[Architecture], Path], tmp_path: Path
) -> None:
    world.step()
    saved = values(world.policy, world.optimizer)
    with disk.held():
        world.checkpoints.begin(run_state(1))
        for _ in range(2):
            world.step()
    world.checkpoints.finish(wait=True)
    trained_on = values(world.policy, world.optimizer)
    changed = [name for name in saved if not torch.equal(saved[name], trained_on[name])]
    assert len(changed) == 4 * len(world.optimizer.state), "parameter, two moments, count"

    again = World(tiny_model("qwen3_vl"), tmp_path, world.checkpoints._ranks)
    assert again.checkpoints.restore() == run_state(1)
    assert_equal(values(again.policy, again.optimizer), saved)
    export = load_file(world.folder / "step-000001/hf/model.safetensors")
    names = dict(world.policy.named_weights())
    assert export.keys() == names.keys()
    assert_equal(export, {name: saved[f"model.{name}"] for name in names})
    again.checkpoints.close()


def test_it_counts_when_it_is_found_written_and_not_before(world: World, disk: Disk) -> None:
    counted: list[list[str]] = []
    with disk.held():
        world.checkpoints.begin(run_state(1), whole=lambda: counted.append(world.names))
        world.checkpoints.finish(wait=False)
        assert (world.names, counted) == (["step-000001.partial"], [])
        assert world.checkpoints.last_write_s is None
    world.checkpoints._write.seconds.result(30)  # type: ignore[union-attr]
    assert (world.names, counted) == (["step-000001.partial"], []), "only on the main thread"
    world.checkpoints.finish(wait=False)
    assert (world.names, counted) == (["step-000001"], [["step-000001"]])
    assert world.checkpoints.last_write_s is not None
    world.checkpoints.finish(wait=False)
    assert len(counted) == 1


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    ],
)
def test_one_that_cannot_be_written_ends_with_one_line_and_the_one_before_stays(
    world: World, disk: Disk, failure: OSError, said: str
) -> None:
    counted: list[int] = []
    world.checkpoints.begin(run_state(1))
    world.checkpoints.finish(wait=True)
    disk.failure = failure
    world.checkpoints.begin(run_state(2), whole=lambda: counted.append(2))
    with pytest.raises(CheckpointError, match=rf"^learner.run_dir: .*{said}.*MB free"):
        world.checkpoints.finish(wait=True)
    assert (world.names, counted) == (["step-000001"], [])
    disk.failure = None
    world.checkpoints.begin(run_state(2))
    world.checkpoints.finish(wait=True)
    assert world.names == ["step-000001", "step-000002"]


def test_an_export_that_cannot_be_written_is_none_either(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(module, "carry_over", refuse)
    world.checkpoints.begin(run_state(1))
    with pytest.raises(CheckpointError, match="Disk quota exceeded"):
        world.checkpoints.finish(wait=True)
    assert world.names == []


class TestBest:
    def test_a_later_version_that_was_validated_meanwhile_takes_no_checkpoint_away(
        self, world: World, disk: Disk, tmp_path: Path
    ) -> None:
        def validated(version: int, miou: float) -> None:
            with (tmp_path / "validation.jsonl").open("a", encoding="utf-8") as file:
                file.write(f'{{"policy_version": {version}, "val/miou": {miou}}}\n')

        for version, miou in enumerate((0.5, 0.1, 0.2), 1):
            validated(version, miou)
            world.checkpoints.begin(run_state(version))
            world.checkpoints.finish(wait=True)
        with disk.held():
            world.checkpoints.begin(run_state(4))
            validated(5, 0.9)  # its own checkpoint is not begun yet
        world.checkpoints.finish(wait=True)
        assert world.names == ["best.json", "step-000001", "step-000003", "step-000004"]
        world.checkpoints.begin(run_state(5))
        world.checkpoints.finish(wait=True)
        assert world.names == ["best.json", "step-000004", "step-000005"]


class TestEndOfAFailedRun:
    def test_what_is_being_written_counts(self, world: World, disk: Disk) -> None:
        counted: list[int] = []
        with disk.held():
            world.checkpoints.begin(run_state(1), whole=lambda: counted.append(1))
            threading.Timer(0.05, disk._free.set).start()
            world.checkpoints.close()
        assert (world.names, counted) == (["step-000001"], [1])

    def test_unless_it_fails_too_which_hides_no_other_error(
        self, world: World, disk: Disk, caplog: pytest.LogCaptureFixture
    ) -> None:
        disk.failure = OSError(errno.ENOSPC, "No space left on device")
        world.checkpoints.begin(run_state(1))
        world.checkpoints.close()
        assert world.names == []
        (record,) = [r for r in caplog.records if r.message == "no checkpoint"]
        assert "No space left on device" in record.__dict__["reason"]

    def test_unless_the_run_is_lost(self, world: World) -> None:
        asked: list[int] = []

        def confirm() -> None:
            asked.append(1)
            if len(asked) == 2:
                raise RunLostError("taken over")

        world.checkpoints.begin(run_state(1), confirm=confirm)
        world.checkpoints.close()
        assert world.names == []


class TestSaving:
    @pytest.fixture
    def desk(self) -> SimpleNamespace:
        """Groups that were trained on, and those that Redis was told to forget."""
        desk = SimpleNamespace(intake=SimpleNamespace(done=()), acknowledged=[])
        desk.state = lambda version, rng: run_state(version).model_copy(update={"rng": rng})
        desk.confirm = lambda: None
        desk.acknowledge = desk.acknowledged.append
        return desk

    def test_what_was_trained_while_it_was_written_is_not_acknowledged(
        self, world: World, disk: Disk, desk: SimpleNamespace
    ) -> None:
        saving = Saving(world.checkpoints, desk=cast("Any", desk), version=None)
        desk.intake.done = ("1-0", "2-0")
        with disk.held():
            saving.save(2)
            desk.intake.done = ("1-0", "2-0", "3-0")
            saving.finish()
            assert desk.acknowledged == []
        saving.finish(wait=True)
        assert desk.acknowledged == [("1-0", "2-0")]

    def test_a_second_one_waits_for_the_first_and_says_so(
        self,
        world: World,
        disk: Disk,
        desk: SimpleNamespace,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO)
        monkeypatch.setattr(module, "SAY_EVERY_S", 0.05)
        saving = Saving(world.checkpoints, desk=cast("Any", desk), version=None)
        with disk.held():
            saving.save(1)
            threading.Timer(0.2, disk._free.set).start()
            saving.save(2)
        assert disk.written[0] == "step-000001.partial"
        assert "step-000001" in world.names, "it counted before the second was begun"
        waits = [r for r in caplog.records if r.message == "waiting for a checkpoint to be written"]
        assert waits
        assert waits[0].__dict__["step"] == 1
        saving.finish(wait=True)
        assert [path.name for path in list_checkpoints(world.folder)][-1] == "step-000002"
        figures = saving.figures()
        assert figures["learner/checkpoint_stall_s"] >= 0.2
        assert saving.figures()["learner/checkpoint_stall_s"] == 0.0

    def test_a_version_is_saved_once(self, world: World, disk: Disk, desk: SimpleNamespace) -> None:
        saving = Saving(world.checkpoints, desk=cast("Any", desk), version=3)
        for version in (3, 4, 4):
            saving.save(version)
        saving.finish(wait=True)
        assert disk.written == ["step-000004.partial"]
