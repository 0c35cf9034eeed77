"""Tasks by name: what is built in, what packages add, what happens when names collide."""

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from common.errors import RewardError
from common.messages import TextTarget
from common.rest.reward_api import ScoreItem, ScoreRequest
from services.reward import registry
from services.reward.registry import BuiltInTask, built_in, discover


def test_built_in_tasks_are_always_there() -> None:
    assert set(built_in(1.0)) == {"temporal_grounding", "highlight_detection"}


def test_entry_points_of_installed_packages_are_found(scorer_packages: object) -> None:
    tasks = discover(timeout_s=1.0, processes=1)
    info = tasks["event_count"].info
    assert info.origin == "entry point"
    assert info.distribution == "tempsamp-example-scorer 1.2.0"
    assert info.injects is None


def test_a_second_scorer_of_the_same_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rival = EntryPoint("temporal_grounding", "rival:score", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [rival])
    with pytest.raises(RewardError, match=r"temporal_grounding.*rival:score.*this package"):
        discover(timeout_s=1.0, processes=1)


def bound(timeout_s: float, score: Any) -> list[dict[str, Any]]:
    info = built_in(1.0)["temporal_grounding"].info
    task = BuiltInTask(info, lambda item, request: score, lambda query: "", timeout_s)
    item = ScoreItem(task="t", target=TextTarget(text="x"), responses=("a", "b"))
    return task.bind(item, ScoreRequest(items=(item,)), deadline=0.0)(item.responses)


def test_a_built_in_scorer_that_raises_leaves_that_response_unscored() -> None:
    def score(response: str) -> dict[str, Any]:
        if response == "a":
            raise ZeroDivisionError("by zero")
        return {"kind": "scored", "reward": 1.0, "parts": {}, "parsed": None}

    first, second = bound(1.0, score)
    assert first == {"kind": "unscored", "reason": "error: ZeroDivisionError: by zero"}
    assert second["kind"] == "scored"


def test_a_built_in_scorer_over_its_time_leaves_that_response_unscored() -> None:
    verdicts = bound(0.0, lambda response: {"kind": "scored"})
    assert {verdict["reason"].partition(":")[0] for verdict in verdicts} == {"timeout"}
