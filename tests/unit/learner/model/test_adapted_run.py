"""A run that trains adapters: what a step changes, what travels, what a checkpoint keeps."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from common import config
from common.config import Run
from common.messages import ScoredGroup
from common.video.frames import load_frames
from services.learner.batching.batch import TrainBatch, collate
from services.learner.model.policy import Policy, load_policy
from services.learner.parallel import Ranks
from services.learner.publishing.publisher import Publisher
from services.learner.publishing.snapshot import Snapshot
from services.learner.state.checkpoint import Checkpoints
from services.learner.step import Stepper
from tests.fixtures.learner.groups import clip_ref, limits, scored_group
from tests.fixtures.learner.tiny_models import Architecture
from tests.unit.learner.state.test_checkpoint import state


@pytest.fixture
def model(tiny_model: Callable[[Architecture], Path]) -> Path:
    return tiny_model("qwen3_vl")


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Run:
    document: dict[str, Any] = {
        "shared": {"run_id": "r", "model": str(model), "dtype": "float32"},
        "learner": {"rows": "none", "run_dir": str(tmp_path), "steps": 9, "overlap_publish": "on"},
    }
    document["learner"]["lora"] = {"rank": 4, "alpha": 8}
    document["learner"]["optimizer"] = {"lr": 1e-2}
    document["learner"]["loss"] = {"kl_coef": 0.1, "correction": "off"}
    return config.parse(document, environ={})


@pytest.fixture
def batch(model: Path, clip_paths: tuple[Path, Path]) -> TrainBatch:
    group: ScoredGroup = scored_group(
        model,
        clip_ref(clip_paths[0], architecture="qwen3_vl"),
        video_token_id=load_policy(model).model.config.video_token_id,
        answer_lengths=(3, 5, 2),
    )
    return collate([group], [[1.0, -1.0, 2.0]], limits=limits())


class World:
    """One learner of a run, as far as weights go."""

    def __init__(self, run: Run, ranks: Ranks) -> None:
        start = Path(run.shared.model)
        torch.manual_seed(run.shared.seed)
        self.policy = load_policy(start, adapters=run.learner.lora)
        self.stepper = Stepper.of(
            run, self.policy, start=start, ranks=ranks, load_frames=load_frames
        )
        self.checkpoints = Checkpoints(
            run, start=start, policy=self.policy, optimizer=self.stepper.optimizer, ranks=ranks
        )
        self.publisher = Publisher(
            self.policy,
            shared=run.shared,
            learner=run.learner,
            ranks=ranks,
            replicas=list,
            run_tag="t",
        )

    def published(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What travels once, and what travels with every version."""
        self.publisher._trained.begin()
        self.publisher._trained.capture()
        return contents(self.publisher._frozen), contents(self.publisher._trained)


def contents(snapshot: Snapshot) -> dict[str, Tensor]:
    if snapshot.digest is None:
        snapshot.begin()
        snapshot.capture()
    stream = torch.cat([bucket.clone() for bucket in snapshot.buckets(deltas=False)])
    return dict(snapshot.layout.views(stream))


@pytest.fixture
def world(run: Run, ranks: Ranks) -> Iterator[World]:
    made = World(run, ranks)
    yield made
    made.publisher.close()


def of_checkpoint(folder: Path) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in load_policy(folder).named_weights()}


def test_a_step_changes_what_travels_and_only_adapters_have_optimizer_state(
    world: World, batch: TrainBatch, model: Path
) -> None:
    start = of_checkpoint(model)
    frozen, before = world.published()
    assert frozen.keys() | before.keys() == start.keys()
    assert not frozen.keys() & before.keys()
    for name, tensor in {**frozen, **before}.items():
        assert torch.equal(tensor, start[name]), name
    assert all("language_model.layers" in name and "_proj" in name for name in before)

    figures = [world.stepper.step(batch, number=number) for number in (1, 2)]
    assert figures[0]["learner/skipped_steps"] == 0
    _, after = world.published()
    for name, tensor in after.items():
        assert not torch.equal(tensor, start[name]), name
    trained = {p for p in world.policy.parameters() if p.requires_grad}
    assert set(world.stepper.optimizer.state) == trained
    assert len(trained) == 2 * len(before)


def test_the_kl_reference_is_the_policy_without_adapters(world: World, batch: TrainBatch) -> None:
    assert world.stepper.reference == world.policy.unadapted
    assert world.stepper.step(batch, number=1)["learner/kl_nats"] == 0.0
    assert world.stepper.step(batch, number=2)["learner/kl_nats"] > 0.0


def test_a_resumed_run_publishes_what_the_one_before_it_did(
    world: World, batch: TrainBatch, run: Run, ranks: Ranks
) -> None:
    for number in (1, 2):
        world.stepper.step(batch, number=number)
    before = world.published()
    world.checkpoints.begin(state(2))
    world.checkpoints.finish(wait=True)
    resumed = World(run, ranks)
    assert resumed.checkpoints.restore() == state(2)
    assert_equal(resumed.published(), before)
    for one in (world, resumed):
        one.stepper.step(batch, number=3)
    assert_equal(resumed.published(), world.published())
    resumed.publisher.close()


def assert_equal(
    found: tuple[dict[str, Tensor], ...], wanted: tuple[dict[str, Tensor], ...]
) -> None:
    for some, others in zip(found, wanted, strict=True):
        assert some.keys() == others.keys()
        assert all(torch.equal(some[name], others[name]) for name in others)


def test_an_export_is_merged_and_its_adapter_lies_beside_it(
    world: World, batch: TrainBatch, model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    for number in (1, 2):
        world.stepper.step(batch, number=number)
    world.checkpoints.begin(state(2))
    world.checkpoints.finish(wait=True)
    folder = tmp_path / "checkpoints/step-000002"
    frozen, trained = world.published()
    exported = of_checkpoint(folder / "hf")
    assert exported.keys() == frozen.keys() | trained.keys()
    assert all(torch.equal(exported[name], t) for name, t in {**frozen, **trained}.items())
    assert not any("lora" in key or "base_layer" in key for key in files(folder / "hf"))

    settings = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)
    assert settings["base_model_name_or_path"] == str(model)
    base = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    assert all(torch.equal(exported[name], p) for name, p in merged.named_parameters())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "adapter/adapter_model.safetensors" in manifest["files"]


def files(folder: Path) -> set[str]:
    """Names of all tensors of an export."""
    return {key for path in folder.glob("*.safetensors") for key in load_file(path)}


def test_without_the_table_nothing_has_an_adapter(model: Path) -> None:
    policy: Policy = load_policy(model)
    assert policy.adapters is None
