"""The version that validated best: whether, and by which replica, it is evaluated."""

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common import config
from jobs.demo import course
from jobs.demo.course import Course
from jobs.demo.figures import evaluation_of
from jobs.demo.run import CONFIG
from jobs.evaluation.journal import Journal
from jobs.evaluation.scoring.predictions import PredictionRecord

ANSWER = PredictionRecord(
    id="line 1",
    video="a.mp4",
    query="?",
    gt=((0.0, 4.0),),
    duration_s=10.0,
    mode="answer",
    text="<answer> 0.0 to 4.0 </answer>",
    fingerprint="f",
)


class StandIn:
    """Children that note what is started, and held-out rows that note who is asked."""

    def __init__(self) -> None:
        self.started: dict[str, list[str]] = {}
        self.asked: list[tuple[int, list[str]]] = []

    def start(self, name: str, command: list[str], **_options: Any) -> None:
        self.started[name] = command

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        asyncio.run(coroutine)

    async def ask(self, version: int, *, endpoints: list[str], out: Path, retry_s: float) -> None:
        self.asked.append((version, endpoints))
        with Journal(out, shard=(0, 1), fingerprint="f") as journal:
            journal.append(ANSWER)


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Course:
    monkeypatch.setattr(course, "_wait_until_ready", lambda *_args, **_options: None)
    run = config.load(CONFIG, overrides=[f"learner.run_dir={tmp_path}"])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best.json").write_text(json.dumps({"step": 150, "value": 0.5}))
    return Course(run, ["--config", "x"], {}, 1, False, "test", None, evaluates_best=True)


def evaluated(taken: Course, version: int) -> tuple[Any, StandIn]:
    stand_in: Any = StandIn()
    last = evaluation_of([ANSWER])
    found = course._evaluate_best(taken, stand_in, stand_in, last=last, version=version)
    return found, stand_in


def test_an_earlier_version_is_asked_of_a_replica_of_its_checkpoint(taken: Course) -> None:
    found, stand_in = evaluated(taken, version=200)
    assert (found.step, found.evaluation.greedy.miou) == (150, 1.0)
    command = stand_in.started["rollout-best"]
    assert f'shared.model="{taken.folder}/checkpoints/step-000150/hf"' in command
    assert 'rollout.weights="checkpoint"' in command
    port = next(word for word in command if word.startswith("rollout.port=")).partition("=")[2]
    assert stand_in.asked == [(0, [f"http://127.0.0.1:{port}"])]


def test_the_last_version_is_not_asked_again_and_nothing_is_where_it_is_not_wanted(
    taken: Course,
) -> None:
    found, stand_in = evaluated(taken, version=150)
    assert found.step == 150
    assert not stand_in.started
    assert evaluated(replace(taken, evaluates_best=False), version=200)[0] is None
    (taken.folder / "checkpoints/best.json").unlink()
    assert evaluated(taken, version=200)[0] is None
