"""Validations beside the learner's loop: figures, failures, resuming, and leaving early."""

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.errors import EngineError
from services.learner.validation import ATTEMPTS, Validator

URLS = ["http://replica"]


class Asked:
    """A validation that answers what it is told to; each call takes the next."""

    def __init__(self, *outcomes: Mapping[str, float] | Exception) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[tuple[int, Sequence[str], Path]] = []
        self.threads: set[int] = set()

    async def __call__(
        self, version: int, *, urls: Sequence[str], folder: Path
    ) -> Mapping[str, float]:
        self.calls.append((version, urls, folder))
        self.threads.add(threading.get_ident())
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Endless:
    """A validation that never ends by itself."""

    def __init__(self) -> None:
        self.cancelled = False

    async def __call__(
        self, version: int, *, urls: Sequence[str], folder: Path
    ) -> Mapping[str, float]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        raise AssertionError("waited to the end")


def run(validator: Validator, version: int, **changed: Any) -> None:
    settings: dict[str, Any] = {
        "urls": lambda: URLS,
        "on_idle": lambda: None,
        "should_stop": lambda: False,
    }
    validator.run(version, **settings | changed)


def lines(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "validation.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_figures_are_a_line_with_the_version_they_belong_to(tmp_path: Path) -> None:
    asked = Asked({"val/miou": 0.25}, {"val/miou": 0.5})
    validator = Validator(asked, run_dir=tmp_path, resumed_at=None)
    run(validator, 0)
    run(validator, 50)
    assert [(line["policy_version"], line["val/miou"]) for line in lines(tmp_path)] == [
        (0, 0.25),
        (50, 0.5),
    ]
    assert all(line["val/wall_s"] >= 0 for line in lines(tmp_path))
    folders = [folder for _, _, folder in asked.calls]
    assert len(set(folders)) == 2
    assert threading.get_ident() not in asked.threads


def test_a_version_is_validated_once(tmp_path: Path) -> None:
    asked = Asked({"val/miou": 0.25})
    validator = Validator(asked, run_dir=tmp_path, resumed_at=None)
    run(validator, 10)
    run(validator, 10)
    assert len(asked.calls) == len(lines(tmp_path)) == 1


def test_a_failed_attempt_is_repeated_with_the_replicas_of_then(tmp_path: Path) -> None:
    asked = Asked(EngineError("gone"), {"val/miou": 0.5})
    replicas = iter([["http://dead"], ["http://new"]])
    run(Validator(asked, run_dir=tmp_path, resumed_at=None), 3, urls=lambda: next(replicas))
    assert [urls for _, urls, _ in asked.calls] == [["http://dead"], ["http://new"]]
    assert len(lines(tmp_path)) == 1


def test_a_validation_that_keeps_failing_is_said_and_does_not_stop_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Asked(*[EngineError("no replica answered")] * ATTEMPTS)
    run(Validator(asked, run_dir=tmp_path, resumed_at=None), 3)
    assert len(asked.calls) == ATTEMPTS
    assert lines(tmp_path) == []
    assert [record.levelname for record in caplog.records] == ["WARNING"] * ATTEMPTS + ["ERROR"]
    assert all(getattr(record, "policy_version", None) == 3 for record in caplog.records)


def test_a_mistake_in_the_code_is_not_taken_for_a_failed_validation(tmp_path: Path) -> None:
    validator = Validator(Asked(ZeroDivisionError()), run_dir=tmp_path, resumed_at=None)
    with pytest.raises(ZeroDivisionError):
        run(validator, 3)


def test_idle_work_goes_on_meanwhile_and_sigterm_ends_it(tmp_path: Path) -> None:
    endless, idles = Endless(), []
    run(
        Validator(endless, run_dir=tmp_path, resumed_at=None),
        3,
        on_idle=lambda: idles.append(None),
        should_stop=lambda: len(idles) >= 3,
    )
    assert len(idles) == 3
    assert endless.cancelled
    assert lines(tmp_path) == []


@pytest.mark.parametrize(("resumed_at", "kept"), [(None, []), (5, [5]), (10, [5, 10])])
def test_what_a_resumed_run_repeats_is_validated_again(
    tmp_path: Path, resumed_at: int | None, kept: list[int]
) -> None:
    versions = (5, 10, 15)
    first = Validator(Asked(*[{"val/miou": 0.5}] * 3), run_dir=tmp_path, resumed_at=None)
    for version in versions:
        run(first, version)
    asked = Asked(*[{"val/miou": 0.75}] * 3)
    again = Validator(asked, run_dir=tmp_path, resumed_at=resumed_at)
    assert [line["policy_version"] for line in lines(tmp_path)] == kept
    assert [folder.name for folder in sorted((tmp_path / "validation").iterdir())] == [
        f"version-{version:06d}" for version in kept
    ]
    for version in versions:
        run(again, version)
    assert [version for version, _, _ in asked.calls] == [v for v in versions if v not in kept]
