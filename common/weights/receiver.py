"""The receiving end of one process: a group, two staging areas, and what stands complete in them.

    receiver.join(request, worker=0); held = receiver.receive(update); receiver.views()

A replica's vLLM worker has one; so have tests and benchmarks, without vLLM. `join` and `receive`
run in threads that may be left behind: `abandon` (from any other thread) makes them fail at once.
The model is not touched here.
"""

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from common.errors import GroupError, WeightError
from common.messages import HeldWeights
from common.weights.group import WeightGroup, backend_of, side_stream, versions
from common.weights.layout import Layout
from common.weights.messages import JoinWeightGroup, UpdateWeights, WeightStream
from common.weights.staging import Place, Staging
from common.weights.store import connect_store
from common.weights.stream import layout_of, receive

REHEARSAL_BYTES = 2**16
GIVEN_UP = "given up: the learner began anew"


class Receiver:
    """Receives whole, verified streams; the old ones' model keeps serving meanwhile."""

    def __init__(self, device: torch.device, *, place: Place, reserve_bytes: int = 0) -> None:
        """Nothing is joined yet.

        Args:
            device: where buckets land.
            place: where they stay.
            reserve_bytes: allocated on the device at once, so that who measures its free memory
                counts the staging in.

        Raises:
            torch.OutOfMemoryError: the device has no room.
        """
        self._device, self._place = device, place
        self._stream = side_stream(device)
        self._reserved = torch.empty(reserve_bytes, dtype=torch.uint8, device=device)
        self._lock = threading.Lock()
        self._group: WeightGroup | None = None
        self._generation = (0, 0)
        self._joins = 0
        """Counted, so that a join which was given up does not come true later."""
        self._frozen: Staging | None = None
        self._trained: Staging | None = None
        self._held = HeldWeights()

    @property
    def held(self) -> HeldWeights:
        """Digests of what stands complete in staging."""
        return self._held

    def join(self, request: JoinWeightGroup, *, worker: int) -> None:
        """Leave the current group and become a member of another; a rehearsal leaves nothing.

        Args:
            request: from the learner.
            worker: this process among the replica's workers.

        Raises:
            WeightError: other libraries, no way to the learner, or a member is missing.
        """
        self._refuse_unlike(request)
        if not request.rehearsal:
            self.abandon()
        turn = self._joins
        group = self._meet(request, worker)
        if request.rehearsal:
            self._rehearse(group)
            return
        with self._lock:
            if turn == self._joins:
                self._group, self._generation = group, (request.epoch, request.generation)
                return
        group.close()
        raise GroupError(GIVEN_UP)

    def receive(self, update: UpdateWeights) -> HeldWeights:
        """Receive one version's streams and verify them.

        Returns:
            What is held now.

        Raises:
            WeightError: not in that group, not what deltas count from, the transfer broke, or a
                digest differs. What was being written is lost, the rest is still held.
            torch.OutOfMemoryError: no room for staging.
        """
        group = self._group
        if group is None or self._generation != (update.epoch, update.generation):
            raise GroupError(
                f"found epoch and generation {self._generation}, wanted "
                f"{(update.epoch, update.generation)}: join first"
            )
        self._refuse_other_base(update)
        try:
            with self._on_device():
                self._receive(group, update)
        except WeightError:
            self._leave_behind(group)
            raise
        return self._held

    def _receive(self, group: WeightGroup, update: UpdateWeights) -> None:
        if update.frozen is not None:
            with self._still_in(group):
                self._held = HeldWeights(trained=self._held.trained)
            frozen = self._room(self._frozen, update.frozen, before=0)
            with self._still_in(group):
                self._frozen = frozen
            digest = receive(group, update.frozen, frozen, device=self._device)
            with self._still_in(group):
                self._held = HeldWeights(frozen=digest, trained=self._held.trained)
        with self._still_in(group):
            self._held = HeldWeights(frozen=self._held.frozen)
        before = self._frozen.layout.num_bytes if self._frozen else 0
        trained = self._room(self._trained, update.trained, before=before)
        with self._still_in(group):
            self._trained = trained
        digest = receive(group, update.trained, trained, device=self._device)
        with self._still_in(group):
            self._held = HeldWeights(frozen=self._held.frozen, trained=digest)

    @contextlib.contextmanager
    def _still_in(self, group: WeightGroup) -> Iterator[None]:
        """A thread that was left behind changes nothing: another transfer may be under way."""
        with self._lock:
            if self._group is not group:
                raise GroupError(GIVEN_UP)
            yield

    def abandon(self) -> None:
        """Leave the group; whoever waits in it gets an error at once. What is held stays."""
        with self._lock:
            group, self._group = self._group, None
            self._joins += 1
            self._forget_written(group)
        if group is not None:
            group.close()

    def views(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that is held, by name: views into staging.

        Raises:
            WeightError: they are not complete.
        """
        frozen, trained = self._frozen, self._trained
        if frozen is None or trained is None or None in (self._held.frozen, self._held.trained):
            raise WeightError("no complete weights: receive before apply")
        for staging in (frozen, trained):
            yield from staging.layout.views(staging.stream_N)

    def trained_names(self) -> list[str]:
        """Of those, the ones that come with each version."""
        return [item.name for item in self._trained.layout.slices] if self._trained else []

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """Work of this thread goes to the device on a stream of its own, and is done at the end."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
            self._stream.synchronize()

    def _rehearse(self, group: WeightGroup) -> None:
        try:
            group.broadcast(torch.empty(REHEARSAL_BYTES, dtype=torch.uint8, device=self._device))
        finally:
            group.close()

    def _meet(self, request: JoinWeightGroup, worker: int) -> WeightGroup:
        store = connect_store(
            request.host, port=request.port, secret=request.secret, timeout_s=request.timeout_s
        )
        return WeightGroup.join(
            store,
            host=request.host,
            port=request.port,
            rank=request.first_rank + worker,
            world_size=request.world_size,
            device=self._device,
            timeout_s=request.timeout_s,
            deadline_s=request.deadline_s,
        )

    def _refuse_unlike(self, request: JoinWeightGroup) -> None:
        found = (request.backend, request.versions)
        ours = (backend_of(self._device), versions(self._device))
        if found != ours:
            raise WeightError(
                f"the learner speaks {found[0]} ({found[1]}), this replica {ours[0]} ({ours[1]}): "
                "learner.device and rollout.device have to agree, and so have the installed torch "
                "packages (deploy/locks)"
            )

    def _refuse_other_base(self, update: UpdateWeights) -> None:
        for name, wanted in update.base:
            found = getattr(self._held, name)
            if wanted is not None and found != wanted:
                raise WeightError(
                    f"holds {name} weights {str(found)[:12]}, wanted {wanted[:12]} as the base: "
                    "send them whole"
                )

    def _room(self, old: Staging | None, stream: WeightStream, *, before: int) -> Staging:
        """The same staging if it fits; else a new one, in the reserved memory where that has room.

        `before`: bytes of the reserved memory that the other stream takes.
        """
        layout = layout_of(stream)
        if old is not None and old.layout == layout:
            return old
        return Staging(
            layout, device=self._device, place=self._place, memory=self._cut(layout, before)
        )

    def _cut(self, layout: Layout, before: int) -> Tensor | None:
        part = self._reserved[before : before + layout.num_bytes]
        return part if part.numel() == layout.num_bytes else None

    def _leave_behind(self, group: WeightGroup) -> None:
        with self._lock:
            if self._group is group:
                self._group = None
                self._forget_written(group)
        group.close()

    def _forget_written(self, group: WeightGroup | None) -> None:
        """An operation of gloo that was given up may still write: its memory is not used again."""
        if group is not None and group.backend == "gloo":
            if self._held.frozen is None:
                self._frozen = None
            if self._held.trained is None:
                self._trained = None
