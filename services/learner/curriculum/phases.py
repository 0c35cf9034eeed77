"""Which phase of `[[learner.phases]]` the next prompt belongs to; `feed.py` asks and counts.

All that decides is in `PhaseState`, part of the feed's state: a resumed run switches where the
whole one would have. A prompt keeps its phase when it is asked again, so around a switch a step may
hold groups of both.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from common.config import Learner, Phase, Shared
from common.messages import Grading, Mode

log = logging.getLogger(__name__)


class PhaseState(BaseModel):
    """Where in the phases a feed stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int = 0
    since_version: int = 0
    """Newest version when it began."""
    fed: int = 0
    """Prompts fed in it."""
    epochs: int = 0
    """Epoch boundaries since its first prompt."""


class HasPlateaued(Protocol):
    """Whether validations stopped to improve; see `plateau.py`."""

    def __call__(self, *, since: int, before: int, patience: int) -> bool:
        """Of versions in [since, before)."""


def never(*, since: int, before: int, patience: int) -> bool:
    """Nothing is validated."""
    return False


@dataclass(frozen=True)
class Asked:
    """What a phase asks of a prompt's answers."""

    mode: Mode
    max_tokens: int
    num_samples: int
    grading: Grading | None
    """None: as `[shared]` has it."""


class Phases:
    """The phases of a run, and the one that prompts are fed in."""

    def __init__(
        self,
        shared: Shared,
        learner: Learner,
        *,
        state: PhaseState,
        has_plateaued: HasPlateaued = never,
    ) -> None:
        """Go on where `state` stood."""
        self._shared = shared
        self._phases = learner.phases
        self._per_step = learner.groups_per_step
        self._has_plateaued = has_plateaued
        self.state = state

    @property
    def is_last(self) -> bool:
        """Whether no other comes."""
        return self.state.index >= len(self._phases) - 1

    @property
    def asked(self) -> Asked:
        """By prompts that are fed now."""
        shared = self._shared
        if not self._phases:
            return Asked("answer", shared.sampling.max_tokens, shared.num_policy_samples, None)
        phase = self._phases[self.state.index]
        grading = Grading(
            strategy=phase.strategy or shared.strategy,
            format_weight=_or(phase.format_weight, shared.scoring.format_weight),
            think_injection=phase.think_injection or shared.scoring.think_injection,
        )
        return Asked(
            mode=phase.mode,
            max_tokens=phase.max_tokens or shared.sampling.max_tokens,
            num_samples=_num_samples(grading, phase.mode, group_size=shared.group_size),
            grading=grading,
        )

    def look(self, version: int) -> None:
        """Before a prompt is chosen: whether the next phase begins.

        Args:
            version: the newest one. Validations of it do not count yet, because a resumed run may
                have them when it feeds and the whole one had not.
        """
        while not self.is_last and (why := self._ended(self._phases[self.state.index], version)):
            self._begin_next(version, why)

    def fed(self) -> None:
        """One more prompt."""
        self.state = self.state.model_copy(update={"fed": self.state.fed + 1})

    def epoch_ended(self, version: int) -> None:
        """All rows of an epoch were fed; one that this phase fed nothing of is not its own."""
        if self.state.fed == 0:
            return
        self.state = self.state.model_copy(update={"epochs": self.state.epochs + 1})
        self.look(version)

    def _ended(self, phase: Phase, version: int) -> str | None:
        """Why a phase is over; None: it goes on."""
        state = self.state
        if phase.steps is not None and state.fed >= phase.steps * self._per_step:
            return f"{phase.steps} steps"
        if phase.epochs is not None and state.epochs >= phase.epochs:
            return f"{phase.epochs} epochs"
        if phase.plateau is not None and self._has_plateaued(
            since=state.since_version, before=version, patience=phase.plateau
        ):
            return f"{phase.plateau} validations without improvement"
        return None

    def _begin_next(self, version: int, why: str) -> None:
        index = self.state.index + 1
        self.state = PhaseState(index=index, since_version=version)
        facts = self._phases[index].model_dump(exclude_none=True)
        log.info("phase begins", extra={"phase": index + 1, "after": why, **facts})


def _or(value: float | None, default: float) -> float:
    """0 is a value."""
    return default if value is None else value


def _num_samples(grading: Grading, mode: Mode, *, group_size: int) -> int:
    """Policy answers of a group. A warm-up trains on the true one alone; spliced thoughts need
    answers to take them from."""
    if grading.strategy == "none":
        return group_size
    if grading.strategy == "sft" and mode == "answer":
        return 1
    return group_size - 1
