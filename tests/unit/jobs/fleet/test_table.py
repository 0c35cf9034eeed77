"""What `tempsamp status` makes of what services say; whatever phases they know."""

import io

import pytest

from common.config import Learner
from common.rest.fleet_api import LearnerReport, ProblemReport, ReplicaReport
from jobs.fleet.services import Fleet, Queues, Replica, url_of_learner
from jobs.fleet.table import page
from jobs.local.terminal import console
from tests.fixtures.wire import replica_status

PROBLEM = ProblemReport(event="prompt failed", error="VideoError: [gone]\nfile", age_s=75)


def replica(name: str, *, phase: str = "serving", version: int | None = 3) -> Replica:
    status = replica_status(name, version=version).model_copy(update={"phase": phase})
    report = ReplicaReport(
        status=replica_status(name),
        tokens_per_s=1234.4,
        generates_in_work=2,
        generates_waiting=1,
        last_problem=PROBLEM,
    )
    return Replica(status=status, report=report)


def text_of(fleet: Fleet) -> str:
    out = io.StringIO()
    console(file=out).print(page(fleet))
    return out.getvalue()


def learner(version: int | None = 5) -> LearnerReport:
    return LearnerReport(phase="training", step=version, version=version, last_step_age_s=7300)


def test_a_row_says_who_is_behind_how_fast_and_what_failed_last() -> None:
    shown = text_of(Fleet(run_id="demo", replicas=(replica("a"),), learner=learner()))
    (row,) = [line for line in shown.splitlines() if line.strip().startswith("a ")]
    assert row.split()[:8] == ["a", "serving", "3", "2", "1,234", "12", "1", "2+1"]
    assert "75 s ago: prompt failed: VideoError: [gone] file" in row
    assert "last step 2 h ago" in shown


def test_what_keeps_a_replica_from_answering_comes_before_its_last_problem() -> None:
    one = replica("a")
    assert one.report is not None
    report = one.report.model_copy(update={"trouble": "found nothing in [/videos]"})
    fleet = Fleet(run_id="demo", replicas=(one.model_copy(update={"report": report}),))
    shown = text_of(fleet)
    assert "answers nothing: found nothing in [/videos]" in shown
    assert "prompt failed" not in shown


@pytest.mark.parametrize("phase", ["syncing", "broken", "a phase of tomorrow"])
def test_phases_of_later_need_no_change_here(phase: str) -> None:
    assert phase in text_of(Fleet(run_id="demo", replicas=(replica("a", phase=phase),)))


def test_what_is_not_known_is_a_dash_and_why_is_said() -> None:
    mute = Replica(status=replica_status("a", version=None), unreachable="ConnectError: refused")
    fleet = Fleet(run_id="demo", replicas=(mute,), learner_unreachable="no port")
    shown = text_of(fleet)
    assert "ConnectError: refused; was serving" in shown
    assert "learner  no answer: no port" in shown
    (row,) = [line for line in shown.splitlines() if line.strip().startswith("a ")]
    assert row.split()[1:6] == ["no", "answer", "-", "-", "-"]
    assert fleet.is_there
    assert not Fleet(run_id="demo", replicas=()).is_there


def test_queues_are_one_line() -> None:
    queues = Queues(
        prompts_waiting=1,
        prompts_claimed=2,
        groups_unread=3,
        groups_unacknowledged=4,
        dead_letters=5,
    )
    shown = text_of(Fleet(run_id="demo", replicas=(), learner=learner(None), queues=queues))
    assert "1 prompts wait, 2 in work, 3 groups unread, 4 read, 5 dead letters" in shown


@pytest.mark.parametrize(
    ("changed", "url"),
    [
        ({"metrics_port": 8300}, "http://127.0.0.1:8300"),
        ({"metrics_host": "0.0.0.0", "host": "node-1"}, "http://node-1:8300"),
        ({"metrics_host": "::", "host": "fd00::1"}, "http://[fd00::1]:8300"),
        ({"metrics_host": "learner"}, "http://learner:8300"),
        ({"metrics_port": 0}, None),
    ],
)
def test_the_learner_is_where_the_run_file_says(changed: dict[str, object], url: str) -> None:
    settings = {"rows": "r", "run_dir": "d", "steps": 1, **changed}
    assert url_of_learner(Learner.model_validate(settings)) == url
