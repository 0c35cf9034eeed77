"""A `Fleet` as what people read: who learns, how much waits, and a row a replica. Pure.

A phase that the terminal's words do not know is shown as it comes.
"""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.markup import escape

from common.rest.fleet_api import LearnerReport, ProblemReport
from jobs.fleet.services import Fleet, Queues, Replica
from jobs.local.terminal import (
    NO_ANSWER,
    Column,
    Entry,
    Listing,
    Row,
    State,
    duration,
    one_line,
    steps_in_words,
    took,
)

COLUMNS = (
    Column("replica"),
    Column("state"),
    *(
        Column(heading, is_number=True)
        for heading in ("version", "behind", "tokens/s", "groups", "failed", "asked")
    ),
)
LEAD_CHARS = len("learner")


def page(fleet: Fleet) -> Group:
    """Everything, for a terminal."""
    return Group(*_head(fleet), "", table(fleet))


def _head(fleet: Fleet) -> Iterator[RenderableType]:
    """What stands above the table."""
    yield f"[bold]{escape(fleet.run_id)}[/]"
    learner = fleet.learner
    problem = problem_in_words(learner.last_problem) if learner else ""
    yield Entry("learner", _learner(fleet), (problem,) if problem else (), LEAD_CHARS)
    if fleet.queues is not None:
        yield Entry("queues", _queues(fleet.queues), (), LEAD_CHARS)


def table(fleet: Fleet) -> Listing:
    """A row a replica, and in it what went wrong there last."""
    rows = [
        Row(tuple(_cells(replica, learner=fleet.learner)), _note(replica))
        for replica in fleet.replicas
    ]
    return Listing(COLUMNS, rows, "last problem")


def _cells(replica: Replica, *, learner: LearnerReport | None) -> Iterator[str | State]:
    status, report = replica.status, replica.report
    yield status.replica
    yield State(status.phase if report else NO_ANSWER)
    yield _number(status.version)
    newest = learner.version if learner else None
    known = newest is not None and status.version is not None
    yield _number((newest or 0) - (status.version or 0) if known else None)
    yield _number(report.tokens_per_s if report else None)
    yield _number(status.completed_groups)
    yield _number(status.failed_prompts)
    yield f"{report.generates_in_work}+{report.generates_waiting}" if report else "-"


def _note(replica: Replica) -> str:
    """Why it does not answer, or answers no prompts, or what went wrong last."""
    if (report := replica.report) is None:
        return one_line(f"{replica.unreachable}; was {replica.status.phase}")
    if report.trouble is not None:
        return one_line(f"answers nothing: {report.trouble}")
    return problem_in_words(report.last_problem)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _learner(fleet: Fleet) -> State:
    learner = fleet.learner
    if learner is None:
        where = f" at {fleet.learner_url}" if fleet.learner_url else ""
        return State(NO_ANSWER, one_line(f"{where}: {fleet.learner_unreachable}", most_chars=300))
    parts = []
    if learner.step is not None:
        parts.append(f"step {steps_in_words(learner.step, None)}")
    if learner.version is not None:
        parts.append(f"version {learner.version:,}")
    if learner.staleness_steps_mean is not None:
        parts.append(f"staleness {learner.staleness_steps_mean:.2f} steps")
    if learner.step_s is not None:
        parts.append(f"{took(learner.step_s)} a step")
    if learner.last_step_age_s is not None:
        parts.append(f"last step {duration(learner.last_step_age_s)} ago")
    return State(learner.phase, "".join(f", {part}" for part in parts))


def _queues(queues: Queues) -> str:
    return (
        f"{queues.prompts_waiting:,} prompts wait, {queues.prompts_claimed:,} in work, "
        f"{queues.groups_unread:,} groups unread, {queues.groups_unacknowledged:,} read, "
        f"{queues.dead_letters:,} dead letters"
    )


def problem_in_words(problem: ProblemReport | None) -> str:
    """When, and what; empty where there was none."""
    if problem is None:
        return ""
    said = problem.event if problem.error is None else f"{problem.event}: {problem.error}"
    return f"{duration(problem.age_s)} ago: {one_line(said)}"
