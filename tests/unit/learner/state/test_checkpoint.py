"""Checkpoints on the disk, and what an export takes over from the one that a run began with."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common import config
from common.errors import RunLostError
from services.learner.model.policy import load_policy
from services.learner.parallel import Ranks
from services.learner.state.checkpoint import Checkpoints, carry_over, refuse_missing_shards
from tests.fixtures.learner.checkpoint_rank import run_state as state
from tests.fixtures.learner.tiny_models import Architecture


def test_settings_are_carried_over_and_the_index_of_other_weights_is_not(tmp_path: Path) -> None:
    start, export = tmp_path / "start", tmp_path / "export"
    for folder in (start, export):
        folder.mkdir()
    names = ("config.json", "tokenizer.json", "merges.txt", "chat_template.jinja")
    for name in (*names, "model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        (start / name).write_text("start")
    (export / "config.json").write_text("export")
    carry_over(start, export)
    assert {path.name for path in export.iterdir()} == set(names)
    assert (export / "config.json").read_text() == "export"


@pytest.fixture
def checkpoints(
    ranks: Ranks, tiny_model: Callable[[Architecture], Path], tmp_path: Path
) -> Checkpoints:
    start = tiny_model("qwen3_vl")
    document = {
        "shared": {"run_id": "r", "model": str(start)},
        "learner": {"rows": "none", "run_dir": str(tmp_path), "steps": 1},
    }
    policy = load_policy(start)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    run = config.parse(document, environ={})
    return Checkpoints(run, start=start, policy=policy, optimizer=optimizer, ranks=ranks)


def test_every_file_and_folder_is_on_the_disk_before_the_rename_and_that_before_it_returns(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(descriptor: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def recorded_rename(path: Path, target: Path) -> Path:
        if path.suffix == ".partial":
            events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    checkpoints.begin(state(7))
    checkpoints.finish(wait=True)
    final, partial = (tmp_path / f"checkpoints/step-000007{end}" for end in ("", ".partial"))
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    wanted = {str(partial / path.relative_to(final)) for path in (final, *final.rglob("*"))}
    assert len(wanted) > 10
    assert wanted <= set(before)
    assert after == [str(tmp_path / "checkpoints")]


def test_a_run_that_was_lost_while_it_wrote_is_not_renamed(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    asked = []

    def confirm() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise RunLostError("taken over")

    checkpoints.begin(state(7), confirm=confirm)
    with pytest.raises(RunLostError, match="taken over"):
        checkpoints.finish(wait=True)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_an_export_names_the_dtype_of_its_tensors(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Masters are float32 whatever is exported."""
    shared = checkpoints._run.shared.model_copy(update={"dtype": "bfloat16"})
    checkpoints._run = checkpoints._run.model_copy(update={"shared": shared})
    checkpoints.begin(state(7))
    checkpoints.finish(wait=True)
    export = tmp_path / "checkpoints/step-000007/hf"
    settings = json.loads((export / "config.json").read_bytes())
    parts = (settings, settings["text_config"], settings["vision_config"])
    assert [part["dtype"] for part in parts] == ["bfloat16"] * 3
    assert {tensor.dtype for tensor in load_file(export / "model.safetensors").values()} == {
        torch.bfloat16
    }


def test_a_checkpoint_before_the_first_update_counts_none(checkpoints: Checkpoints) -> None:
    optimizer = checkpoints._optimizer
    checkpoints.begin(state(0))
    checkpoints.finish(wait=True)
    assert {float(found["step"]) for found in optimizer.state.values()} == {0.0}
    for found in optimizer.state.values():
        found["step"].fill_(9)
    assert checkpoints.restore() == state(0)
    assert {float(found["step"]) for found in optimizer.state.values()} == {0.0}


def test_a_checkpoint_without_the_shards_of_another_rank_is_none(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    checkpoints.begin(state(7))
    checkpoints.finish(wait=True)
    shards = tmp_path / "checkpoints/step-000007/shards"
    refuse_missing_shards(shards)
    (shard,) = shards.glob("*.distcp")
    shard.unlink()
    with pytest.raises(OSError, match=f"{shard.name} of another rank is not there"):
        refuse_missing_shards(shards)


def test_what_a_crash_left_half_written_is_removed(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    checkpoints.begin(state(7))
    checkpoints.finish(wait=True)
    (tmp_path / "checkpoints/step-000009.partial/shards").mkdir(parents=True)
    checkpoints.tidy()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000007"]
    assert checkpoints.restore() == state(7)
