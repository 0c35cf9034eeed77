"""What chaos.json says, and what makes it a failure."""

from typing import Any

import pytest
from rich.console import Console

from common.queue.ledger import CheckpointLine, Line, RunLine, StepLine, TrainedGroup
from jobs.audit.findings import Audit, audit
from jobs.chaos.schedule import Strike, Victim
from jobs.chaos.storm import Recovery
from jobs.chaos.verdict import is_well, table, verdict

SUMMARY = {"groups_unscored": 2, "miou_end": 0.5, "miou_start": 0.4, "restarts": 3}


def recovery(victim: Victim, took_s: float | None, frozen_s: float = 0.0) -> Recovery:
    return Recovery(Strike(1, victim, frozen_s, 0.0, False), 1, 0.0, took_s=took_s)


RECOVERIES = [
    recovery("redis", 1.0),
    recovery("learner", 8.04),
    recovery("learner", 9.0),
    recovery("engine", None),
    recovery("reward", 2.0, frozen_s=4.0),
]


def proven(*rows: int, fed: int) -> Audit:
    groups = tuple(
        TrainedGroup(
            prompt_id=f"t-0-{row}",
            row_id=str(row),
            epoch=0,
            versions=None,
            replica="a",
            rewards=(),
        )
        for row in rows
    )
    lines: list[Line] = [
        RunLine(run_id="r", tag="t", rows="rows.jsonl", rows_sha256="0"),
        StepLine(step=1, learner_epoch=1, applied=True, groups=groups),
        CheckpointLine(step=1, epoch=0, fed=fed, outstanding=()),
    ]
    return audit(lines, rows=["1", "2", "3", "4"], rows_sha256="0")


def judged(**changed: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "audit": proven(1, 2, 3, fed=3),
        "summary": SUMMARY,
        "orphans": [],
        "trouble": [],
        "facts": {"seed": 5},
    }
    return verdict(RECOVERIES, **{**settings, **changed})


def test_a_run_that_went_well() -> None:
    found = judged()
    assert is_well(found)
    wanted = {
        "seed": 5,
        "kills": 4,
        "frozen": 1,
        "lost": 0,
        "trained_twice": 0,
        "unscored": 2,
        "final_miou": 0.5,
        "orphans": 0,
        "steps": 1,
        "recoveries_s": {"p50": 8.0, "max": 9.0},
        "frozen_recoveries_s": {"p50": 2.0, "max": 2.0},
    }
    assert {key: found[key] for key in wanted} == wanted
    assert found["by_victim"]["engine"]["recoveries_s"] == {"p50": None, "max": None}
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table(found))
    rows = [line.split() for line in capture.get().splitlines()]
    assert ["learner", "2", "8.5", "9.0", "0"] in rows
    assert ["all", "4", "8.0", "9.0", "1", "2.0", "2.0"] in rows


@pytest.mark.parametrize(
    ("changed", "figures"),
    [
        ({"audit": proven(1, 2, fed=3)}, {"lost": 1}),
        ({"audit": proven(1, 2, 2, fed=2)}, {"trained_twice": 1}),
        ({"audit": None}, {"lost": None, "trained_twice": None}),
        ({"orphans": ["17 redis-server"]}, {"orphans": 1}),
        ({"trouble": ["the demo ended with code 1"]}, {}),
    ],
)
def test_what_is_a_failure(changed: dict[str, Any], figures: dict[str, Any]) -> None:
    found = judged(**changed)
    assert not is_well(found)
    assert {key: found[key] for key in figures} == figures
