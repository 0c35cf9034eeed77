"""When validation stopped to improve, from the lines on disk."""

import json
from pathlib import Path

import pytest

from common.config import EarlyStop
from services.learner.curriculum.plateau import Plateau


def plateau(folder: Path, *ious: float, **settings: float) -> Plateau:
    lines = [{"policy_version": 10 * n, "val/miou": iou} for n, iou in enumerate(ious)]
    path = folder / "validation.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return Plateau(path, EarlyStop.model_validate(settings))


@pytest.mark.parametrize(
    ("ious", "reached"),
    [
        ((0.3, 0.4, 0.4), False),
        ((0.3, 0.4, 0.4, 0.39), True),
        ((0.3, 0.4, 0.35, 0.41), False),
        ((0.5, 0.4), False),
    ],
)
def test_two_validations_without_a_new_best(
    tmp_path: Path, ious: tuple[float, ...], reached: bool
) -> None:
    assert plateau(tmp_path, *ious).reached(since=0, before=99, patience=2) is reached


def test_only_a_step_beyond_min_delta_is_an_improvement(tmp_path: Path) -> None:
    found = plateau(tmp_path, 0.4, 0.405, 0.409, min_delta=0.01)
    assert found.reached(since=0, before=99, patience=2)


def test_versions_outside_do_not_count(tmp_path: Path) -> None:
    found = plateau(tmp_path, 0.9, 0.3, 0.4, 0.4, 0.4)
    assert not found.reached(since=10, before=40, patience=2), "the fifth is not known yet"
    assert found.reached(since=10, before=41, patience=2)
    assert found.reached(since=0, before=30, patience=2)


def test_without_patience_or_lines_nothing_stops(tmp_path: Path) -> None:
    assert not plateau(tmp_path, 0.4, 0.4, 0.4).stops(since=0, before=99)
    assert plateau(tmp_path, 0.4, 0.4, 0.4, patience=2).stops(since=0, before=99)
    empty = Plateau(tmp_path / "none.jsonl", EarlyStop(patience=1))
    assert not empty.stops(since=0, before=99)
