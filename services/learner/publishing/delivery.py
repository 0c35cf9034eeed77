"""Brings a captured version to replicas, whatever some of them do; rank 0, in a thread of its own.

    introduce   who is new proves to know the token and rehearses a group of two
    cohorts     replicas that need the same bytes share a group, and are served one after another
    serve       the group is formed if it is not there, everybody is told, the stream is sent
    failures    who is at fault gets a strike; the others give up at once and are served anew

The first failed answer aborts a transfer; per-bucket deadlines do the rest. Where nobody can be
blamed (two replicas that cannot reach each other, say) the cohort is served in halves. Each round
strikes somebody or halves somebody, so a delivery ends.
"""

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from common.errors import WeightError
from common.messages import HeldWeights, ReplicaStatus
from common.weights.group import WeightGroup, backend_of, side_stream, versions
from common.weights.messages import JoinWeightGroup, LeaveWeightGroup, UpdateWeights
from common.weights.sender import join_as_sender
from common.weights.store import StoreServer
from common.weights.stream import send
from services.learner.publishing.membership import PeerError, Strikes
from services.learner.publishing.snapshot import Snapshot
from services.learner.publishing.together import BrokenError, in_thread, together

if TYPE_CHECKING:  # they bring an HTTP client, which a benchmark on a bare GPU machine lacks
    from services.learner.publishing.peers import Peers

logger = logging.getLogger(__name__)

INTRODUCTIONS_AT_ONCE = 8
MEETING = 2
"""Deadlines that a meeting may take: NCCL cannot be stopped while it makes a communicator."""


@dataclass(frozen=True)
class Parcel:
    """A version under delivery."""

    version: int
    run_tag: str
    frozen: Snapshot
    trained: Snapshot


@dataclass(frozen=True)
class Group:
    """A weight group and the replicas in it."""

    number: int
    group: WeightGroup
    store: StoreServer
    members: tuple[ReplicaStatus, ...]

    def close(self) -> None:
        """Leave it; nobody is waited for."""
        self.group.close()
        self.store.close()


@dataclass
class Outcome:
    """What became of a delivery."""

    version: int
    served: dict[str, ReplicaStatus] = field(default_factory=dict)
    """By name, as each of them answered."""
    failed: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0
    seconds: float = 0.0


class Delivery:
    """Groups, strikes and what each replica holds, over many versions. Lives in one event loop."""

    def __init__(
        self, *, peers: "Peers", host: str, device: torch.device, timeout_s: float, epoch: int
    ) -> None:
        """Nothing is joined yet.

        Args:
            peers: how replicas are reached.
            host: address of this machine that replicas reach.
            device: of the snapshots; decides the backend.
            timeout_s: deadline of meeting, of a bucket and of applying.
            epoch: of this learner's hold on the run.
        """
        self._peers, self._host, self._device = peers, host, device
        self._timeout_s, self._epoch = timeout_s, epoch
        self.strikes = Strikes()
        self._known: dict[str, ReplicaStatus] = {}
        """Introduced, by name, with the last answer: what it holds."""
        self._groups: dict[frozenset[str], Group] = {}
        self._version: int | None = None
        """Of the delivery before."""
        self._numbers = 0

    async def deliver(self, parcel: Parcel, candidates: Sequence[ReplicaStatus]) -> Outcome:
        """Serve everybody who can be served; says who could not."""
        started = time.monotonic()
        outcome = Outcome(parcel.version)
        await in_thread(parcel.frozen.wait_digest)  # a replica may hold them already
        asked = [replica for replica in candidates if not self.strikes.is_out(replica)]
        todo = deque(self._cohorts(await self._introduced(asked, outcome), parcel))
        self._close_unused(todo, version=parcel.version)
        while todo:
            cohort = todo.popleft()
            innocent = await self._serve(cohort, parcel, outcome)
            if len(innocent) == len(cohort) > 1:
                middle = len(innocent) // 2
                logger.warning(
                    "nobody is to blame: served in halves", extra={"replicas": len(innocent)}
                )
                todo.extend([innocent[:middle], innocent[middle:]])
            elif len(innocent) == len(cohort):
                self._fail(innocent[0], "its group of two broke", outcome)
            elif innocent:
                todo.extend(self._cohorts(innocent, parcel))
        outcome.seconds = time.monotonic() - started
        return outcome

    def close(self) -> None:
        """Leave all groups."""
        for group in self._groups.values():
            group.close()
        self._groups.clear()

    # --- who gets what ------------------------------------------------------------------------

    def _cohorts(
        self, replicas: Sequence[ReplicaStatus], parcel: Parcel
    ) -> list[list[ReplicaStatus]]:
        """Replicas that need the same bytes together; those who need least come first."""
        cohorts: defaultdict[tuple[bool, bool], list[ReplicaStatus]] = defaultdict(list)
        for replica in replicas:
            held = self._known[replica.replica].held
            cohorts[self._needs_frozen(held, parcel), not self._takes_deltas(held, parcel)].append(
                replica
            )
        return [cohorts[needs] for needs in sorted(cohorts)]

    def _needs_frozen(self, held: HeldWeights, parcel: Parcel) -> bool:
        return held.frozen is None or held.frozen != parcel.frozen.digest

    def _takes_deltas(self, held: HeldWeights, parcel: Parcel) -> bool:
        return parcel.trained.has_deltas and held.trained == parcel.trained.base

    def _close_unused(self, cohorts: Sequence[Sequence[ReplicaStatus]], *, version: int) -> None:
        """The first delivery of a version is to all who live, later ones are to who lacks it: those
        leave the groups of the others as they are."""
        wanted = {_names(cohort) for cohort in cohorts}
        moved = frozenset[str]().union(*wanted)
        for names in self._groups.keys() - wanted:
            if version != self._version or names & moved:
                self._groups.pop(names).close()
        self._version = version

    # --- introductions ------------------------------------------------------------------------

    async def _introduced(
        self, replicas: Sequence[ReplicaStatus], outcome: Outcome
    ) -> list[ReplicaStatus]:
        """Those who are known, or could be introduced just now."""
        limit = asyncio.Semaphore(INTRODUCTIONS_AT_ONCE)

        async def introduce(replica: ReplicaStatus) -> bool:
            if replica.replica in self._known:
                return True
            async with limit:
                try:
                    await self._peers.vouch(replica)
                    await self._rehearse(replica)
                except WeightError as error:
                    self._fail(replica, str(error), outcome)
                    return False
            self._known[replica.replica] = replica
            return True

        known = await asyncio.gather(*(introduce(replica) for replica in replicas))
        return [replica for replica, is_known in zip(replicas, known, strict=True) if is_known]

    async def _rehearse(self, replica: ReplicaStatus) -> None:
        """A group of the learner and this replica alone: what fails here costs nobody else.

        Raises:
            WeightError: they cannot meet.
        """
        (await self._meet([replica], rehearsal=True)).close()

    # --- one group ----------------------------------------------------------------------------

    async def _serve(
        self, cohort: Sequence[ReplicaStatus], parcel: Parcel, outcome: Outcome
    ) -> list[ReplicaStatus]:
        """Serve a cohort; returns those who failed without being at fault."""
        names = _names(cohort)
        try:
            group = self._groups.pop(names, None) or await self._meet(cohort, rehearsal=False)
        except BrokenError as broken:
            return await self._sort_out(cohort, broken.failures, outcome)
        try:
            answers = await self._transfer(group, parcel, outcome)
        except BrokenError as broken:
            group.close()
            return await self._sort_out(cohort, broken.failures, outcome)
        self._groups[names] = group
        for answer in answers:
            self._known[answer.replica] = answer
            self.strikes.clear(answer)
            outcome.served[answer.replica] = answer
        return []

    async def _meet(self, members: Sequence[ReplicaStatus], *, rehearsal: bool) -> Group:
        """Form a group.

        Raises:
            BrokenError: it did not come together.
        """
        self._numbers += 1
        store = StoreServer(self._host)
        world_size = 1 + sum(member.num_workers for member in members)
        asking, first_rank = {}, 1
        for member in members:
            request = JoinWeightGroup(
                epoch=self._epoch,
                generation=self._numbers,
                host=self._host,
                port=store.port,
                secret=store.secret,
                backend=backend_of(self._device),
                versions=versions(self._device),
                first_rank=first_rank,
                world_size=world_size,
                timeout_s=self._timeout_s,
                deadline_s=self._timeout_s,
                rehearsal=rehearsal,
            )
            first_rank += member.num_workers
            asking[member.replica] = self._peers.join(member, request)
        joining = in_thread(lambda: self._join(store, world_size, rehearsal=rehearsal))
        try:
            group, _ = await together(
                joining, asking, abort=lambda: None, within_s=MEETING * self._timeout_s
            )
        except BrokenError:
            store.close()
            raise
        if not rehearsal:
            logger.info(
                "weight group formed",
                extra={
                    "generation": self._numbers,
                    "world_size": world_size,
                    "backend": group.backend,
                },
            )
        return Group(self._numbers, group, store, tuple(members))

    def _join(self, store: StoreServer, world_size: int, *, rehearsal: bool) -> WeightGroup:
        return join_as_sender(
            store,
            host=self._host,
            world_size=world_size,
            device=self._device,
            timeout_s=self._timeout_s,
            rehearsal=rehearsal,
        )

    async def _transfer(
        self, group: Group, parcel: Parcel, outcome: Outcome
    ) -> list[ReplicaStatus]:
        """Tell the members and send.

        Raises:
            BrokenError: not all of them serve the version.
        """
        held = self._known[group.members[0].replica].held
        deltas = self._takes_deltas(held, parcel)
        frozen = self._needs_frozen(held, parcel)
        request = UpdateWeights(
            epoch=self._epoch,
            generation=group.number,
            version=parcel.version,
            run_tag=parcel.run_tag,
            frozen=parcel.frozen.describe(deltas=False) if frozen else None,
            trained=parcel.trained.describe(deltas=deltas),
            base=HeldWeights(
                frozen=None if frozen else held.frozen, trained=held.trained if deltas else None
            ),
        )
        asking = {m.replica: self._peers.update(m, request) for m in group.members}
        parts = [(parcel.frozen, False)] if frozen else []
        parts.append((parcel.trained, deltas))
        sending = in_thread(lambda: self._send(group.group, parts))
        num_bytes, answers = await together(
            sending, asking, abort=group.group.abort, rest_s=self._timeout_s
        )
        outcome.num_bytes += num_bytes
        return answers

    def _send(self, group: WeightGroup, parts: Sequence[tuple[Snapshot, bool]]) -> int:
        with torch.cuda.stream(side_stream(self._device)):
            return sum(
                send(
                    group,
                    snapshot.buckets(deltas=deltas),
                    deltas=deltas,
                    digest=snapshot.wait_digest,
                    device=self._device,
                )
                for snapshot, deltas in parts
            )

    # --- failures -----------------------------------------------------------------------------

    async def _sort_out(
        self, cohort: Sequence[ReplicaStatus], failures: "dict[str, WeightError]", outcome: Outcome
    ) -> list[ReplicaStatus]:
        """Strike who is at fault; have the others give up at once, and return them."""

        async def judge(replica: ReplicaStatus) -> ReplicaStatus | None:
            error = failures.get(replica.replica)
            if isinstance(error, PeerError) and error.is_own_fault:
                self._fail(replica, str(error), outcome)
                return None
            try:
                status = await self._peers.leave(replica, LeaveWeightGroup(epoch=self._epoch))
            except PeerError as silent:
                self._fail(replica, f"{error or 'no answer'}; {silent}", outcome)
                return None
            self._known[replica.replica] = status
            return replica

        judged = await asyncio.gather(*(judge(replica) for replica in cohort))
        return [replica for replica in judged if replica is not None]

    def _fail(self, replica: ReplicaStatus, reason: str, outcome: Outcome) -> None:
        self._known.pop(replica.replica, None)
        self.strikes.add(replica, reason)
        outcome.failed[replica.replica] = reason


def _names(replicas: Sequence[ReplicaStatus]) -> frozenset[str]:
    """What tells a group from another; a restarted replica has another name."""
    return frozenset(replica.replica for replica in replicas)
