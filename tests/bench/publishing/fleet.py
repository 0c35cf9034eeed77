"""The learner's side and the receivers' side of a publish, both real, around a made-up model.

    with Fleet(weights, replicas=3, publish="delta") as fleet: fleet.publish() -> Publish

The sender is the learner's `Publisher`, in this process; a receiver is a replica without vLLM
(`tests.fixtures.weights.weight_replica`), a process each.
"""

import time
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import SecretStr

from common.config import Learner, Shared
from services.learner.parallel import Ranks
from services.learner.publishing.publisher import Publisher
from tests.bench.publishing.weights import Weights
from tests.fixtures.weights.weight_fleet import Fleet as StandIns
from tests.fixtures.weights.weight_fleet import StandIn

TOKEN = "bench"
BUCKET_BYTES = 16 * 2**20
"""What suits two cores best: 8, 32 and the default of 64 MiB were tried."""


@dataclass(frozen=True)
class Publish:
    """One version's way to all replicas."""

    transfer_s: float
    """From the call of `publish` to the moment that the last replica has proven the digest."""
    publish_s: float
    """From the call to its return: all replicas serve the version."""
    pause_ms: float
    """Longest time in which a replica would not generate."""
    num_bytes: int
    """On the wire; a broadcast counts once."""


class Fleet:
    """A learner's publisher and its replicas; leaving it leaves the weight group."""

    def __init__(
        self,
        weights: Weights,
        *,
        ranks: Ranks,
        replicas: int,
        name: str,
        publish: Literal["full", "delta"] = "full",
        behaviour: str = "",
        bucket_bytes: int = BUCKET_BYTES,
        deadline_s: float = 20.0,
        min_replicas: int | None = None,
    ) -> None:
        """Start the replicas; they are up when this returns.

        Args:
            weights: what is published.
            ranks: of this process alone.
            replicas: how many.
            name: of this fleet, in logs.
            publish: as `learner.publish`.
            behaviour: as the stand-in takes it.
            bucket_bytes: as `learner.bucket_bytes`.
            deadline_s: as `learner.publish_timeout_s`.
            min_replicas: as `learner.min_replicas`; None: all of them.
        """
        self._stand_ins = StandIns()
        self._name, self._behaviour = name, behaviour
        self._started = 0
        self.receivers: list[StandIn] = []
        self.grow(replicas)
        self.version = 0
        self._publisher = Publisher(
            weights,  # type: ignore[arg-type]
            shared=Shared.model_construct(token=SecretStr(TOKEN), dtype="bfloat16"),
            learner=Learner.model_validate(
                {
                    "rows": "none.jsonl",
                    "run_dir": "none",
                    "steps": 1,
                    "publish": publish,
                    "overlap_publish": "off",
                    "publish_timeout_s": deadline_s,
                    "bucket_bytes": bucket_bytes,
                    "min_replicas": min_replicas or replicas,
                }
            ),
            ranks=ranks,
            replicas=lambda: list(self._stand_ins.listed),
            run_tag=name,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._publisher.close()
        self._stand_ins.close()

    def grow(self, replicas: int) -> None:
        """Start more of them until there are so many."""
        missing = replicas - len(self.receivers)
        numbers = range(self._started + 1, self._started + missing + 1)
        specs = [f"{self._name}.{number}:{self._behaviour}" for number in numbers]
        self.receivers += self._stand_ins.start(*specs, token=TOKEN)
        self._started += missing

    def end(self, receiver: StandIn) -> None:
        """Kill one, alive or not."""
        self._stand_ins.end(receiver)
        self.receivers.remove(receiver)

    def publish(self) -> Publish:
        """One more version to all replicas."""
        self.version += 1
        started = time.monotonic()
        self._publisher.publish(self.version, step=self.version)
        publish_s = time.monotonic() - started
        figures = self._publisher.figures
        verified_s = [float(receiver.ask("/verified").text) for receiver in self.served()]
        return Publish(
            transfer_s=max(verified_s) - started,
            publish_s=publish_s,
            pause_ms=figures["learner/pause_ms"],
            num_bytes=int(figures["learner/transfer_bytes"]),
        )

    def served(self) -> list[StandIn]:
        """Those who acknowledged the last version."""
        urls = set(self._publisher.member_urls())
        return [receiver for receiver in self.receivers if receiver.url in urls]
