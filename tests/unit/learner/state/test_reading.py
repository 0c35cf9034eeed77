"""Checkpoints that are damaged: what is taken instead, and what is said."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from common import config
from common.errors import CheckpointError, ConfigError
from services.learner.model.policy import load_policy
from services.learner.parallel import Ranks
from services.learner.state import manifest
from services.learner.state.checkpoint import Checkpoints, refuse_existing
from services.learner.state.manifest import write_manifest
from services.learner.state.reading import newest_whole
from tests.fixtures.learner.checkpoint_rank import run_state
from tests.fixtures.learner.tiny_models import Architecture
from tests.fixtures.servers.places import ReadOnly

Checkpoint = Callable[[int], Path]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Makes a small whole one."""

    def made(step: int) -> Path:
        folder = tmp_path / f"step-{step:06d}"
        (folder / "shards").mkdir(parents=True)
        (folder / "run_state.json").write_text("{}")
        (folder / "shards" / ".metadata").write_bytes(b"m" * 99)
        write_manifest(folder)
        return folder

    return made


def empty(path: Path) -> None:
    path.write_bytes(b"")


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


@pytest.mark.parametrize("damage", [empty, torn, garbage, Path.unlink])
@pytest.mark.parametrize("name", ["run_state.json", "manifest.json", "shards/.metadata"])
def test_the_one_before_a_damaged_one_is_taken_and_that_is_said(
    name: str,
    damage: Callable[[Path], None],
    checkpoint: Checkpoint,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole, newest = checkpoint(1), checkpoint(2)
    damage(newest / name)
    assert newest_whole(tmp_path) == whole
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert said.__dict__["path"] == str(newest)
    assert said.__dict__["fault"].startswith(f"{name}: ")
    assert (tmp_path / "step-000002.damaged" / "shards").is_dir()


def test_without_a_whole_one_a_run_does_not_begin_anew_however_often_it_is_started(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    checkpoint(3).rename(tmp_path / "checkpoints" / "step-000003")
    folder = tmp_path / "checkpoints"
    empty(folder / "step-000003" / "run_state.json")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"3\.damaged: run_state\.json: found 0"):
            newest_whole(folder)
    with pytest.raises(ConfigError, match=r"found step-000003\.damaged"):
        refuse_existing(tmp_path)
    assert newest_whole(tmp_path / "none") is None


def test_what_cannot_be_read_is_not_taken_for_damaged(read_only: ReadOnly) -> None:
    folder = read_only.beside / "step-000001"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "manifest.json").chmod(0)
    with read_only.user(), pytest.raises(ConfigError, match=r"manifest\.json: Permission denied"):
        newest_whole(read_only.beside)
    assert folder.is_dir()


@pytest.fixture(scope="module")
def written(
    tiny_model: Callable[[Architecture], Path],
    tmp_path_factory: pytest.TempPathFactory,
    ranks: Ranks,
) -> Iterator[tuple[Checkpoints, Path]]:
    """Two real checkpoints of one model."""
    run_dir, start = tmp_path_factory.mktemp("run"), tiny_model("qwen3_vl")
    document = {
        "shared": {"run_id": "r", "model": str(start)},
        "learner": {"rows": "none", "run_dir": str(run_dir), "steps": 1},
    }
    policy = load_policy(start)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    checkpoints = Checkpoints(
        config.parse(document, environ={}),
        start=start,
        policy=policy,
        optimizer=torch.optim.AdamW(trained),
        ranks=ranks,
    )
    for step in (1, 2):
        checkpoints.begin(run_state(step))
        checkpoints.finish(wait=True)
    yield checkpoints, run_dir / "checkpoints"
    checkpoints.close()


def test_a_shard_that_cannot_be_loaded_is_named_with_the_way_back(
    written: tuple[Checkpoints, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its size, and counts as too large for a digest: torch finds it."""
    checkpoints, folder = written
    newest = folder / "step-000002"
    (shard,) = (newest / "shards").glob("*.distcp")
    content = shard.read_bytes()
    shard.write_bytes(os.urandom(len(content)))
    monkeypatch.setattr(manifest, "DIGEST_UP_TO_BYTES", 0)
    write_manifest(newest)
    said = r"step-000002 cannot be loaded: .*\. To go on from step-000001, move it to .*2\.damaged"
    with pytest.raises(CheckpointError, match=said) as failed:
        checkpoints.restore()
    assert "\n" not in str(failed.value)
    shard.write_bytes(content)
    assert checkpoints.restore() == run_state(2)


def test_the_state_of_another_version_is_no_damage(written: tuple[Checkpoints, Path]) -> None:
    checkpoints, folder = written
    path = folder / "step-000002" / "run_state.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"colour": "blue"}))
    write_manifest(path.parent)
    with pytest.raises(ConfigError, match=r"found another version's state \(colour: "):
        checkpoints.restore()
    path.write_text(before)
    write_manifest(path.parent)
    assert checkpoints.restore() is not None
