"""The learner's side of the benchmark: snapshots, their delivery, and what a publish took."""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from common.errors import WeightError
from services.learner.publishing.delivery import Delivery, Outcome, Parcel
from services.learner.publishing.snapshot import Snapshot
from services.learner.publishing.together import in_thread
from services.rollout.receiving.link import WorkerLinks
from tests.bench.gpu_publishing.receivers import LinkPeers, Member, serve, status_of, synchronize
from tests.bench.publishing.weights import Weights

DEADLINE_S = 5.0
"""`learner.publish_timeout_s`; 20 by default."""


@dataclass(frozen=True)
class Timing:
    """One publish."""

    capture_s: float
    publish_s: float
    """From its begin until the last receiver has verified the digest; capture included."""
    pause_ms: float
    num_bytes: int


class Learner:
    """Snapshots and their delivery to receivers."""

    def __init__(
        self, weights: Weights, *, device: torch.device, bucket_bytes: int, publish: str
    ) -> None:
        ranks: Any = SimpleNamespace(rank=0, world_size=1, is_main=True, device=device)
        frozen = [("frozen", torch.zeros(16, device=device))]

        def snapshot(named: Any, *, deltas: bool) -> Snapshot:
            return Snapshot(
                named,
                dtype=torch.bfloat16,
                bucket_bytes=bucket_bytes,
                ranks=ranks,
                place="device",
                deltas=deltas,
            )

        self._device = device
        self._version = 0
        self.frozen = snapshot(lambda: iter(frozen), deltas=False)
        self.frozen.begin()
        self.frozen.capture()
        self.trained = snapshot(weights.named_weights, deltas=publish == "delta")
        self.peers = LinkPeers()
        self.delivery = Delivery(
            peers=self.peers,  # type: ignore[arg-type]
            host="127.0.0.1",
            device=device,
            timeout_s=DEADLINE_S,
            epoch=1,
        )

    async def start(self, names: Sequence[str]) -> None:
        """Start receivers; they are connected when this returns."""
        context = multiprocessing.get_context("spawn")
        for name in names:
            links = WorkerLinks(1)
            await links.listen()
            times = context.Array("d", 2)
            arguments = (str(links.path), name, self._device, times)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            self.peers.members[name] = Member(process, links, status_of(name), times)
        for name in names:
            await self.peers.members[name].links.call("leave")  # a group that it is not in

    async def publish(self, *to: str) -> tuple[Timing, Outcome]:
        """One version to some, or to all."""
        self._version += 1
        members = [self.peers.members[name] for name in to or self.peers.members]
        synchronize(self._device)
        started = time.monotonic()
        self.trained.begin()
        parcel = Parcel(self._version, "bench", self.frozen, self.trained)
        delivering = asyncio.ensure_future(
            self.delivery.deliver(parcel, [member.status for member in members])
        )
        capture_s = await in_thread(self.capture)
        outcome = await delivering
        served = [self.peers.members[name].times for name in outcome.served]
        if not served:
            raise WeightError(f"nobody was served: {outcome.failed}")
        timing = Timing(
            capture_s=capture_s,
            publish_s=max(times[0] for times in served) - started,
            pause_ms=max(times[1] for times in served),
            num_bytes=outcome.num_bytes,
        )
        return timing, outcome

    def stop(self, name: str) -> None:
        """End a receiver, whatever it does."""
        member = self.peers.members.pop(name)
        member.process.kill()
        member.process.join()
        member.links.close()

    def close(self) -> None:
        """End all."""
        self.delivery.close()
        for name in list(self.peers.members):
            self.stop(name)

    def capture(self) -> float:
        """Seconds; over when the last digest has come from the device."""
        started = time.monotonic()
        self.trained.capture()
        return time.monotonic() - started


@contextlib.asynccontextmanager
async def learner_with(
    names: Sequence[str], weights: Weights, **how: Any
) -> AsyncIterator[Learner]:
    """A learner and receivers that hold a first version."""
    learner = Learner(weights, **how)
    try:
        await learner.start(names)
        await learner.publish()
        yield learner
    finally:
        learner.close()
        await asyncio.sleep(0.1)  # readers of the links find their end
