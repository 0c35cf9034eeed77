"""What services say of themselves at GET /v1/status: `ReplicaReport`, `LearnerReport`.

`tempsamp status` puts them into a table; a token of any role is enough. Unlike the registry's
`ReplicaStatus` they cost nothing while nobody asks.
"""

import time
from collections.abc import Mapping
from importlib import metadata

from pydantic import Field

from common.logs import LastProblem
from common.messages import Message, ReplicaStatus

PACKAGES = ("tempsamp", "torch", "transformers", "vllm")
"""Whose versions decide whether two machines compute the same; vllm is not in a learner's image."""


def software() -> dict[str, str]:
    """Versions of `PACKAGES` that are installed here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class ProblemReport(Message):
    """The last warning or error in a process's log."""

    event: str
    error: str | None = None
    age_s: float


class Machine(Message):
    """Where a service runs, as far as two of them have to agree."""

    software: Mapping[str, str] = Field(default_factory=software)
    """Package → version."""
    clock_s: float = Field(default_factory=time.time)
    """Wall clock, seconds since 1970."""


class ReplicaReport(Message):
    """Of one replica."""

    status: ReplicaStatus
    tokens_per_s: float
    """Over the last half minute, of the ring's prompts."""
    generates_in_work: int
    """Requests of /v1/generate."""
    generates_waiting: int
    trouble: str | None = None
    """Why it answers no prompts now."""
    last_problem: ProblemReport | None = None
    machine: Machine | None = None


class LearnerReport(Message):
    """Of rank 0."""

    phase: str
    step: int | None = None
    version: int | None = None
    """Last published."""
    staleness_steps_mean: float | None = None
    """Of the groups of the last step."""
    step_s: float | None = None
    """Wall time of all steps so far, divided by their number."""
    last_step_age_s: float | None = None
    last_problem: ProblemReport | None = None
    machine: Machine | None = None


def problem_of(last: LastProblem) -> ProblemReport | None:
    """What a log remembers, with its age."""
    if last.at_s is None:
        return None
    return ProblemReport(event=last.event, error=last.error, age_s=time.monotonic() - last.at_s)
