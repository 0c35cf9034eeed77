"""A `Fleet` as what people read: one table, a line each for learner and queues. Pure.

Phases are shown as they come; those that are not known here have no colour.
"""

from collections.abc import Iterator

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from common.rest.fleet_api import LearnerReport, ProblemReport
from jobs.fleet.services import Fleet, Queues, Replica

COLOURS = {"serving": "green", "draining": "yellow", "broken": "red"}
HEADINGS = ("replica", "phase", "version", "behind", "tokens/s", "groups", "failed", "asked")
LONGEST_CHARS = 100


def page(fleet: Fleet) -> Group:
    """Everything, for a terminal."""
    return Group(*(Text.from_markup(line) for line in lines(fleet)), table(fleet))


def lines(fleet: Fleet) -> Iterator[str]:
    """What stands above the table."""
    yield f"[bold]{escape(fleet.run_id)}[/]"
    yield f"learner  {escape(_learner(fleet))}"
    if fleet.learner is not None and (said := _problem(fleet.learner.last_problem)):
        yield f"         {escape(said)}"
    if fleet.queues is not None:
        yield f"queues   {_queues(fleet.queues)}"


def table(fleet: Fleet) -> Table:
    """A row a replica, and below it what went wrong there last."""
    made = Table(box=box.SIMPLE)
    for heading in HEADINGS:
        made.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right")
    made.add_column("last problem", overflow="fold")
    for replica in fleet.replicas:
        made.add_row(*_cells(replica, learner=fleet.learner))
    return made


def _cells(replica: Replica, *, learner: LearnerReport | None) -> Iterator[Text]:
    status, report = replica.status, replica.report
    yield Text(status.replica)
    yield Text(status.phase, style=COLOURS.get(status.phase, ""))
    yield Text("-" if status.version is None else str(status.version))
    newest = learner.version if learner else None
    known = newest is not None and status.version is not None
    yield Text(str((newest or 0) - (status.version or 0)) if known else "-")
    yield Text(f"{report.tokens_per_s:.0f}" if report else "-")
    yield Text(str(status.completed_groups))
    yield Text(str(status.failed_prompts))
    yield Text(f"{report.generates_in_work}+{report.generates_waiting}" if report else "-")
    if report is None:
        yield Text(f"no answer: {replica.unreachable}", style="yellow")
    elif report.trouble is not None:
        yield Text(one_line(f"answers nothing: {report.trouble}"), style="yellow")
    else:
        yield Text(_problem(report.last_problem))


def _learner(fleet: Fleet) -> str:
    learner = fleet.learner
    if learner is None:
        where = f" at {fleet.learner_url}" if fleet.learner_url else ""
        return f"no answer{where}: {fleet.learner_unreachable}"
    parts = [learner.phase]
    if learner.step is not None:
        parts.append(f"step {learner.step}")
    if learner.version is not None:
        parts.append(f"version {learner.version}")
    if learner.staleness_steps_mean is not None:
        parts.append(f"staleness {learner.staleness_steps_mean:.2f} steps")
    if learner.step_s is not None:
        parts.append(f"{learner.step_s:.1f} s a step")
    if learner.last_step_age_s is not None:
        parts.append(f"last step {_ago(learner.last_step_age_s)}")
    return ", ".join(parts)


def _queues(queues: Queues) -> str:
    return (
        f"{queues.prompts_waiting} prompts wait, {queues.prompts_claimed} in work, "
        f"{queues.groups_unread} groups unread, {queues.groups_unacknowledged} read, "
        f"{queues.dead_letters} dead letters"
    )


def _problem(problem: ProblemReport | None) -> str:
    if problem is None:
        return ""
    said = problem.event if problem.error is None else f"{problem.event}: {problem.error}"
    return f"{_ago(problem.age_s)}: {one_line(said)}"


def one_line(said: str, *, most_chars: int = LONGEST_CHARS) -> str:
    """Whitespace of all kinds made one blank each; cut where it is too long."""
    said = " ".join(said.split())
    return said if len(said) <= most_chars else said[: most_chars - 1] + "…"


def _ago(seconds: float) -> str:
    for unit, size_s in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size_s:
            return f"{seconds / size_s:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
