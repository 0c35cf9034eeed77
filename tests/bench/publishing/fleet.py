"""The learner's side and the receivers' side of a publish, both real, around a made-up model.

    with Fleet(children, weights, replicas=3, publish="delta") as fleet: fleet.publish() -> Publish

The sender is the learner's `Publisher`, in this process; a receiver is a replica without vLLM
(`tests.fixtures.weight_replica`), a process each.
"""

import re
import sys
import time
from dataclasses import dataclass
from typing import Literal, Self

import httpx
from pydantic import SecretStr

from common.config import Learner, Shared
from common.messages import ReplicaStatus
from common.weights.layout import DEFAULT_BUCKET_BYTES
from jobs.local.processes import Child, Children
from services.learner.parallel import Ranks
from services.learner.publishing.publisher import Publisher
from tests.bench.publishing.weights import Weights

TOKEN = "bench"
START_TIMEOUT_S = 60.0


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


@dataclass(frozen=True)
class Receiver:
    """A replica's process."""

    child: Child
    status: ReplicaStatus

    def ask(self, path: str) -> httpx.Response:
        """GET, with the token."""
        return httpx.get(
            f"{self.status.url}{path}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10.0
        ).raise_for_status()


class Fleet:
    """A learner's publisher and its replicas; leaving it leaves the weight group."""

    def __init__(
        self,
        children: Children,
        weights: Weights,
        *,
        ranks: Ranks,
        replicas: int,
        name: str,
        publish: Literal["full", "delta"] = "full",
        behaviour: str = "",
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        deadline_s: float = 20.0,
        min_replicas: int | None = None,
    ) -> None:
        """Start the replicas; they are up when this returns.

        Args:
            children: owns the processes.
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
        self._children, self._name, self._behaviour = children, name, behaviour
        self._started = 0
        self.receivers: list[Receiver] = []
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
            replicas=lambda: [receiver.status for receiver in self.receivers],
            run_tag=name,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._publisher.close()
        for receiver in self.receivers:
            self.end(receiver)

    def grow(self, replicas: int) -> None:
        """Start more of them until there are so many."""
        new = [self._start() for _ in range(replicas - len(self.receivers))]
        self.receivers += [_up(child) for child in new]

    def end(self, receiver: Receiver) -> None:
        """Kill one that is alive, or not."""
        self._children.unwatch(receiver.child)
        receiver.child.process.kill()
        receiver.child.process.wait()

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

    def served(self) -> list[Receiver]:
        """Those who acknowledged the last version."""
        urls = set(self._publisher.member_urls())
        return [receiver for receiver in self.receivers if receiver.status.url in urls]

    def _start(self) -> Child:
        self._started += 1
        name = f"{self._name}.{self._started}"
        command = [sys.executable, "-m", "tests.fixtures.weight_replica", name, self._behaviour]
        return self._children.start(name, command, environ={"TEMPSAMP_TOKEN": TOKEN})


def _up(child: Child) -> Receiver:
    """Wait until it has said its port."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and child.process.poll() is None:
        found = re.search(r"^\d+ (\d+)$", child.log.read_text(), re.MULTILINE)
        if found is not None:
            url = f"http://127.0.0.1:{found[1]}"
            answer = _first_answer(f"{url}/v1/weights", deadline)
            return Receiver(child, ReplicaStatus.model_validate_json(answer.content))
        time.sleep(0.05)
    raise AssertionError(f"{child.name} did not start within {START_TIMEOUT_S} s:\n{child.tail}")


def _first_answer(url: str, deadline: float) -> httpx.Response:
    while True:
        try:
            return httpx.get(
                url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10.0
            ).raise_for_status()
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
