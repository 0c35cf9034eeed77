"""What is measured: transfers beside a bare broadcast, faults in mid-broadcast, digests alone."""

import asyncio
import os
import signal
import time
from dataclasses import dataclass

import torch

from common.weights.digest import bucket_digest
from services.learner.publishing.together import in_thread
from tests.bench.gpu_publishing.learner import Learner, Timing, learner_with
from tests.bench.gpu_publishing.receivers import synchronize
from tests.bench.publishing.bare import Bare
from tests.bench.publishing.weights import Weights
from tests.bench.spread import Spread

CHANGED = 0.02
WARM_UP = 1


@dataclass(frozen=True)
class Transfer:
    """Whole versions, or deltas, to one receiver."""

    num_bytes: int
    """On the wire."""
    capture_s: Spread
    """While a receiver takes time slices of the same GPU."""
    capture_alone_s: Spread
    """With nothing sent meanwhile."""
    publish_s: Spread
    """Until the receiver has verified the digest; capture included."""
    bare_s: Spread
    """A bare broadcast of the whole version."""
    publish_minus_bare_s: Spread
    pause_ms: Spread
    digest_s: Spread
    """All buckets digested where they lie: part of capturing, and of the receiver's time."""


async def measure_transfer(
    weights: Weights, *, publish: str, device: torch.device, bucket_bytes: int, repeats: int
) -> Transfer:
    """Publishes alternating with bare broadcasts."""
    bare = Bare(1, num_bytes=weights.num_bytes, device=device)
    found: list[tuple[float, Timing]] = []
    how = {"device": device, "bucket_bytes": bucket_bytes, "publish": publish}
    async with learner_with([publish], weights, **how) as learner:
        for _ in range(WARM_UP + repeats):
            weights.change(CHANGED)
            bare_s = await in_thread(bare.broadcast)
            found.append((bare_s, (await learner.publish())[0]))
        digest_s = [_digest_s(learner, device) for _ in range(WARM_UP + repeats)][WARM_UP:]
        alone_s = [
            await in_thread(lambda: _capture_s(learner, weights, device))
            for _ in range(WARM_UP + repeats)
        ][WARM_UP:]
    await in_thread(bare.close)
    kept = found[WARM_UP:]
    return Transfer(
        num_bytes=kept[-1][1].num_bytes,
        capture_s=Spread.of([item.capture_s for _, item in kept]),
        capture_alone_s=Spread.of(alone_s),
        publish_s=Spread.of([item.publish_s for _, item in kept]),
        bare_s=Spread.of([bare_s for bare_s, _ in kept]),
        publish_minus_bare_s=Spread.of([item.publish_s - bare_s for bare_s, item in kept]),
        pause_ms=Spread.of([item.pause_ms for _, item in kept]),
        digest_s=Spread.of(digest_s),
    )


def _digest_s(learner: Learner, device: torch.device) -> float:
    buckets = list(learner.trained.buckets(deltas=False))
    synchronize(device)
    started = time.monotonic()
    for bucket_B in buckets:
        bucket_digest(bucket_B)
    synchronize(device)
    return time.monotonic() - started


def _capture_s(learner: Learner, weights: Weights, device: torch.device) -> float:
    weights.change(CHANGED)
    synchronize(device)
    learner.trained.begin()
    return learner.capture()


@dataclass(frozen=True)
class Fault:
    """One of two receivers is hit half-way through a broadcast, again and again."""

    next_version_s: Spread
    """From the event until the other has the next version."""
    undisturbed_s: float
    """A publish to both."""
    after_s: float
    """A publish to the other alone, at the end."""


async def measure_fault(
    weights: Weights,
    *,
    event: signal.Signals,
    device: torch.device,
    bucket_bytes: int,
    repeats: int,
) -> Fault:
    """Each time another receiver is hit; all of them are started at once, to save time."""
    how = {"device": device, "bucket_bytes": bucket_bytes, "publish": "full"}
    found: list[float] = []
    async with learner_with(["survivor"], weights, **how) as learner:
        victims = [f"victim{number}" for number in range(repeats)]
        await learner.start(victims)
        for victim in victims:
            await learner.publish("survivor", victim)  # forms the group of three
            undisturbed, _ = await learner.publish("survivor", victim)
            found.append(await _hit(learner, victim, event, undisturbed))
        after, outcome = await learner.publish("survivor")
        assert set(outcome.served) == {"survivor"}, f"failed: {outcome.failed}"
    return Fault(Spread.of(found), undisturbed.publish_s, after.publish_s)


async def _hit(learner: Learner, victim: str, event: signal.Signals, undisturbed: Timing) -> float:
    hit_at_s: list[float] = []

    def hit() -> None:
        hit_at_s.append(time.monotonic())
        os.kill(learner.peers.members[victim].process.pid or 0, event)

    timer = asyncio.get_running_loop().call_later(undisturbed.publish_s / 2, hit)
    _, outcome = await learner.publish("survivor", victim)
    done_s = time.monotonic()
    timer.cancel()
    assert hit_at_s, "the version was there before the event"
    assert set(outcome.served) == {"survivor"}, f"found {outcome.served}, failed {outcome.failed}"
    learner.stop(victim)
    return done_s - hit_at_s[0]
