"""A run that has no row left ends like one without groups: saved first, on all ranks alike."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from common import config
from services.learner import train as module
from services.learner.feed import NoRowLeftError
from services.learner.train import Learner, train


class Desk:
    """Has groups for every step, until its rows end at a version, in one of two places."""

    def __init__(self, place: str, *, at: int) -> None:
        self._end = (place, at)
        self.intake = SimpleNamespace(stalled=None)

    def top_up(self, version: int) -> list[Any]:
        self._look("top_up", version)
        return []

    def take(self, version: int, **_: Any) -> list[str]:
        self._look("take", version)
        return ["a group"]

    def stops_early(self, _version: int) -> bool:
        return False

    def ahead(self, _version: int) -> list[Any]:
        return []

    def _look(self, place: str, version: int) -> None:
        if (place, version) == self._end:
            raise NoRowLeftError("learner.rows: no usable row left")


class IdleLearner(Learner):
    """Nothing is trained and nothing travels."""

    def publish(self, version: int) -> None:
        """To nobody."""

    def step(self, *_: Any, **__: Any) -> dict[str, float]:
        return {}

    def report(self, *_: Any, **__: Any) -> None:
        """To nobody."""

    def dump(self, *_: Any, **__: Any) -> None:
        """To nowhere."""


class Rank0:
    """The learner of a run of two ranks; notes what is saved and what the other is told."""

    def __init__(self, folder: Path, desk: Desk) -> None:
        self.told: list[str] = []
        self.saved: list[int] = []
        learner = {"rows": "none", "run_dir": str(folder), "steps": 5, "probe_every": 0}
        document = {"shared": {"run_id": "r", "model": "m"}, "learner": learner}
        self.run = config.parse(document, environ={})
        parts = {
            "run": self.run,
            "desk": desk,
            "ranks": SimpleNamespace(
                broadcast_json=self._tell, all_reduce_max=lambda seen: seen, world_size=2
            ),
            "stop": SimpleNamespace(agree=lambda ranks: False, asked=False),
            "saving": SimpleNamespace(finish=lambda wait=False: None, save=self.saved.append),
            "share": SimpleNamespace(
                clips_of_ranks=lambda groups, limits: [], prefetch=lambda clips: None
            ),
            "budget": SimpleNamespace(limits=None),
        }
        others = dict.fromkeys(("policy", "stepper", "publisher"))
        self._learner = IdleLearner(**cast("Any", parts | others), first_version=0, validates=False)

    @contextlib.contextmanager
    def opened(self, *_: Any, **__: Any) -> Iterator[Learner]:
        """In the place of `open_learner`."""
        yield self._learner

    def _tell(self, order: dict[str, Any]) -> None:
        self.told.append(order["do"])


def trained(folder: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Rank0:
    rank = Rank0(folder, desk)
    monkeypatch.setattr(module, "open_learner", rank.opened)
    monkeypatch.setattr(module, "_watched", lambda run: contextlib.nullcontext())
    with pytest.raises(NoRowLeftError):
        train(rank.run, resume=False)
    return rank


@pytest.mark.parametrize("place", ["top_up", "take"])
def test_steps_are_saved_and_the_other_ranks_are_told(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = trained(tmp_path, Desk(place, at=1), monkeypatch)
    assert rank.told == ["train", "stop"]
    assert rank.saved == [1]


def test_without_a_usable_row_from_the_start_nothing_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = trained(tmp_path, Desk("top_up", at=0), monkeypatch)
    assert rank.saved == []
