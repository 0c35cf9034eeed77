"""Each thing that goes wrong is said, names a knob that exists, and a healthy run is left alone."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from common.config import Run
from common.rest.fleet_api import LearnerReport, ReplicaReport
from jobs.dash.advice import GAP_NATS, Advice, advice
from jobs.dash.folder import RunFolder
from jobs.fleet.services import Fleet, Replica
from services.learner.probe import BOUNDS
from tests.fixtures.pages.run_folder import SETTINGS, Figures, validated, write_run
from tests.fixtures.wire import replica_status

KNOB = re.compile(r"\b(?:shared|learner|rollout|reward)\.[a-z_.0-9]+")


def said(
    folder: Path,
    changed: Callable[[int], Figures] = lambda _n: {},
    *,
    validation: Sequence[Figures] = (),
    fleet: Fleet | None = None,
    **learner: Any,
) -> dict[str, Advice]:
    settings = {**SETTINGS, "learner": {**SETTINGS["learner"], "max_staleness": 1, **learner}}
    run = RunFolder(write_run(folder, changed=changed, validation=validation), "a")
    found = advice(run.metrics(), run.validation(), settings=settings, fleet=fleet)
    return {one.name: one for one in found}


def test_a_healthy_run_is_left_alone(tmp_path: Path) -> None:
    assert said(tmp_path, validation=[validated(0, 0.4), validated(50, 0.5)]) == {}


def entropy(step: int) -> Figures:
    return {"learner/entropy_nats": 0.4 if step < 50 else 0.06}


def a_format_that_falls(step: int) -> Figures:
    return {"reward/format": 0.95 if step < 60 else 0.7}


def skipped_at_the_end(step: int) -> Figures:
    return {"learner/skipped_steps": float(step > 97)}


def constant(**figures: float) -> Callable[[int], Figures]:
    return lambda _step: {key.replace("__", "/"): value for key, value in figures.items()}


def stale(step: int) -> Figures:
    return {"intake/groups_stale": 4.0 * step}


def nothing_injected_late(step: int) -> Figures:
    return {"reward/injected_reward": math.nan} if step > 70 else {}


FAULTS: dict[str, tuple[Callable[[int], Figures], str]] = {
    "entropy_collapse": (entropy, ".06 nats a token after .4"),
    "all_tied": (constant(advantage__groups_tied=6.0), "In 75 % of the groups every answer"),
    "truth_dominates": (
        constant(advantage__groups_without_positive=6.0),
        "In 75 % of the groups no policy answer",
    ),
    "format": (a_format_that_falls, "The policy's format reward is .70 after .95"),
    "nothing_injected": (nothing_injected_late, "None of the last 20 steps holds a true answer"),
    "waiting": (constant(learner__wait_s=9.0), "83 % of its time"),
    "unscored": (constant(reward__unscored_fraction=0.2), "20 % of them"),
    "truncated": (constant(advantage__samples_truncated=16.0), "50 % of the answers end"),
    "skipped_steps": (skipped_at_the_end, "3 of the last 20 steps"),
    "dead_letters": (constant(queue__dead_letters=3.0), "3 dead letters"),
    "stale": (stale, "33 % of them were too old"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_said_with_its_figure_and_alone(tmp_path: Path, name: str) -> None:
    changed, text = FAULTS[name]
    found = said(tmp_path, changed)
    assert list(found) == [name]
    assert text in found[name].text


@pytest.mark.parametrize(
    ("moved", "flips", "names"),
    [(1.4, 0.35, {"truth_dominates"}), (40, 0.12, set()), (0.7, 0.35, set())],
)
def test_a_truth_dominates_by_what_it_turns_round(
    tmp_path: Path, moved: float, flips: float, names: set[str]
) -> None:
    """Where rewards hardly differ, as with the set reward, any shift is many stds."""
    figures = constant(advantage__contamination=moved, advantage__sign_flip_share=flips)
    found = said(tmp_path, figures)
    assert set(found) == names
    assert all("push 35 % of the policy's answers" in one.text for one in found.values())


def test_one_odd_step_says_nothing(tmp_path: Path) -> None:
    def odd(step: int) -> Figures:
        return {"advantage/groups_tied": 8.0, "learner/wait_s": 60.0} if step == 95 else {}

    assert said(tmp_path, odd).keys() <= {"waiting"}


def test_short_answers_that_were_always_certain_have_not_collapsed(tmp_path: Path) -> None:
    assert said(tmp_path, constant(learner__entropy_nats=0.06)) == {}


def test_a_collapse_is_measured_by_what_the_phase_began_with(tmp_path: Path) -> None:
    def fallen(step: int) -> Figures:
        return {"learner/entropy_nats": 0.8 if step < 50 else 0.25}

    assert set(said(tmp_path, fallen)) == {"entropy_collapse"}
    in_phases = [{**fallen(step), "learner/phase": 1.0 + (step >= 50)} for step in range(101)]
    assert said(tmp_path, lambda step: in_phases[step]) == {}


def test_injection_is_advised_only_where_there_is_none(tmp_path: Path) -> None:
    assert "shared.strategy" not in said(tmp_path, entropy)["entropy_collapse"].knob
    run = RunFolder(tmp_path, "a")
    settings = {**SETTINGS, "shared": {**SETTINGS["shared"], "strategy": "none"}}
    found = advice(run.metrics(), run.validation(), settings=settings, fleet=None)
    assert "shared.strategy" in found[0].knob


def test_a_strategy_of_a_phase_is_turned_in_the_phases(tmp_path: Path) -> None:
    phases = [{"mode": "answer", "steps": 50}, {"mode": "answer", "strategy": "none"}]
    knob = said(tmp_path, entropy, phases=phases)["entropy_collapse"].knob
    assert knob.startswith("strategy in learner.phases (injection keeps it alive)")
    alike = said(tmp_path, entropy, phases=[{"mode": "answer", "strategy": "shaping"}])
    assert "strategy" not in alike["entropy_collapse"].knob


def test_a_run_that_is_not_to_inject_in_a_phase_is_not_told_so(tmp_path: Path) -> None:
    phases = [{"mode": "answer", "steps": 50}, {"mode": "answer", "strategy": "none"}]
    assert said(tmp_path, nothing_injected_late, phases=phases) == {}
    assert set(said(tmp_path, nothing_injected_late, phases=phases[:1])) == {"nothing_injected"}


def test_answers_that_can_no_longer_be_read_are_said(tmp_path: Path) -> None:
    lines = [validated(0, 0.4), validated(50, 0.4, **{"val/parse_rate": 0.7})]
    assert "70 % of the held-out answers hold a span, after 100 %" in (
        said(tmp_path, validation=lines)["parse_rate"].text
    )


def test_drift_is_said_before_it_ends_the_run(tmp_path: Path) -> None:
    near = constant(learner__probe_logprob_gap_nats=0.006)
    assert "at .01 the run stops" in said(tmp_path, near, probe_max_gap_nats=0.01)["gap"].text
    assert set(said(tmp_path / "default", near)) == {"gap"}
    assert said(tmp_path / "far", near, probe_max_gap_nats=1.0) == {}


def test_where_a_run_stops_by_itself_is_what_the_learner_says() -> None:
    assert {name: bound[0] for name, bound in BOUNDS.items()} == GAP_NATS


def replica(name: str, *, version: int, answers: bool = True) -> Replica:
    status = replica_status(name, version=version)
    report = ReplicaReport(
        status=status, tokens_per_s=5.0, generates_in_work=0, generates_waiting=0
    )
    if answers:
        return Replica(status=status, report=report)
    return Replica(status=status, unreachable="ConnectError")


def test_replicas_that_lag_or_are_silent_are_named(tmp_path: Path) -> None:
    learner = LearnerReport(phase="training", step=9, version=9)
    replicas = (
        replica("a", version=9),
        replica("b", version=7),
        replica("c", version=9, answers=False),
    )
    found = said(tmp_path, fleet=Fleet(run_id="a", replicas=replicas, learner=learner))
    assert set(found) == {"lagging:b", "replica:c"}
    assert "version 7, 2 behind" in found["lagging:b"].text
    assert list(found) == ["replica:c", "lagging:b"], "faults first"


def test_every_knob_is_one_that_exists(tmp_path: Path) -> None:
    found = [
        said(tmp_path / name, changed, probe_max_gap_nats=0.01)
        for name, (changed, _) in FAULTS.items()
    ]
    knobs = {knob for one in found for advice in one.values() for knob in KNOB.findall(advice.knob)}
    assert len(knobs) > 10
    for knob in knobs:
        model: Any = Run
        for part in knob.split("."):
            field = model.model_fields[part]
            model = field.annotation
            if not (isinstance(model, type) and issubclass(model, BaseModel)):
                break
