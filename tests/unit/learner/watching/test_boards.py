"""TensorBoard's files hold the lines; W&B is asked as it should be; neither can end a run."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from common.config import Run
from common.errors import ConfigError
from services.learner.watching.boards import Boards, refuse_missing


def run(folder: Path, **tracking: object) -> Run:
    learner = {"rows": "rows.jsonl", "run_dir": folder, "steps": 1, "tracking": tracking}
    return Run.model_validate({"shared": {"run_id": "a", "model": "m"}, "learner": learner})


def events(folder: Path) -> list[Event]:
    """Records: length, its checksum, the event, its checksum."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            length = int.from_bytes(raw[at : at + 8], "little")
            found.append(Event.FromString(raw[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    return {
        (value.tag, event.step): value.simple_value
        for event in events(folder)
        for value in event.summary.value
    }


def test_tensorboard_is_on_by_default_and_holds_the_lines(tmp_path: Path) -> None:
    boards = Boards.of(run(tmp_path), tag="t", resumed_at=None)
    boards.show({"step": 1, "policy_version": 1, "reward/iou": 0.25}, step=1)
    boards.show({"val/miou": 0.5}, step=1)
    boards.close()
    assert scalars(tmp_path) == {("reward/iou", 1): 0.25, ("val/miou", 1): 0.5}


def test_a_resumed_run_says_from_where_on_events_are_void(tmp_path: Path) -> None:
    first = Boards.of(run(tmp_path), tag="t", resumed_at=None)
    first.show({"reward/iou": 0.1}, step=4)
    first.close()
    again = Boards.of(run(tmp_path), tag="t", resumed_at=3)
    again.show({"reward/iou": 0.2}, step=4)
    again.close()
    starts = [e.step for e in events(tmp_path) if e.session_log.status == 1]
    assert starts == [4]


def test_nothing_is_written_where_it_is_off(tmp_path: Path) -> None:
    boards = Boards.of(run(tmp_path, tensorboard=False), tag="t", resumed_at=None)
    boards.show({"reward/iou": 0.25}, step=1)
    boards.close()
    assert list(tmp_path.iterdir()) == []


class FakeWandb(types.ModuleType):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.asked: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, float], int]] = []
        self.is_finished = self.is_down = False
        self.__spec__ = types.SimpleNamespace(name="wandb")  # type: ignore[assignment]

    def init(self, **asked: Any) -> "FakeWandb":
        self.asked = asked
        return self

    def log(self, figures: dict[str, float], *, step: int) -> None:
        if self.is_down:
            raise ConnectionError("away")
        self.logged.append((figures, step))

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_one_run_that_a_resume_goes_on_with(tmp_path: Path, wandb: FakeWandb) -> None:
    settings = run(tmp_path, tensorboard=False, wandb_project="p", wandb_mode="offline")
    refuse_missing(settings)
    boards = Boards.of(settings, tag="3f", resumed_at=None)
    boards.show({"step": 2, "reward/iou": 0.25}, step=2)
    boards.close()
    asked = wandb.asked
    assert (asked["project"], asked["mode"], asked["id"], asked["resume"]) == (
        *("p", "offline", "a-3f", "allow"),
    )
    assert asked["config"]["learner"]["steps"] == 1
    assert wandb.logged == [({"reward/iou": 0.25}, 2)]
    assert wandb.is_finished


def test_a_board_that_fails_is_said_once_and_left_alone(
    tmp_path: Path, wandb: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    boards = Boards.of(run(tmp_path, wandb_project="p"), tag="3f", resumed_at=None)
    wandb.is_down = True
    for step in (1, 2):
        boards.show({"reward/iou": 0.5}, step=step)
    boards.close()
    assert [record.message for record in caplog.records] == ["a board is left alone"]
    assert len(scalars(tmp_path)) == 2, "the other one goes on"


def test_a_missing_package_is_refused_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"wandb_project = 'p' and no package wandb"):
        refuse_missing(run(tmp_path, tensorboard=False, wandb_project="p"))
    with pytest.raises(ConfigError, match="no package tensorboardX"):
        refuse_missing(run(tmp_path))
    refuse_missing(run(tmp_path, tensorboard=False))
