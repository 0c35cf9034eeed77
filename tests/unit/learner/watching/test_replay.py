"""A step of a real learner is dumped; its replay agrees, and names whatever was planted."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.errors import CheckpointError, ConfigError
from services.learner.watching.dump import StepRecord
from services.learner.watching.replay import Quantity, replay
from tests.fixtures.learner.ranks import RunRanks
from tests.fixtures.learner.recorded_learner import LEARNER, RecordedRing
from tests.fixtures.servers.places import no_room
from tests.fixtures.servers.redis_server import RedisServer

ROOT = Path(__file__).resolve().parents[4]
DEADLINE_S = 180.0


@pytest.fixture(scope="module")
def run(
    redis_server: RedisServer, run_ranks: RunRanks, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RecordedRing]:
    """Four steps on two ranks, of which the second and the fourth are dumped."""
    folder = tmp_path_factory.mktemp("replay")
    with RecordedRing(redis_server, run_id="replay", folder=folder) as ring:
        dumps = {"dump_steps.every": 2, "dump_steps.keep": 1}
        run_file = ring.run_file(steps=4, checkpoint_every=3, **dumps)
        with mock.patch.dict(os.environ, TEMPSAMP_REDIS_PASSWORD=redis_server.password):
            run_ranks(2, LEARNER, str(run_file), timeout_s=DEADLINE_S)
        yield ring


@pytest.fixture
def dump(run: RecordedRing, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(run.run_dir / "steps/step-000004", tmp_path / "step-000004"))


def wrong(dump: Path, *, model: Path | None = None) -> list[Quantity]:
    return [quantity for quantity in replay(dump, model=model) if not quantity.agrees]


def spoil(path: Path, key_end: str, *, by: float) -> None:
    """Change one number of a tensor, where the step has one that is not padding."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    key = next(key for key in tensors if key.endswith(key_end))
    flat = tensors[key].flatten()
    flat[int(flat.abs().argmax())] += by
    save_file(tensors, path, metadata=metadata)


def change(path: Path, **facts: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_only_the_newest_are_kept(run: RecordedRing) -> None:
    assert [path.name for path in (run.run_dir / "steps").iterdir()] == ["step-000004"]


def test_an_honest_step_agrees_on_both_ranks(dump: Path) -> None:
    found = list(replay(dump))
    assert [quantity for quantity in found if not quantity.agrees] == []
    names = {quantity.name for quantity in found}
    for rank in (0, 1):
        assert f"rank {rank} call 0 denominator: value" in names
        assert f"rank {rank} call 1 policy_loss: loss" in names
        assert f"rank {rank} call 1 policy_loss: learner/logprob_gap_max_nats" in names
    assert "step: policy_loss" in names


def test_log_probabilities_agree_with_the_checkpoint_of_the_step_before(
    run: RecordedRing, dump: Path
) -> None:
    found = list(replay(dump, model=run.run_dir / "checkpoints/step-000003/hf"))
    (first, *_) = [item for item in found if item.name.endswith("log-probabilities")]
    assert first.recorded > 1
    assert [quantity for quantity in found if not quantity.agrees] == []
    assert max(q.difference for q in found if q.name.endswith("log-probabilities")) < 1e-4


def test_other_weights_show_as_log_probabilities_first(run: RecordedRing, dump: Path) -> None:
    first, *_ = wrong(dump, model=run.model)
    assert first.name == "rank 0 call 1 policy_loss: log-probabilities"


@pytest.mark.parametrize(
    ("key_end", "by", "name"),
    [
        (".result.0", 1e-3, "rank 1 call 1 policy_loss: loss"),
        (".gradient", 1e-4, "rank 1 call 1 policy_loss: gradient by log-probabilities"),
        (".advantages_GS", 0.5, "rank 1 call 1 policy_loss: loss"),
        (".rollout_logprobs_GSR", 1.0, "rank 1 call 1 policy_loss: "),
    ],
)
def test_what_was_planted_is_named_first(dump: Path, key_end: str, by: float, name: str) -> None:
    path = dump / "rank-1.safetensors"
    spoil(path, f"1{key_end}", by=by)
    assert wrong(dump)[0].name.startswith(name)


def test_a_planted_advantage_is_named_with_its_group(dump: Path) -> None:
    facts = json.loads((dump / "step.json").read_text())
    facts["advantages"][2][0] += 0.01
    change(dump / "step.json", **facts)
    group = json.loads((dump / "groups.jsonl").read_text().splitlines()[2])
    assert wrong(dump)[0].name == f"advantages of {group['prompt_id']}"


def test_a_planted_figure_is_named(dump: Path) -> None:
    figures = json.loads((dump / "step.json").read_text())["figures"]
    change(dump / "step.json", figures=figures | {"learner/policy_loss": 1.0})
    assert [quantity.name for quantity in wrong(dump)] == ["step: policy_loss"]


@pytest.mark.chaos
def test_the_command_names_the_first_and_ends_with_1(dump: Path) -> None:
    command = [sys.executable, "-m", "tempsamp", "replay", str(dump)]
    same = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "quantities are the same in float64" in same.stdout
    spoil(dump / "rank-0.safetensors", "1.result.0", by=1e-3)
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1
    assert "quantities that differ is rank 0 call 1 policy_loss: loss: found " in found.stderr
    (dump / "step.json").unlink()
    missing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert missing.returncode == 2
    assert "wanted a step dump" in missing.stderr


@pytest.mark.parametrize("name", ["step.json", "groups.jsonl", "rank-0.safetensors"])
def test_a_dump_that_is_not_whole_is_refused(dump: Path, name: str) -> None:
    whole = (dump / name).read_bytes()
    for content in (b"", b"{", b"[1]", b"{}", b"\0" * 99, whole[: len(whole) // 2]):
        (dump / name).write_bytes(content)
        with pytest.raises(ConfigError, match=rf"{dump}.*found ") as refused:
            list(replay(dump))
        assert "\n" not in str(refused.value)
    (dump / name).unlink()
    with pytest.raises(ConfigError, match=rf"{dump}"):
        list(replay(dump))


def test_a_dump_of_another_version_is_refused(dump: Path) -> None:
    settings = json.loads((dump / "step.json").read_text())["config"]
    change(dump / "step.json", config=settings | {"colour": "blue"})
    with pytest.raises(ConfigError, match=r"a config of another version \(colour: "):
        list(replay(dump))


def test_a_full_disk_names_the_dumps(tmp_path: Path) -> None:
    record = StepRecord(tmp_path / "steps" / "rank-0.safetensors")
    record.noting(torch.neg)(torch.ones(9999))
    with (
        no_room(1000),
        pytest.raises(CheckpointError, match=r"learner\.dump_steps: .*safetensors: "),
    ):
        record.write()
