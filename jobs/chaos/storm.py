"""Strikes upon a running demo, one after the other, and how long it takes the run to get over each.

    Ring + strikes -> [Recovery, …], and a demo that was asked to stop and has ended

A run has got over a kill once another process has the victim's place, that process is ready where
it serves (reward, rollout), and the learner has made one more optimizer step after that: groups
that lay in Redis may give a step or two while everything else is down. Seconds count from the
SIGKILL, and those of a process that was frozen from its SIGCONT.
"""

import logging
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import psutil

from common.errors import TempSampError
from jobs.chaos.ring import LISTENING, Ring, send
from jobs.chaos.schedule import Strike

logger = logging.getLogger(__name__)

POLL_S = 0.1
FIRST_STEP_S = 300.0
STUCK_S = 240.0
"""A run that has not got over a strike after this long does not get over it."""
NEVER = 2**62
END_S = 420.0
"""From the word to stop: a checkpoint, and the evaluation of its weights."""


class StormError(TempSampError):
    """The demo ended, or stood still."""


@dataclass
class Recovery:
    """One strike that hit, and what came of it."""

    strike: Strike
    pid: int
    since_s: float
    """Of the monotonic clock: when the victim was killed, or when it went on."""
    steps_when_ready: int | None = None
    took_s: float | None = None
    """None: not yet."""

    def update(self, ring: Ring, *, now_s: float) -> None:
        """Look whether the run has got over it."""
        if self.took_s is not None or now_s < self.since_s:
            return
        if self.steps_when_ready is None:
            if self._is_ready(ring):
                self.steps_when_ready = ring.steps
        elif ring.steps > self.steps_when_ready:
            self.took_s = now_s - self.since_s

    def _is_ready(self, ring: Ring) -> bool:
        victim = self.strike.victim
        if self.strike.is_kill:
            pids = [process.pid for process in ring.find(victim)]
            if self.pid in pids or len(pids) < ring.wanted(victim):
                return False
        return victim not in LISTENING or ring.is_ready(LISTENING[victim])


@dataclass
class Storm:
    """All strikes upon one demo."""

    ring: Ring
    recoveries: list[Recovery] = field(default_factory=list)
    missed: int = 0
    """Strikes whose victim was not there: it was being started again."""
    _reached: int = 0
    """By the run, when it was last struck."""
    _frozen: list[tuple[psutil.Process, float]] = field(default_factory=list)
    """And when each goes on."""

    def rage(self, strikes: Iterable[Strike], *, seconds: float) -> None:
        """Strike for so long from the first step on, and wait until the run has got over all.

        Raises:
            StormError: the demo ended meanwhile, or did not get over a strike.
        """
        self._wait(lambda: self.ring.steps > 0, within_s=FIRST_STEP_S, what=lambda: "a step")
        end_s = time.monotonic() + seconds
        try:
            for strike in strikes:
                if not strike.on_top:
                    self._get_over()
                self._pause(min(strike.pause_s, end_s - time.monotonic()))
                if time.monotonic() >= end_s:
                    break
                self._strike(strike)
            self._get_over()
        finally:
            self._thaw(float("inf"))

    def end(self) -> None:
        """Have the learner stop with a checkpoint, and wait until the demo has ended.

        A replica that is lost while the demo evaluates has it train on: then once more.

        Raises:
            StormError: it did not end in time.
        """
        asked: dict[int, int] = {}
        """Process id of a learner → steps at its first sight, or that it was asked."""
        deadline_s = time.monotonic() + END_S
        while not self.ring.is_over:
            if time.monotonic() > deadline_s:
                raise StormError(f"the demo did not end within {END_S:.0f} s: {self.ring.tail()}")
            self.ring.look()
            learner = next(iter(self.ring.find("learner")), None)
            steps = self.ring.steps
            if (
                learner is not None
                and steps > asked.setdefault(learner.pid, steps)
                and send(learner, signal.SIGTERM)
            ):
                asked[learner.pid] = NEVER
            time.sleep(POLL_S)
        self.ring.look()

    def _strike(self, strike: Strike) -> None:
        found = self.ring.find(strike.victim)
        victim = found[int(strike.which * len(found))] if found else None
        if victim is None or not send(victim, signal.SIGKILL if strike.is_kill else signal.SIGSTOP):
            self.missed += 1
            logger.warning("%d: no %s to strike just now", strike.number, strike.victim)
            return
        self._reached = self.ring.reached
        now_s = time.monotonic()
        if not strike.is_kill:
            self._frozen.append((victim, now_s + strike.frozen_s))
        self.recoveries.append(Recovery(strike, victim.pid, now_s + strike.frozen_s))
        how = "killed" if strike.is_kill else f"frozen for {strike.frozen_s} s"
        step = self.ring.steps
        logger.warning("%d: %s %s, step %d seen", strike.number, strike.victim, how, step)

    def _get_over(self) -> None:
        """Wait for all recoveries, and until the run has got further: a learner that is killed
        again before that is one that gets nowhere, and the demo is right to give it up."""

        def is_over() -> bool:
            recovered = all(recovery.took_s is not None for recovery in self.recoveries)
            return recovered and self.ring.reached > self._reached

        longest_s = max((r.strike.frozen_s for r in self.recoveries), default=0.0)
        self._wait(is_over, within_s=STUCK_S + longest_s, what=self._open)

    def _open(self) -> str:
        names = [r.strike.victim for r in self.recoveries if r.took_s is None]
        if not names:
            return f"a step above {self._reached}"
        return f"a step after {', '.join(names)} was struck"

    def _pause(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self._tick()

    def _wait(
        self, condition: Callable[[], bool], *, within_s: float, what: Callable[[], str]
    ) -> None:
        deadline_s = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline_s:
                raise StormError(f"found no sign of {what()} within {within_s:.0f} s")
            self._tick()

    def _tick(self) -> None:
        self.ring.look()
        if self.ring.is_over:
            raise StormError(f"the demo ended in the storm: {self.ring.tail()}")
        now_s = time.monotonic()
        self._thaw(now_s)
        for recovery in self.recoveries:
            was_open = recovery.took_s is None
            recovery.update(self.ring, now_s=now_s)
            if was_open and recovery.took_s is not None:
                number, victim = recovery.strike.number, recovery.strike.victim
                logger.warning("%d: over %s after %.1f s", number, victim, recovery.took_s)
        time.sleep(POLL_S)

    def _thaw(self, now_s: float) -> None:
        for process, _ in [item for item in self._frozen if item[1] <= now_s]:
            send(process, signal.SIGCONT)
        self._frozen = [item for item in self._frozen if item[1] > now_s]
