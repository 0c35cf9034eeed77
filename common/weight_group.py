"""Weights on the wire: one byte stream in fixed buckets, broadcast over a private process group.

The learner sends, replicas receive; both derive the same `Layout` from the list of tensors, so a
transfer is a plain sequence of equal broadcasts and one closing digest. The group is a
torch.distributed backend object of our own (gloo on CPU, nccl on GPUs) on a TCPStore: it never
touches the default group of the process, so it lives beside vLLM's and FSDP's.

B = bytes of one bucket, N = bytes of the whole stream.
"""

import hashlib
import socket
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from common.errors import WeightError
from common.messages import TensorSlice
from common.rest.address import family_of

ALIGNMENT_BYTES = 16
"""Every tensor starts at a multiple of this, so that the stream can be viewed in any dtype."""
DEFAULT_BUCKET_BYTES = 64 * 2**20
DIGEST_BYTES = 32
HASH_THREADS = 4


@dataclass(frozen=True)
class Layout:
    """Where each tensor lies in the byte stream, and how the stream is cut into buckets."""

    slices: tuple[TensorSlice, ...]
    offsets: tuple[int, ...]
    num_bytes: int
    bucket_bytes: int

    @classmethod
    def of(cls, slices: Sequence[TensorSlice], *, bucket_bytes: int) -> "Layout":
        """Lay tensors one behind the other, each aligned."""
        offsets, end = [], 0
        for item in slices:
            offsets.append(end)
            end += -(-num_bytes(item) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return cls(tuple(slices), tuple(offsets), end, bucket_bytes)

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """`(start, end)` bytes of each bucket; the last one may be short."""
        starts = range(0, self.num_bytes, self.bucket_bytes)
        return [(start, min(start + self.bucket_bytes, self.num_bytes)) for start in starts]

    def views(self, stream_N: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Each tensor by name, as a view into `stream_N` ([N] uint8)."""
        for item, offset in zip(self.slices, self.offsets, strict=True):
            raw = stream_N[offset : offset + num_bytes(item)]
            yield item.name, raw.view(getattr(torch, item.dtype)).view(item.shape)


def num_bytes(item: TensorSlice) -> int:
    """Bytes of one tensor, without padding."""
    dtype: torch.dtype = getattr(torch, item.dtype)
    return int(torch.Size(item.shape).numel()) * dtype.itemsize


def describe(name: str, *, shape: Sequence[int], dtype: torch.dtype) -> TensorSlice:
    """The wire description of one tensor."""
    return TensorSlice(name=name, dtype=str(dtype).removeprefix("torch."), shape=tuple(shape))


class StreamDigest:
    """BLAKE2b of the buckets' own BLAKE2b digests, in order.

    Two levels, so that buckets are hashed in threads while the next ones travel: one thread hashes
    about 1 GB/s, less than a fast network brings. A bucket must not change once it was added.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=HASH_THREADS)
        self._digests: list[Future[bytes]] = []

    def add(self, bucket_B: torch.Tensor) -> None:
        """Add one bucket ([B] uint8 on the CPU)."""
        self._digests.append(self._threads.submit(_hash, bucket_B))

    def finish(self) -> bytes:
        """The digest of everything that was added."""
        whole = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for digest in self._digests:
            whole.update(digest.result())
        self._threads.shutdown()
        return whole.digest()


def _hash(bucket_B: torch.Tensor) -> bytes:
    return hashlib.blake2b(bucket_B.numpy().data, digest_size=DIGEST_BYTES).digest()


class WeightGroup:
    """One generation of sender (rank 0) and receivers. Every operation has a deadline."""

    def __init__(self, *, backend: str, group: Any, store: Any, timeout_s: float) -> None:
        self.backend = backend
        self._group = group
        # The store must outlive the group that rendezvoused on it.
        self._store = store
        self._timeout = timedelta(seconds=timeout_s)

    @classmethod
    def join(
        cls, store: Store, *, rank: int, world_size: int, timeout_s: float, device: str
    ) -> "WeightGroup":
        """Rendezvous with the other members over the sender's store.

        Raises:
            WeightError: not all members came before the deadline.
        """
        prefixed = PrefixStore("weights", store)
        make = _nccl_group if device == "cuda" else _gloo_group
        try:
            group = make(prefixed, rank, world_size, timedelta(seconds=timeout_s))
        except (RuntimeError, ValueError) as error:
            raise WeightError(
                f"rank {rank} of {world_size}: the weight group was not complete within "
                f"{timeout_s} s: {error}"
            ) from error
        backend = "nccl" if device == "cuda" else "gloo"
        return cls(backend=backend, group=group, store=store, timeout_s=timeout_s)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Send (rank 0) or receive (others) one tensor in place; returns when it is there.

        Raises:
            WeightError: the deadline passed or a member died.
        """
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        try:
            self._group.broadcast([tensor], options).wait(self._timeout)
            if tensor.is_cuda:
                torch.cuda.current_stream().synchronize()
        except RuntimeError as error:
            raise WeightError(f"weight broadcast over {self.backend} failed: {error}") from error

    def close(self) -> None:
        """Drop the group; pending operations of nccl are aborted, gloo closes its sockets."""
        abort = getattr(self._group, "abort", None)
        if self.backend == "nccl" and abort is not None:
            abort()
        self._group = None
        self._store = None


def open_store(host: str, *, timeout_s: float) -> TCPStore:
    """The sender's store on a free port of `host` (see `.port`)."""
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False)


def connect_store(host: str, *, port: int, timeout_s: float) -> TCPStore:
    """A receiver's connection to the sender's store.

    Raises:
        WeightError: nobody listens there.
    """
    timeout = timedelta(seconds=timeout_s)
    try:
        return TCPStore(host, port, is_master=False, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise WeightError(f"no weight store at {host}:{port} within {timeout_s} s") from error


def _gloo_group(store: Store, rank: int, world_size: int, timeout: timedelta) -> Any:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timeout
    # The address that reaches the store's host is the one that reaches the other members.
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=_own_address(store))]
    return dist.ProcessGroupGloo(store, rank, world_size, options)


def _nccl_group(store: Store, rank: int, world_size: int, timeout: timedelta) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return dist.ProcessGroupNCCL(store, rank, world_size, options)


def _own_address(store: Store) -> str:
    tcp = store.underlying_store if isinstance(store, PrefixStore) else store
    assert isinstance(tcp, TCPStore)
    with socket.socket(family_of(tcp.host), socket.SOCK_DGRAM) as probe:
        probe.connect((tcp.host, tcp.port))  # sends nothing: UDP only picks the route
        return str(probe.getsockname()[0])


def receive(group: WeightGroup, *, layout: Layout, stream_N: torch.Tensor, device: str) -> str:
    """Receive a whole stream into host memory and verify it.

    Args:
        stream_N: [N] uint8 on the CPU; complete and verified when this returns.

    Returns:
        The hex digest, equal to the sender's.

    Raises:
        WeightError: the transfer broke, or the digest differs from the sender's.
    """
    digest = StreamDigest()
    landing_B = torch.empty(
        layout.bucket_bytes if device == "cuda" else 0, dtype=torch.uint8, device=device
    )
    for start, end in layout.buckets:
        target = stream_N[start:end]
        if device == "cuda":
            group.broadcast(landing_B[: end - start])
            target.copy_(landing_B[: end - start])
        else:
            group.broadcast(target)
        digest.add(target)
    sent = torch.empty(DIGEST_BYTES, dtype=torch.uint8, device=device)
    group.broadcast(sent)
    found, wanted = digest.finish().hex(), bytes(sent.cpu().tolist()).hex()
    if wanted != found:
        raise WeightError(f"received digest {found[:12]}, wanted {wanted[:12]}: not applied")
    return wanted


def send(group: WeightGroup, *, buckets: Iterable[torch.Tensor], device: str) -> tuple[str, int]:
    """Broadcast host buckets ([B] uint8 on the CPU, in order), then the digest.

    Returns:
        The hex digest and the number of bytes sent.

    Raises:
        WeightError: the transfer broke.
    """
    digest, sent_bytes = StreamDigest(), 0
    for bucket_B in buckets:
        group.broadcast(bucket_B.to(device) if device == "cuda" else bucket_B)
        digest.add(bucket_B)
        sent_bytes += bucket_B.numel()
    closing = digest.finish()
    group.broadcast(torch.frombuffer(bytearray(closing), dtype=torch.uint8).to(device))
    return closing.hex(), sent_bytes
