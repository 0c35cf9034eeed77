"""What a replica costs the others that dies, or freezes, in the middle of a broadcast.

Three receivers, slowed down so that 64 MiB in 16 buckets take long enough to be hit. Once a version
has arrived, the next one is published and at a random moment of its transfer one receiver gets
SIGKILL or SIGSTOP. The time counts from there until the two others serve that version.
"""

import random
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from services.learner.parallel import Ranks
from tests.bench.publishing.fleet import Fleet
from tests.bench.publishing.weights import Weights
from tests.bench.spread import Spread
from tests.fixtures.weights.weight_fleet import StandIn

RECEIVERS = 3
NUM_BUCKETS = 16
SLOW_S = 0.01
"""Longer for each bucket at each receiver."""
DEADLINE_S = 4.0
"""`learner.publish_timeout_s`; 20 by default."""


@dataclass(frozen=True)
class Faults:
    """Seconds from the event to the next good version on the others."""

    kill_s: Spread
    freeze_s: Spread
    freeze_after_deadline_s: Spread
    """What is left of `freeze_s` after the deadline."""
    deadline_s: float
    undisturbed_s: Spread
    """A publish to all three, for comparison."""


def measure_faults(*, weights: Weights, ranks: Ranks, repeats: int) -> Faults:
    """Both events in turn; who was hit is replaced by a new process."""
    rng = random.Random(0)
    undisturbed_s: list[float] = []
    after_s: dict[signal.Signals, list[float]] = {signal.SIGKILL: [], signal.SIGSTOP: []}
    with Fleet(
        weights,
        ranks=ranks,
        replicas=RECEIVERS,
        name="faults",
        behaviour=f"slow={SLOW_S}",
        bucket_bytes=weights.num_bytes // NUM_BUCKETS,
        deadline_s=DEADLINE_S,
        min_replicas=RECEIVERS - 1,
    ) as fleet:
        for _ in range(repeats):
            for event, found_s in after_s.items():
                fleet.grow(RECEIVERS)
                fleet.publish()  # forms the group
                undisturbed_s.append(fleet.publish().publish_s)
                found_s.append(_hit(fleet, event, at_s=rng.uniform(0.3, 0.6) * undisturbed_s[-1]))
    return Faults(
        kill_s=Spread.of(after_s[signal.SIGKILL]),
        freeze_s=Spread.of(after_s[signal.SIGSTOP]),
        freeze_after_deadline_s=Spread.of([s - DEADLINE_S for s in after_s[signal.SIGSTOP]]),
        deadline_s=DEADLINE_S,
        undisturbed_s=Spread.of(undisturbed_s),
    )


def _hit(fleet: Fleet, event: signal.Signals, *, at_s: float) -> float:
    """Publish and hit one; returns seconds from the event to the others' next version."""
    victim = fleet.receivers[0]
    hit_at_s: list[float] = []

    def hit() -> None:
        hit_at_s.append(time.monotonic())
        victim.signal(event)

    timer = threading.Timer(at_s, hit)
    timer.start()
    fleet.publish()
    done_s = time.monotonic()
    timer.cancel()
    survivors = [receiver for receiver in fleet.receivers if receiver is not victim]
    assert hit_at_s, f"the version was there before the event, after {at_s:.2f} s"
    assert fleet.served() == survivors, "the event came too late: its victim serves the version"
    _assert_good(survivors, fleet.version)
    fleet.end(victim)
    return done_s - hit_at_s[0]


def _assert_good(survivors: Sequence[StandIn], version: int) -> None:
    assert {receiver.status().version for receiver in survivors} == {version}
    digests = [receiver.digests() for receiver in survivors]
    assert all(found == digests[0] for found in digests)
