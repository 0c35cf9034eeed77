"""What a replica counts and shows."""

import math
import time
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry

from common.errors import EngineError, QueueError, VideoError
from common.messages import ReplicaPhase, ReplicaStatus, Unscored
from services.rollout.metrics import Counters, Rate, ReplicaCollector
from tests.fixtures import wire

STATUS = ReplicaStatus(
    replica="node-1",
    url="http://node-1",
    phase="serving",
    version=4,
    run_tag="t",
    generation=2,
    num_workers=1,
    completed_groups=1,
    failed_prompts=3,
    generated_tokens=90,
)


def registry(
    counters: Counters | None = None, *, status: ReplicaStatus = STATUS
) -> CollectorRegistry:
    shown = CollectorRegistry()
    clips = {"hits": 1, "decoded": 2}
    shown.register(ReplicaCollector(lambda: status, counters=lambda: counters, clips=clips))
    return shown


def test_failures_are_counted_by_the_boundary_they_happened_at() -> None:
    counters = Counters()
    for error in (VideoError("x"), EngineError("x"), EngineError("x"), ValueError("x")):
        counters.failed(error)
    assert counters.failed_prompts == counters.failures_in_a_row == 4
    shown = registry(counters)
    name = "tempsamp_rollout_failed_prompts_total"
    found = {
        kind: shown.get_sample_value(name, {"kind": kind})
        for kind in ("video", "engine", "queue", "other")
    }
    assert found == {"video": 1, "engine": 2, "queue": 0, "other": 1}
    counters.failed(QueueError("x"))
    assert shown.get_sample_value(name, {"kind": "queue"}) == 1


def test_a_pushed_group_adds_its_seconds_and_ends_a_row_of_failures() -> None:
    counters = Counters(last_group_s=time.monotonic() - 60)
    counters.failed(ValueError("x"))
    group = wire.scored_group("p")
    verdicts = (Unscored(reason="away"), *group.verdicts[1:])
    counters.pushed(group.model_copy(update={"verdicts": verdicts}))
    assert counters.failures_in_a_row == 0
    shown = registry(counters)
    for stage in ("decode", "generate", "score"):
        seconds = shown.get_sample_value("tempsamp_rollout_stage_seconds_total", {"stage": stage})
        assert seconds == pytest.approx(getattr(group.timings, f"{stage}_s"))
    unscored = sum(verdict.kind == "unscored" for verdict in verdicts)
    assert shown.get_sample_value("tempsamp_rollout_unscored_answers_total") == unscored
    age_s = shown.get_sample_value("tempsamp_rollout_last_group_age_seconds")
    assert age_s is not None
    assert 0 <= age_s < 30


def test_a_replica_that_loads_shows_zeros_and_its_phase() -> None:
    shown = registry(None)
    assert shown.get_sample_value("tempsamp_rollout_policy_version") == 4
    assert shown.get_sample_value("tempsamp_rollout_replica", {"replica": "node-1"}) == 1
    phases = {
        phase: shown.get_sample_value("tempsamp_rollout_phase", {"phase": phase})
        for phase in ("starting", "serving")
    }
    assert phases == {"starting": 0, "serving": 1}
    assert shown.get_sample_value("tempsamp_rollout_unscored_answers_total") == 0
    age_s = shown.get_sample_value("tempsamp_rollout_last_group_age_seconds")
    assert age_s != age_s, "NaN: no work yet"


def test_a_rate_is_that_of_the_last_while() -> None:
    rate = Rate(window_s=10)
    assert rate.per_s == 0
    rate.saw(100, now_s=0)
    assert rate.per_s == 0
    rate.saw(200, now_s=5)
    assert rate.per_s == 20
    for now_s in range(10, 60, 5):
        rate.saw(200, now_s=now_s)
    assert rate.per_s == 0, "what it did long ago is forgotten"
    assert len(rate._seen) <= 4


def test_the_last_pause_is_shown_in_seconds_and_unknown_before_the_first() -> None:
    paused = STATUS.model_copy(update={"pause_ms": 12.5})
    name = "tempsamp_rollout_pause_seconds"
    assert registry(status=paused).get_sample_value(name) == pytest.approx(0.0125)
    before = registry().get_sample_value(name)
    assert before is not None
    assert math.isnan(before)


@pytest.mark.parametrize("phase", get_args(ReplicaPhase))
def test_one_phase_is_1_and_the_others_are_0(phase: ReplicaPhase) -> None:
    shown = registry(status=STATUS.model_copy(update={"phase": phase}))
    found = {
        name: shown.get_sample_value("tempsamp_rollout_phase", {"phase": name})
        for name in get_args(ReplicaPhase)
    }
    assert found == {name: float(name == phase) for name in get_args(ReplicaPhase)}
