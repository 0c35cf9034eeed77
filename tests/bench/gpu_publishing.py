"""The weight path over NCCL, on one GPU: `python -m tests.bench.gpu_publishing [--tiny]` → table.

The learner's snapshot and delivery and the replica's receiver, in two and three processes of one
card: each counts as a host of its own, so they meet over loopback sockets. Shapes of a 4B model in
bfloat16; 60 GB of GPU memory.

    whole, delta    seconds of capture and until the digest is verified, beside a bare broadcast
    pause           copying from the device staging into the model
    killed, frozen  one of two receivers, in mid-broadcast: until the other has the next version

Needs torch, numpy, pydantic and xxhash; neither vLLM nor Redis, no network, and no HTTP: a Unix
socket carries what the learner asks. `--tiny` tries all of it on the CPU, over gloo, in seconds.
"""

import argparse
import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from common.errors import GroupError, WeightError
from common.messages import HeldWeights, ReplicaStatus
from common.weights.layout import DEFAULT_BUCKET_BYTES
from common.weights.messages import JoinWeightGroup, LeaveWeightGroup, UpdateWeights
from common.weights.receiver import Receiver
from services.learner.publishing.delivery import Delivery, Outcome, Parcel, in_thread
from services.learner.publishing.membership import PeerError
from services.learner.publishing.snapshot import Snapshot
from services.rollout.weight_link import Action, WorkerLinks
from services.rollout.weight_worker import serve_link
from tests.bench.publishing.bare import Bare, be_a_host_of_its_own
from tests.bench.publishing.weights import Weights, megabytes

LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 36, 2560, 9728, 151_936
"""Of Qwen3-VL-4B's language model."""
CHANGED = 0.02
DEADLINE_S = 5.0
LEAVE_S = 1.5
WARM_UP = 1
TINY_MB, TINY_BUCKET_BYTES = 128, 2**20


def shapes_4b() -> list[tuple[int, ...]]:
    """4.0 G values."""
    layer = [
        *((4096, HIDDEN), (1024, HIDDEN), (1024, HIDDEN), (HIDDEN, 4096)),
        *((INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)),
        *((HIDDEN,), (HIDDEN,), (128,), (128,)),
    ]
    return [(VOCABULARY, HIDDEN), *layer * LAYERS, (HIDDEN,)]


# --- a receiver's process -------------------------------------------------------------------------


class Applying(Receiver):
    """Applies what it has received, and notes when, and how long that took."""

    def __init__(self, device: torch.device, times: Any) -> None:
        super().__init__(device, place="device")
        self._times = times
        self._model: dict[str, Tensor] = {}

    def receive(self, update: UpdateWeights) -> HeldWeights:
        held = super().receive(update)
        verified_s = time.monotonic()
        views = dict(self.views())
        if self._model.keys() != views.keys():
            self._model = {name: torch.empty_like(view) for name, view in views.items()}
        synchronize(self._device)
        started = time.monotonic()
        torch._foreach_copy_(list(self._model.values()), list(views.values()))
        synchronize(self._device)
        self._times[:] = [verified_s, 1000 * (time.monotonic() - started)]
        return held


def serve(path: str, name: str, device: torch.device, times: Any) -> None:
    """Main of a receiver: does what the link asks until it is killed."""
    be_a_host_of_its_own(name)
    logging.disable()
    serve_link(path, worker=0, receiver=Applying(device, times))
    signal.pause()


def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize()


# --- the learner's side ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A receiver as the learner sees it."""

    process: SpawnProcess
    links: WorkerLinks
    status: ReplicaStatus
    times: Any
    """When it verified the last version (monotonic, s), and its pause (ms)."""


class LinkPeers:
    """What `Delivery` asks of replicas, without HTTP."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}

    async def vouch(self, replica: ReplicaStatus) -> None:
        """They are our own children."""

    async def join(self, replica: ReplicaStatus, request: JoinWeightGroup) -> ReplicaStatus:
        """As `Peers.join`."""
        return await self._call(replica, "join", request, timeout_s=None)

    async def update(self, replica: ReplicaStatus, request: UpdateWeights) -> ReplicaStatus:
        """As `Peers.update`."""
        return await self._call(replica, "receive", request, timeout_s=None)

    async def leave(self, replica: ReplicaStatus, request: LeaveWeightGroup) -> ReplicaStatus:
        """As `Peers.leave`."""
        return await self._call(replica, "leave", request, timeout_s=LEAVE_S)

    async def _call(
        self, replica: ReplicaStatus, action: Action, body: Any, *, timeout_s: float | None
    ) -> ReplicaStatus:
        member = self.members[replica.replica]
        try:
            held = await asyncio.wait_for(member.links.call(action, body), timeout_s)
        except (WeightError, OSError, TimeoutError) as error:
            raise PeerError(
                f"{action}: {error!r}", is_own_fault=not isinstance(error, GroupError)
            ) from error
        return replica.model_copy(update={"held": held, "pause_ms": member.times[1]})


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
        self._version = 0

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

    async def publish(self) -> tuple[Timing, Outcome]:
        """One version to all."""
        self._version += 1
        members = self.peers.members.values()
        synchronize(self._device)
        started = time.monotonic()
        self.trained.begin()
        parcel = Parcel(self._version, "bench", self.frozen, self.trained)
        delivering = asyncio.ensure_future(
            self.delivery.deliver(parcel, [member.status for member in members])
        )
        capture_s = await in_thread(self._capture)
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

    def _capture(self) -> float:
        started = time.monotonic()
        self.trained.capture()
        synchronize(self._device)
        return time.monotonic() - started


def status_of(name: str) -> ReplicaStatus:
    """A registry entry."""
    return ReplicaStatus(
        replica=name,
        url=f"http://{name}",
        phase="syncing",
        version=None,
        run_tag=None,
        generation=None,
        num_workers=1,
        completed_groups=0,
        failed_prompts=0,
        generated_tokens=0,
    )


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


# --- what is measured -----------------------------------------------------------------------------


async def measure_transfers(
    weights: Weights, *, device: torch.device, bucket_bytes: int, repeats: int
) -> None:
    """Whole and delta, each alternating with the bare broadcast."""
    for publish in ("full", "delta"):
        bare = Bare(1, num_bytes=weights.num_bytes, device=device)
        found: list[tuple[float, Timing]] = []
        how = {"device": device, "bucket_bytes": bucket_bytes, "publish": publish}
        async with learner_with([publish], weights, **how) as learner:
            for _ in range(WARM_UP + repeats):
                weights.change(CHANGED)
                bare_s = await in_thread(bare.broadcast)
                found.append((bare_s, (await learner.publish())[0]))
        await in_thread(bare.close)
        kept = found[WARM_UP:]
        say(
            publish,
            f"{kept[-1][1].num_bytes / 1e6:,.0f} MB",
            f"capture {spread([item.capture_s for _, item in kept])} s",
            f"publish {spread([item.publish_s for _, item in kept])} s",
            f"bare broadcast of the whole {spread([bare_s for bare_s, _ in kept])} s",
            f"publish - bare {spread([item.publish_s - bare_s for bare_s, item in kept])} s",
            f"pause {spread([item.pause_ms for _, item in kept])} ms",
        )


async def measure_faults(
    weights: Weights, *, device: torch.device, bucket_bytes: int, repeats: int
) -> None:
    """One of two receivers is hit half-way through a broadcast."""
    for event in (signal.SIGKILL, signal.SIGSTOP):
        how = {"device": device, "bucket_bytes": bucket_bytes, "publish": "full"}
        found: list[float] = []
        async with learner_with(["survivor"], weights, **how) as learner:
            for number in range(repeats):
                victim = f"victim{number}"
                await learner.start([victim])
                await learner.publish()  # forms the group of three
                undisturbed, _ = await learner.publish()
                found.append(await _hit(learner, victim, event, undisturbed))
                after, outcome = await learner.publish()
                assert set(outcome.served) == {"survivor"}
        say(
            "killed" if event == signal.SIGKILL else f"frozen, deadline {DEADLINE_S:g} s",
            f"next version at the survivor after {spread(found)} s",
            f"(undisturbed {undisturbed.publish_s:.2f} s); publishes to it alone in "
            f"{after.publish_s:.2f} s afterwards",
        )


async def _hit(learner: Learner, victim: str, event: signal.Signals, undisturbed: Timing) -> float:
    hit_at_s: list[float] = []

    def hit() -> None:
        hit_at_s.append(time.monotonic())
        os.kill(learner.peers.members[victim].process.pid or 0, event)

    timer = asyncio.get_running_loop().call_later(undisturbed.publish_s / 2, hit)
    _, outcome = await learner.publish()
    done_s = time.monotonic()
    timer.cancel()
    assert hit_at_s, "the version was there before the event"
    assert set(outcome.served) == {"survivor"}, f"served: {sorted(outcome.served)}"
    learner.stop(victim)
    return done_s - hit_at_s[0]


def spread(values: Sequence[float]) -> str:
    """Median and extremes."""
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def say(name: str, *parts: str) -> None:
    """A line of the result."""
    sys.stdout.write(f"{name}: {', '.join(parts)}\n")
    sys.stdout.flush()


async def measure(*, tiny: bool, repeats: int) -> None:
    """Everything."""
    device = torch.device("cpu" if tiny else "cuda")
    be_a_host_of_its_own("learner")
    shapes = megabytes(TINY_MB) if tiny else shapes_4b()
    weights = Weights(shapes, device=device)
    bucket_bytes = TINY_BUCKET_BYTES if tiny else DEFAULT_BUCKET_BYTES
    name = "CPU, gloo" if tiny else torch.cuda.get_device_name()
    say(
        "device", f"{name}, torch {torch.__version__}, {weights.num_bytes / 1e9:.2f} GB in bfloat16"
    )
    how = {"device": device, "bucket_bytes": bucket_bytes, "repeats": repeats}
    await measure_transfers(weights, **how)
    await measure_faults(weights, **how)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="on the CPU, over gloo")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        say("bench-gpu", "found no CUDA device, nothing measured (--tiny tries it on the CPU)")
        return
    logging.disable(logging.WARNING)  # receivers are meant to fail
    asyncio.run(measure(tiny=options.tiny, repeats=options.repeats))


if __name__ == "__main__":
    main()
