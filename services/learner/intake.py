"""The sink of the ring: groups stream → fresh `ScoredGroup`s, each prompt once.

Sole judge of staleness. `feed.py` knows which prompts are outstanding, and that is the whole
ledger: a group of any other prompt was trained on before, or belongs to nobody. Groups are
acknowledged only after a checkpoint holds what they taught, so a killed learner that resumes gets
the same groups in the same order and decides the same about each (`train.py`).

A prompt whose answers cannot be used is asked again, a bounded number of times. That number grows
only while other prompts' answers can be used: a grader or a replica that fails at everything costs
no row, it stops the run.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from common.config import Learner
from common.errors import StalledError
from common.messages import Scored, ScoredGroup, Unscored
from common.queue.broker import LEARNER, Broker
from common.queue.ledger import Fate
from services.learner.feed import Feed

log = logging.getLogger(__name__)

POLL_S = 0.5
"""Longest wait for a group between two looks at the rest of the world."""
RECONCILE_EVERY_S = 5.0
"""Without a group for this long, we ask Redis whether it still has our prompts."""
WORD_EVERY_S = 30.0
"""Without a group for this long, the log says what is waited for."""
MIN_SCORED = 2
"""Samples with a reward that a group needs: one alone has nothing to be compared with."""

FaultsOf = Callable[[Sequence[ScoredGroup]], Mapping[str, str]]
"""The groups of a step → what is wrong with those that cannot be trained on, by prompt id."""
Record = Callable[[Fate, str, str], None]
"""(fate, prompt id, reason)."""


class IntakeCounters(BaseModel):
    """What became of the groups, since the start of the run."""

    model_config = ConfigDict(extra="forbid")

    groups_taken: int = 0
    groups_stale: int = 0
    """Too old, dropped; their prompts were fed again."""
    groups_duplicate: int = 0
    """Their prompt was not outstanding: answered twice, or left from another run."""
    groups_unscored: int = 0
    """Fewer than two samples with a reward, dropped; their prompts were fed again."""
    groups_unusable: int = 0
    """Unreadable, cut short, or of other frames than this learner decodes; fed again."""
    samples_unscored: int = 0
    samples_aborted: int = 0
    """Answers that their engine cut short: never trained on, their group is asked again."""
    prompts_dead: int = 0
    """Given up: listed in given_up_rows.jsonl; of dead letters the row is rejected as well."""
    prompts_lost: int = 0
    """Lost by Redis, fed again."""


class Returns(BaseModel):
    """How often the answers to an outstanding prompt could not be used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = 0
    groups_taken: int = -1
    """The counter of that name when they last came back."""


class IntakeState(BaseModel):
    """All an intake remembers; saved with every checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dead_letters_read: str = "0-0"
    """Entry id of the last dead letter that was dealt with."""
    failures_in_a_row: int = 0
    returns: dict[str, Returns] = {}
    """By prompt id."""
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
        settings: Learner,
        state: IntakeState | None = None,
        record: Record = lambda _fate, _prompt_id, _reason: None,
    ) -> None:
        """`record`: told what became of an outstanding prompt, just before it is dealt with."""
        state = state or IntakeState()
        self._broker = broker
        self._feed = feed
        self._record = record
        self._runner = runner
        self._settings = settings
        self._dead_letters_read = state.dead_letters_read
        self._failures_in_a_row = state.failures_in_a_row
        self._returns = dict(state.returns)
        self.counters = state.counters.model_copy()
        self.stalled: StalledError | None = None
        """Why `take` gave nothing though it was not stopped: the run has to end."""
        self._last_fault: str | None = None
        """Why a group could not be used, since the last that could."""
        self.num_taken = 0
        """Of the step that is waited for."""
        self._read: deque[_Entry] = deque()
        """Read and not yet judged, in stream order."""
        self._done: list[str] = []
        """Entry ids of groups taken or dropped, and not acknowledged yet."""
        self._held: set[str] = set()
        """Entry ids of all groups read and not acknowledged."""
        self._outages_seen = -1
        """Of the broker; fewer than it has had: Redis may have lost something."""

    def state(self) -> IntakeState:
        """What a checkpoint keeps."""
        return IntakeState(
            dead_letters_read=self._dead_letters_read,
            failures_in_a_row=self._failures_in_a_row,
            returns=dict(self._returns),
            counters=self.counters.model_copy(),
        )

    def take(
        self,
        count: int,
        *,
        at: int,
        on_idle: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
        faults_of: FaultsOf = lambda groups: {},
    ) -> list[ScoredGroup]:
        """Wait for the groups of one step.

        Args:
            count: groups wanted.
            at: policy version they are trained at; a group's staleness is `at` less the oldest
                version that wrote a token of it, negative after a resume.
            on_idle: called about twice a second while nothing comes.
            should_stop: looked at as often; when true, what was taken so far goes back.
            faults_of: which of the groups of a step cannot be trained on; others take their place.

        Returns:
            `count` groups in stream order; none when stopped, or when the run has `stalled`.
        """
        taken: dict[str, _Entry] = {}
        self._bury_dead(taken, at=at)
        waiting = _Waiting()
        while len(taken) < count or not self._agree(taken, faults_of, at=at):
            if should_stop() or self._has_stalled(waiting):
                self._read.extendleft(reversed(taken.values()))
                return []
            if self._is_in_doubt and not self._read:
                self._reconcile(taken, at=at)
            elif self._read:
                entry = self._read.popleft()
                if self._is_fit(entry, at=at, taken=taken):
                    taken[entry.group.prompt_id] = entry
                    waiting = _Waiting()
            elif self._read_more(count - len(taken), block_s=POLL_S):
                waiting.last_group_s = time.monotonic()
            else:
                self.num_taken = len(taken)
                on_idle()
                self._bury_dead(taken, at=at)
                if waiting.has_lasted(RECONCILE_EVERY_S):
                    self._reconcile(taken, at=at)
                    waiting.last_group_s = time.monotonic()
        return [self._accept(entry) for entry in taken.values()]

    def ahead(self, count: int, *, at: int) -> list[ScoredGroup]:
        """The groups that `take` would give now, without waiting or taking; none if too few."""
        if len(self._read) < count:
            self._read_more(count - len(self._read), block_s=0)
        likely = [
            entry.group
            for entry in self._read
            if entry.group.prompt_id in self._feed.outstanding
            and self._staleness(entry.group, at=at) <= self._settings.max_staleness
        ]
        return likely[:count] if len(likely) >= count else []

    @property
    def done(self) -> tuple[str, ...]:
        """Entry ids of groups taken or dropped so far: what a checkpoint of now contains."""
        return tuple(self._done)

    def acknowledge(self, contained: Sequence[str]) -> None:
        """Delete from Redis what a whole checkpoint contains: `done`, as it was then."""
        self._runner.run(self._broker.acknowledge_groups(contained))
        self._held.difference_update(contained)
        self._done = [entry_id for entry_id in self._done if entry_id in self._held]

    @property
    def _is_in_doubt(self) -> bool:
        """Whether Redis may not have all our prompts: at the start, after an outage, or when it
        refused a number."""
        return self._outages_seen != self._broker.num_outages or self._feed.was_refused

    def _agree(self, taken: dict[str, _Entry], faults_of: FaultsOf, *, at: int) -> bool:
        """Whether all groups of a step can be trained on; those that cannot are dropped."""
        faults = faults_of([entry.group for entry in taken.values()])
        for prompt_id, fault in faults.items():
            self._refuse(taken.pop(prompt_id), fault, at=at)
        return not faults

    def _accept(self, entry: _Entry) -> ScoredGroup:
        prompt_id = entry.group.prompt_id
        self._feed.consumed(prompt_id)
        self._returns.pop(prompt_id, None)
        self._done.append(entry.entry_id)
        self._failures_in_a_row = 0
        self._last_fault = None
        self.counters.groups_taken += 1
        return entry.group

    def _is_fit(self, entry: _Entry, *, at: int, taken: dict[str, _Entry]) -> bool:
        """Judge a group; one that is dropped is counted and its prompt dealt with."""
        group = entry.group
        if group.prompt_id in taken or group.prompt_id not in self._feed.outstanding:
            self.counters.groups_duplicate += 1
            fault = "duplicate"
        elif (staleness := self._staleness(group, at=at)) > self._settings.max_staleness:
            self.counters.groups_stale += 1
            fault = f"stale by {staleness} steps"
            if not self._was_asked_again(group):
                self._record("stale", group.prompt_id, fault)
                self._feed.refeed(group.prompt_id, version=at)
        elif aborted := sum(sample.finish_reason == "abort" for sample in group.samples):
            self.counters.samples_aborted += aborted
            self._refuse(entry, "the engine cut answers short", at=at)
            return False
        elif not self._has_verdicts(group):
            self.counters.groups_unscored += 1
            fault = _missing_verdict(group)
            self._ask_again(group, reason=fault, at=at)
        else:
            return True
        self._done.append(entry.entry_id)
        log.info("group dropped", extra={"prompt_id": group.prompt_id, "reason": fault})
        return False

    def _refuse(self, entry: _Entry, fault: str, *, at: int) -> None:
        """A group that cannot be trained on: kept as a dead letter, its prompt asked again."""
        group = entry.group
        self._done.append(entry.entry_id)
        self.counters.groups_unusable += 1
        log.error(
            "group cannot be used",
            extra={"prompt_id": group.prompt_id, "replica": group.replica, "error": fault},
        )
        self._runner.run(self._broker.report_unusable(group, fault))
        self._count_failure(fault)
        self._ask_again(group, reason=fault, at=at)

    def _staleness(self, group: ScoredGroup, *, at: int) -> int:
        return 0 if group.oldest_version is None else at - group.oldest_version

    def _has_verdicts(self, group: ScoredGroup) -> bool:
        num_scored = sum(isinstance(verdict, Scored) for verdict in group.verdicts)
        self.counters.samples_unscored += len(group.verdicts) - num_scored
        return num_scored >= MIN_SCORED

    def _was_asked_again(self, group: ScoredGroup) -> bool:
        """Whether a later request of the same prompt is on its way."""
        return 0 < group.sequence < self._feed.sequence_of(group.prompt_id)

    def _ask_again(self, group: ScoredGroup, *, reason: str, at: int) -> None:
        if not self._was_asked_again(group):
            self._return(group.prompt_id, reason=reason, replica=group.replica, at=at)

    def _return(self, prompt_id: str, *, reason: str, replica: str, at: int) -> None:
        """Ask an outstanding prompt again; too often while others can be used: give it up."""
        self._last_fault = reason
        before = self._returns.get(prompt_id, Returns())
        count = before.count + (self.counters.groups_taken > before.groups_taken)
        if count >= self._settings.max_returns:
            reason = f"unusable {count} times (learner.max_returns), the last time: {reason}"
            self._give_up(prompt_id, reason=reason, replica=replica, at=at)
            return
        self._record("returned", prompt_id, reason)
        self._returns[prompt_id] = Returns(count=count, groups_taken=self.counters.groups_taken)
        self._feed.refeed(prompt_id, version=at)

    def _give_up(
        self, prompt_id: str, *, reason: str, replica: str, at: int, is_dead: bool = False
    ) -> None:
        """Another prompt takes this one's place, or the next step would wait for it forever.

        `is_dead`: replicas gave it up, and would again; else its row is asked in later epochs.
        """
        self._record("dead", prompt_id, reason)
        end = self._feed.bury if is_dead else self._feed.give_up
        end(prompt_id, reason=reason, replica=replica)
        self._returns.pop(prompt_id, None)
        self.counters.prompts_dead += 1
        self._feed.top_up(at)

    def _count_failure(self, reason: str) -> None:
        self._failures_in_a_row += 1
        self._last_fault = reason
        if self._failures_in_a_row >= self._settings.max_unusable_in_a_row:
            self.stalled = StalledError(
                f"{self._failures_in_a_row} groups and prompts in a row could not be used "
                f"(learner.max_unusable_in_a_row), the last one: {reason}"
            )

    def _read_more(self, max_count: int, *, block_s: float) -> bool:
        found = self._runner.run(self._broker.read_groups(max_count, block_s=block_s))
        for entry_id, group in found:
            if entry_id not in self._held:
                self._held.add(entry_id)
                self._read.append(_Entry(entry_id, group))
        return bool(found)

    def _bury_dead(self, taken: dict[str, _Entry], *, at: int) -> None:
        while letters := self._runner.run(
            self._broker.read_dead_letters(after=self._dead_letters_read)
        ):
            for entry_id, letter in letters:
                self._dead_letters_read = entry_id
                prompt_id, replica = letter.prompt_id, letter.replica
                if prompt_id not in self._feed.outstanding or prompt_id in taken:
                    continue
                if letter.attempts > 0:
                    self._count_failure(letter.error)
                    self._give_up(
                        prompt_id, reason=letter.error, replica=replica, at=at, is_dead=True
                    )
                elif replica == LEARNER:  # unreadable; the others were dealt with when we refused
                    self.counters.groups_unusable += 1
                    self._count_failure(letter.error)
                    self._return(prompt_id, reason=letter.error, replica=replica, at=at)

    def _reconcile(self, taken: dict[str, _Entry], *, at: int) -> None:
        """Feed again what Redis lost.

        The prompts are listed first: one that is missing there was finished before, so its group or
        dead letter, if Redis still has it, is among those read next.
        """
        if self._outages_seen != self._broker.num_outages:
            self._outages_seen = self._broker.num_outages
            self._broker.read_again()  # an acknowledgement may be among what was lost
        asked = {key: self._feed.sequence_of(key) for key in self._feed.outstanding}
        unfinished = self._runner.run(self._broker.unfinished_prompts())
        while self._read_more(self._feed.capacity, block_s=0):
            pass
        self._bury_dead(taken, at=at)
        answered = {entry.group.prompt_id for entry in self._read}
        asked_since = {
            key for key in self._feed.outstanding if self._feed.sequence_of(key) != asked.get(key)
        }
        present = unfinished | answered | taken.keys() | asked_since
        for lost in [key for key in self._feed.outstanding if key not in present]:
            self._record("refed", lost, "lost by Redis")
        self.counters.prompts_lost += self._feed.refill(present, version=at)

    def _has_stalled(self, waiting: "_Waiting") -> bool:
        """Whether the run has to end; says now and then what is waited for."""
        if self.stalled is not None or not waiting.wants_a_word():
            return self.stalled is not None
        troubles = self._runner.run(self._broker.troubles())
        log.warning(
            "no group that can be used",
            extra={
                "waited_s": round(waiting.lasted_s),
                "num_prompts": len(self._feed.outstanding),
                "troubles": dict(troubles),
                "last_fault": self._last_fault,
            },
        )
        reason = self._last_fault or next(iter(troubles.values()), None)
        limit_s = self._settings.max_without_verdict_s
        if reason is not None and waiting.lasted_s >= limit_s:
            self.stalled = StalledError(
                f"no answers with verdicts for {waiting.lasted_s:.0f} s "
                f"(learner.max_without_verdict_s = {limit_s:.0f}): {reason}"
            )
        return self.stalled is not None


class _Waiting:
    """Time since the last group that could be used."""

    def __init__(self) -> None:
        self._since_s = self.last_group_s = time.monotonic()
        self._next_word_s = self._since_s + WORD_EVERY_S

    @property
    def lasted_s(self) -> float:
        """Since then."""
        return time.monotonic() - self._since_s

    def has_lasted(self, silence_s: float) -> bool:
        """Whether no group at all came for that long."""
        return time.monotonic() - self.last_group_s >= silence_s

    def wants_a_word(self) -> bool:
        """Once every `WORD_EVERY_S`."""
        if time.monotonic() < self._next_word_s:
            return False
        self._next_word_s = time.monotonic() + WORD_EVERY_S
        return True


def _missing_verdict(group: ScoredGroup) -> str:
    reasons = [verdict.reason for verdict in group.verdicts if isinstance(verdict, Unscored)]
    return reasons[0] if reasons else f"{len(group.samples)} sample(s), wanted {MIN_SCORED}"
