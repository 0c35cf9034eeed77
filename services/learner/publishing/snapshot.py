"""The policy in wire dtype, as rank 0 keeps it: `capture()` is the only part that all ranks share.

Bucket by bucket, each rank casts and packs the shards it owns (on the device where they are) and
rank 0 puts them in place. What comes out is a whole version: it can be sent to anybody, again and
later, without the other ranks, it is digested where it lies, and it is compared with the version
before for deltas. `begin`, then `capture`; between the two, senders may start to follow it.

B = bytes of one bucket.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.errors import WeightError
from common.weights.delta import encode
from common.weights.digest import bucket_digest, stream_digest
from common.weights.layout import Layout, describe
from common.weights.messages import WeightStream
from common.weights.staging import Place, Staging
from services.learner.publishing import shards

if TYPE_CHECKING:  # it brings transformers, which a benchmark on a bare GPU machine lacks
    from services.learner.parallel import Ranks

COMPARED_AT_ONCE = 2
NamedWeights = Callable[[], Iterator[tuple[str, Tensor]]]
OwnValues = Callable[[Sequence[tuple[str, Tensor]]], Sequence[Tensor]]


class Snapshot:
    """One stream (all frozen or all trained tensors) as it was at the last `capture`.

    Constructed and captured on every rank; only rank 0 holds bytes and may ask for the rest.
    """

    def __init__(
        self,
        weights: NamedWeights,
        *,
        dtype: torch.dtype,
        bucket_bytes: int,
        ranks: "Ranks",
        place: Place,
        deltas: bool,
        values: OwnValues | None = None,
    ) -> None:
        """Allocate on rank 0.

        Args:
            weights: names and (maybe sharded) tensors, in the same order on every rank and call.
            dtype: on the wire.
            bucket_bytes: of one broadcast.
            ranks: all of the learner's.
            place: where the bytes stay.
            deltas: encode at each capture what changed since the one before.
            values: what this rank contributes of each tensor, flat; default: what it holds. Read at
                each capture, on every rank.
        """
        self._values = values or shards.values
        self._weights, self._ranks, self._wants_deltas = weights, ranks, deltas
        tensors = list(weights())
        self.layout = Layout.of(
            [describe(name, shape=tensor.shape, dtype=dtype) for name, tensor in tensors],
            bucket_bytes=bucket_bytes,
        )
        self._parts = shards.parts(
            self.layout, [tensor for _, tensor in tensors], world_size=ranks.world_size
        )
        self._message_B = self._scratch(wanted=ranks.world_size > 1)
        # Comparing takes longer than packing; on a GPU both are queued in order anyway.
        at_once = COMPARED_AT_ONCE if ranks.device.type == "cpu" else 1
        self._scratches = [self._scratch(wanted=ranks.is_main and deltas) for _ in range(at_once)]
        self._pool: Executor = ThreadPoolExecutor(at_once) if at_once > 1 else _Inline()
        self._jobs: dict[int, Future[None]] = {}
        self._staging = (
            Staging(self.layout, device=ranks.device, place=place) if ranks.is_main else None
        )
        self._digests: dict[int, Tensor] = {}
        self._deltas: dict[int, Tensor] = {}
        self._progress = _Progress(on_gpu=ranks.device.type == "cuda")
        self.digest: str | None = None
        """Of the last capture, once it is complete."""
        self.base: str | None = None
        """Of the capture before, which deltas count from."""

    def begin(self) -> None:
        """Forget the last capture, which nobody may be reading; from now on readers can wait."""
        self.base, self.digest = self.digest, None
        self._digests, self._deltas = {}, {}
        self._progress.begin()

    def capture(self) -> None:
        """Take what the parameters are now; a collective.

        Raises:
            WeightError: another rank went away.
        """
        own = self._values(list(self._weights()))
        try:
            for index in range(len(self.layout.buckets)):
                self._take(index, own)
            while self._jobs:
                self._jobs.popitem()[1].result()
        except RuntimeError as error:
            self._progress.fail(error)
            raise WeightError(f"weights could not be gathered: {error}") from error
        if self._staging is not None:
            digests = [self._digests[index] for index in range(len(self.layout.buckets))]
            self.digest = stream_digest(self.layout, digests)
        self._progress.finish()

    @property
    def has_deltas(self) -> bool:
        """Whether the last capture can be told as a difference."""
        return self._wants_deltas and self.base is not None

    def describe(self, *, deltas: bool) -> WeightStream:
        """What `buckets` of the same kind yields."""
        return WeightStream(
            slices=self.layout.slices, bucket_bytes=self.layout.bucket_bytes, deltas=deltas
        )

    def buckets(self, *, deltas: bool) -> Iterator[Tensor]:
        """What travels, in order, each as soon as it is captured; [B] uint8 on the device."""
        assert self._staging is not None
        landings = self._staging.landings()  # those of the staging are the capture's
        for index in range(len(self.layout.buckets)):
            self._progress.wait_for(index)
            delta_E = self._deltas.get(index) if deltas else None
            yield self._staging.load(index, landings) if delta_E is None else delta_E

    def wait_digest(self) -> str:
        """The digest, once the capture is complete."""
        self._progress.wait_for_all()
        assert self.digest is not None
        return self.digest

    def _take(self, index: int, own: Sequence[Tensor]) -> None:
        start, end = self.layout.buckets[index]
        by_rank = dict(self._parts[index])
        mine = by_rank.pop(self._ranks.rank, [])
        if self._staging is None:
            if mine:
                length = shards.pack(self._message_B, own, mine, layout=self.layout, densely=True)
                shards.send_to_main(self._message_B[:length])
            return
        compare = self.has_deltas
        bucket_B = (
            self._free_scratch(index)[: end - start] if compare else self._staging.open(index)
        )
        if _has_gaps(self._parts[index], self.layout, end - start):
            bucket_B.zero_()
        shards.pack(bucket_B, own, mine, layout=self.layout, densely=False)
        shards.collect(bucket_B, by_rank, layout=self.layout, message_B=self._message_B)
        if compare:
            self._jobs[index] = self._pool.submit(self._compare, index, bucket_B)
        else:
            self._kept(index, bucket_B)

    def _compare(self, index: int, bucket_B: Tensor) -> None:
        assert self._staging is not None
        delta_E = _difference(bucket_B, self._staging.load(index))
        if delta_E is not None:
            self._deltas[index] = delta_E
        self._staging.open(index).copy_(bucket_B)
        self._kept(index, bucket_B)

    def _kept(self, index: int, bucket_B: Tensor) -> None:
        assert self._staging is not None
        self._digests[index] = bucket_digest(bucket_B)
        self._staging.keep(index)
        self._progress.step(index)

    def _free_scratch(self, index: int) -> Tensor:
        """Room for one more bucket, once the one that was there before is compared."""
        if (before := self._jobs.pop(index - len(self._scratches), None)) is not None:
            before.result()
        return self._scratches[index % len(self._scratches)]

    def _scratch(self, *, wanted: bool) -> Tensor:
        size = min(self.layout.bucket_bytes, self.layout.num_bytes) if wanted else 0
        return torch.empty(size, dtype=torch.uint8, device=self._ranks.device)


class _Inline(Executor):
    """Does at once what it is given."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class _Progress:
    """How far a capture is, for who follows it from another thread."""

    def __init__(self, *, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._changed = threading.Condition()
        self._events: dict[int, torch.cuda.Event | None] = {}
        self._complete = False
        self._error: Exception | None = None

    def begin(self) -> None:
        with self._changed:
            self._events, self._complete, self._error = {}, False, None

    def step(self, index: int) -> None:
        """A bucket is queued on this thread's stream."""
        event = None
        if self._on_gpu:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        with self._changed:
            self._events[index] = event
            self._changed.notify_all()

    def finish(self) -> None:
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def wait_for(self, index: int) -> None:
        """Until the bucket is there; this thread's stream waits for the one that made it."""
        self._until(lambda: index in self._events)
        if (event := self._events[index]) is not None:
            event.wait()

    def wait_for_all(self) -> None:
        self._until(lambda: self._complete)

    def _until(self, reached: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or reached())
            if self._error is not None:
                raise WeightError(f"the capture broke: {self._error}")


def _has_gaps(by_rank: dict[int, list[shards.Part]], layout: Layout, size: int) -> bool:
    return (
        sum(shards.num_bytes(part, layout) for owned in by_rank.values() for part in owned) < size
    )


def _difference(new_B: Tensor, old_B: Tensor) -> Tensor | None:
    """As `encode`, and an empty tensor where nothing changed."""
    return new_B[:0] if torch.equal(new_B, old_B) else encode(new_B, old_B)
