"""Receivers of the benchmark: processes of their own, and how the learner reaches them.

The replica's own receiver and link; a Unix socket carries what the learner asks, without HTTP.
"""

import asyncio
import logging
import signal
import time
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from torch import Tensor

from common.errors import GroupError, WeightError
from common.messages import HeldWeights, ReplicaStatus
from common.weights.messages import JoinWeightGroup, LeaveWeightGroup, UpdateWeights
from common.weights.receiver import Receiver
from services.learner.publishing.membership import PeerError
from services.rollout.receiving.link import Action, WorkerLinks
from services.rollout.receiving.worker import serve_link
from tests.bench.publishing.bare import be_a_host_of_its_own

LEAVE_S = 1.5


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
