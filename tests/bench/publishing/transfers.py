"""How fast weights travel: whole against a bare broadcast, deltas against whole.

Each round measures the three one after the other, the order turning by one from round to round;
ratios are those of one round. Between rounds 2 % of the bfloat16 values change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.learner.parallel import Ranks
from tests.bench.publishing.bare import Bare
from tests.bench.publishing.fleet import Fleet, Publish
from tests.bench.publishing.weights import Weights
from tests.bench.spread import Spread

CHANGED = 0.02
WARM_UP = 2
"""Publishes before the clock counts: groups are formed, memory is touched, deltas have a base."""


@dataclass(frozen=True)
class Transfers:
    """Of one number of receivers."""

    receivers: int
    bare_s: Spread
    full_s: Spread
    """Until every digest is verified."""
    full_applied_s: Spread
    """Until every receiver serves the version."""
    delta_s: Spread
    delta_applied_s: Spread
    share_of_bare: Spread
    share_of_bare_applied: Spread
    delta_speedup: Spread
    delta_bytes_ratio: Spread
    """Bytes of a whole version over those of a delta."""
    full_bytes: int
    delta_bytes: int
    pause_ms: Spread
    """Copying from staging into the stand-in's tensors."""


def measure_transfers(*, receivers: int, weights: Weights, ranks: Ranks, repeats: int) -> Transfers:
    """All three, alternating."""
    bare = Bare(receivers, num_bytes=weights.num_bytes, device=ranks.device)

    def fleet(publish: Any) -> Fleet:
        return Fleet(
            weights,
            ranks=ranks,
            replicas=receivers,
            name=f"{publish}{receivers}",
            publish=publish,
        )

    with fleet("full") as full, fleet("delta") as delta:
        found: dict[str, list[Any]] = {"bare": [], "full": [], "delta": []}
        ways: list[tuple[str, Callable[[], Any]]] = [
            ("bare", bare.broadcast),
            ("full", full.publish),
            ("delta", delta.publish),
        ]
        for round_number in range(WARM_UP + repeats):
            weights.change(CHANGED)
            turn = round_number % len(ways)
            for name, way in ways[turn:] + ways[:turn]:
                found[name].append(way())
    bare.close()
    kept = {name: values[WARM_UP:] for name, values in found.items()}
    return _summary(receivers, kept["bare"], kept["full"], kept["delta"])


def _summary(
    receivers: int, bare_s: list[float], full: list[Publish], delta: list[Publish]
) -> Transfers:
    both = list(zip(full, delta, strict=True))
    against = list(zip(bare_s, full, strict=True))
    return Transfers(
        receivers=receivers,
        bare_s=Spread.of(bare_s),
        full_s=Spread.of([item.transfer_s for item in full]),
        full_applied_s=Spread.of([item.publish_s for item in full]),
        delta_s=Spread.of([item.transfer_s for item in delta]),
        delta_applied_s=Spread.of([item.publish_s for item in delta]),
        share_of_bare=Spread.of([b / f.transfer_s for b, f in against]),
        share_of_bare_applied=Spread.of([b / f.publish_s for b, f in against]),
        delta_speedup=Spread.of([f.transfer_s / d.transfer_s for f, d in both]),
        delta_bytes_ratio=Spread.of([f.num_bytes / d.num_bytes for f, d in both]),
        full_bytes=full[-1].num_bytes,
        delta_bytes=delta[-1].num_bytes,
        pause_ms=Spread.of([item.pause_ms for item in full]),
    )
