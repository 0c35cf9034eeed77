"""The sink of the ring: groups stream → fresh `ScoredGroup`s, each prompt once.

Sole judge of staleness. `feed.py` knows which prompts are outstanding, and that is the whole
ledger: a group of any other prompt was trained on before, or belongs to nobody. Groups are
acknowledged only after a checkpoint holds what they taught, so a killed learner that resumes gets
the same groups in the same order and decides the same about each (`train.py`).
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from common.errors import RewardError
from common.messages import Scored, ScoredGroup, Unscored
from common.queue.broker import Broker
from services.learner.feed import Feed

log = logging.getLogger(__name__)

POLL_S = 0.5
"""Longest wait for a group between two looks at the rest of the world."""
RECONCILE_EVERY_S = 5.0
"""Without a group for this long, we ask Redis whether it still has our prompts."""
MIN_SCORED = 2
"""Samples with a reward that a group needs: one alone has nothing to be compared with."""


class IntakeCounters(BaseModel):
    """What became of the groups, since the start of the run."""

    model_config = ConfigDict(extra="forbid")

    groups_taken: int = 0
    groups_stale: int = 0
    """Too old, dropped; their prompts were fed again."""
    groups_duplicate: int = 0
    """Their prompt was not outstanding: answered twice, or left from another run."""
    groups_unscored: int = 0
    """Fewer than two samples with a reward, dropped."""
    samples_unscored: int = 0
    prompts_dead: int = 0
    """Given up by the replicas."""
    prompts_lost: int = 0
    """Lost by Redis, fed again."""


class IntakeState(BaseModel):
    """All an intake remembers; saved with every checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dead_letters_read: str = "0-0"
    """Entry id of the last dead letter that was dealt with."""
    failures_in_a_row: int = 0
    counters: IntakeCounters = IntakeCounters()


@dataclass(frozen=True)
class _Entry:
    entry_id: str
    group: ScoredGroup


class Intake:
    """Takes groups for one step after another. For rank 0's synchronous loop."""

    def __init__(
        self,
        broker: Broker,
        *,
        feed: Feed,
        runner: asyncio.Runner,
        max_staleness: int,
        max_unscored_in_a_row: int,
        state: IntakeState | None = None,
    ) -> None:
        state = state or IntakeState()
        self._broker = broker
        self._feed = feed
        self._runner = runner
        self._max_staleness = max_staleness
        self._max_unscored_in_a_row = max_unscored_in_a_row
        self._dead_letters_read = state.dead_letters_read
        self._failures_in_a_row = state.failures_in_a_row
        self.counters = state.counters.model_copy()
        self._read: deque[_Entry] = deque()
        """Read and not yet judged, in stream order."""
        self._done: list[str] = []
        """Entry ids of groups taken or dropped since the last acknowledgement."""

    def state(self) -> IntakeState:
        """What a checkpoint keeps."""
        return IntakeState(
            dead_letters_read=self._dead_letters_read,
            failures_in_a_row=self._failures_in_a_row,
            counters=self.counters.model_copy(),
        )

    def take(
        self,
        count: int,
        *,
        at: int,
        on_idle: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[ScoredGroup]:
        """Wait for the groups of one step.

        Args:
            count: groups wanted.
            at: policy version they are trained at; a group's staleness is `at` less the oldest
                version that wrote a token of it, negative after a resume.
            on_idle: called about twice a second while nothing comes.
            should_stop: looked at as often; when true, what was taken so far goes back.

        Returns:
            `count` groups in stream order, or none when stopped.

        Raises:
            RewardError: `max_unscored_in_a_row` prompts in a row came back without a verdict.
        """
        taken: dict[str, _Entry] = {}
        self._bury_dead(taken, at=at)
        last_group_s = time.monotonic()
        while len(taken) < count:
            if should_stop():
                self._read.extendleft(reversed(taken.values()))
                return []
            if self._read:
                entry = self._read.popleft()
                if self._is_fit(entry, at=at, taken=taken):
                    taken[entry.group.prompt_id] = entry
            elif self._read_more(count - len(taken), block_s=POLL_S):
                last_group_s = time.monotonic()
            else:
                on_idle()
                self._bury_dead(taken, at=at)
                if time.monotonic() - last_group_s >= RECONCILE_EVERY_S:
                    self._reconcile(taken, at=at)
                    last_group_s = time.monotonic()
        return [self._accept(entry) for entry in taken.values()]

    def acknowledge(self) -> None:
        """Delete from Redis what was taken or dropped so far. Only after a checkpoint of that."""
        self._runner.run(self._broker.acknowledge_groups(self._done))
        self._done.clear()

    def _accept(self, entry: _Entry) -> ScoredGroup:
        self._feed.consumed(entry.group.prompt_id)
        self._done.append(entry.entry_id)
        self.counters.groups_taken += 1
        return entry.group

    def _is_fit(self, entry: _Entry, *, at: int, taken: dict[str, _Entry]) -> bool:
        """Judge a group; one that is dropped is counted and its prompt dealt with."""
        group = entry.group
        if group.prompt_id in taken or group.prompt_id not in self._feed.outstanding:
            self.counters.groups_duplicate += 1
            fault = "duplicate"
        elif (staleness := self._staleness(group, at=at)) > self._max_staleness:
            self.counters.groups_stale += 1
            self._feed.refeed(group.prompt_id, version=at)
            fault = f"stale by {staleness} steps"
        elif not self._has_verdicts(group):
            self.counters.groups_unscored += 1
            fault = _missing_verdict(group)
            self._give_up(group.prompt_id, reason=fault, at=at)
        else:
            self._failures_in_a_row = 0
            return True
        self._done.append(entry.entry_id)
        log.info("group dropped", extra={"prompt_id": group.prompt_id, "reason": fault})
        return False

    def _staleness(self, group: ScoredGroup, *, at: int) -> int:
        return 0 if group.oldest_version is None else at - group.oldest_version

    def _has_verdicts(self, group: ScoredGroup) -> bool:
        num_scored = sum(isinstance(verdict, Scored) for verdict in group.verdicts)
        self.counters.samples_unscored += len(group.verdicts) - num_scored
        return num_scored >= MIN_SCORED

    def _give_up(self, prompt_id: str, *, reason: str, at: int) -> None:
        """Another prompt takes this one's place, or the next step would wait for it forever."""
        self._feed.consumed(prompt_id)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self._max_unscored_in_a_row:
            raise RewardError(
                f"{self._failures_in_a_row} prompts in a row came back without a verdict "
                f"(learner.max_unscored_in_a_row), the last one: {reason}"
            )
        self._feed.top_up(at)

    def _read_more(self, max_count: int, *, block_s: float) -> bool:
        found = self._runner.run(self._broker.read_groups(max_count, block_s=block_s))
        self._read.extend(_Entry(entry_id, group) for entry_id, group in found)
        return bool(found)

    def _bury_dead(self, taken: dict[str, _Entry], *, at: int) -> None:
        while letters := self._runner.run(
            self._broker.read_dead_letters(after=self._dead_letters_read)
        ):
            for entry_id, letter in letters:
                self._dead_letters_read = entry_id
                if letter.prompt_id in self._feed.outstanding and letter.prompt_id not in taken:
                    self.counters.prompts_dead += 1
                    log.error("prompt given up", extra=letter.model_dump(exclude={"body"}))
                    self._give_up(letter.prompt_id, reason=letter.error, at=at)

    def _reconcile(self, taken: dict[str, _Entry], *, at: int) -> None:
        """Feed again what Redis lost.

        The prompts are listed first: one that is missing there was finished before, so its group or
        dead letter, if Redis still has it, is among those read next.
        """
        unfinished = self._runner.run(self._broker.unfinished_prompts())
        while self._read_more(self._feed.capacity, block_s=0):
            pass
        self._bury_dead(taken, at=at)
        answered = {entry.group.prompt_id for entry in self._read}
        present = unfinished | answered | taken.keys()
        self.counters.prompts_lost += self._feed.refill(present, version=at)


def _missing_verdict(group: ScoredGroup) -> str:
    reasons = [verdict.reason for verdict in group.verdicts if isinstance(verdict, Unscored)]
    return reasons[0] if reasons else f"{len(group.samples)} sample(s), wanted {MIN_SCORED}"
