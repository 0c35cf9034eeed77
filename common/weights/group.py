"""One generation of a weight group: the learner (rank 0) and the workers that receive from it.

    group = WeightGroup.join(store, rank=0, world_size=3, device=..., timeout_s=..., deadline_s=...)
    transfer = group.start(bucket); transfer.wait()
    group.abort()      # from any thread: whoever waits gets an error at once
    group.close()

A torch.distributed backend object of our own (gloo on CPU, nccl on GPUs) that never touches the
default group of the process, so it lives beside vLLM's and FSDP's. Every wait has a deadline of its
own, and what gave up can be left behind: the process stays whole and joins the next generation.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import Tensor
from torch import distributed as dist
from torch._C._distributed_c10d import PrefixStore

from common.errors import GroupError
from common.rest.address import family_of
from common.weights.store import GroupStore

Backend = Literal["gloo", "nccl"]

SLICE = timedelta(milliseconds=50)
"""Longest look away from an abort while gloo waits."""
FIRST_POLL_S, LAST_POLL_S = 20e-6, 500e-6
"""An NCCL transfer is asked for in growing steps: a blocking wait could not be aborted."""
BLOCKING_WAIT = "TORCH_NCCL_BLOCKING_WAIT"
NUM_IN_FLIGHT = 2
"""Transfers under way at once in one direction: the next one travels while one is digested."""


class WeightGroup:
    """Members of one generation; rank 0 sends. See the module."""

    def __init__(
        self, group: Any, store: GroupStore, *, backend: Backend, deadline_s: float
    ) -> None:
        self.backend = backend
        self.deadline_s = deadline_s
        self._group = group
        # The store must outlive the group that rendezvoused on it.
        self._store = store
        self._aborted = threading.Event()

    @classmethod
    def join(
        cls,
        store: GroupStore,
        *,
        host: str,
        port: int,
        rank: int,
        world_size: int,
        device: torch.device,
        timeout_s: float,
        deadline_s: float,
    ) -> "WeightGroup":
        """Meet the other members and exchange a first message, so that no connection is made late.

        Args:
            store: of the sender, as this process reaches it.
            host: where the sender is; the address that reaches it is the one others reach us by.
            port: of the sender's store.
            device: of the buckets; decides the backend.
            timeout_s: for all members to be there.
            deadline_s: of each transfer afterwards.

        Raises:
            GroupError: not all members came in time.
        """
        prefixed = PrefixStore("weights", store)
        timeout = timedelta(seconds=timeout_s)
        group = None
        try:
            if device.type == "cuda":
                # NCCL would wait for a missing member for ever, and could not be stopped.
                _wait_for_all(prefixed, rank, world_size, timeout)
                made = _nccl_group(prefixed, rank, world_size, timeout)
            else:
                made = _gloo_group(prefixed, rank, world_size, timeout, (host, port))
            group = cls(made, store, backend=backend_of(device), deadline_s=timeout_s)
            group.broadcast(torch.zeros(16, dtype=torch.uint8, device=device))
        except (RuntimeError, ValueError, TimeoutError, OSError, GroupError) as error:
            (group or store).close()
            raise GroupError(
                f"rank {rank} of {world_size}: the weight group was not complete within "
                f"{timeout_s} s: {error}"
            ) from error
        group.deadline_s = deadline_s
        return group

    def start(self, tensor: Tensor) -> "Transfer":
        """Begin to send (rank 0) or to receive (others) one tensor in place.

        Raises:
            GroupError: a member died before.
        """
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        # Only for what was left behind: `Transfer.wait` keeps the deadline.
        options.timeout = timedelta(seconds=self.deadline_s * (NUM_IN_FLIGHT + 1))
        try:
            return Transfer(self, self._group.broadcast([tensor], options))
        except (RuntimeError, AttributeError) as error:
            raise GroupError(f"weight broadcast over {self.backend} failed: {error}") from error

    def broadcast(self, tensor: Tensor) -> None:
        """`start`, and wait for it.

        Raises:
            GroupError: as both.
        """
        self.start(tensor).wait()

    @property
    def is_aborted(self) -> bool:
        """Whether `abort` was called."""
        return self._aborted.is_set()

    def abort(self) -> None:
        """Whoever waits for a transfer gets an error at once. The group is of no use afterwards.

        gloo goes on with the operation until its own timeout, in threads of its own: its tensor
        must not be used for anything else.
        """
        if self._aborted.is_set():
            return
        self._aborted.set()
        if self.backend == "nccl" and self._group is not None:
            with contextlib.suppress(RuntimeError):  # it was not done within the group's timeout
                self._group.abort()

    def close(self) -> None:
        """Abort what is under way and drop the group, without waiting for anybody."""
        if self._group is None:
            return
        self._store.close()
        self.abort()
        # gloo's destructor waits for operations that were left behind, without the GIL: it has to
        # run in a thread of its own, which therefore gets the last reference. NCCL's may as well.
        last_reference, self._group = [self._group], None
        threading.Thread(target=last_reference.clear, daemon=True).start()


class Transfer:
    """One broadcast under way."""

    def __init__(self, group: WeightGroup, work: Any) -> None:
        self._group = group
        self._work = work

    def wait(self) -> None:
        """Return when the tensor is sent or there.

        Raises:
            GroupError: the group's deadline passed, a member died, or the group was aborted.
        """
        end = time.monotonic() + self._group.deadline_s
        try:
            if self._group.backend == "gloo":
                self._wait_in_slices(end)
            else:
                self._poll(end)
        except RuntimeError as error:
            raise GroupError(
                f"weight broadcast over {self._group.backend} failed: {error}"
            ) from error

    def _wait_in_slices(self, end: float) -> None:
        while True:
            with contextlib.suppress(RuntimeError):
                self._work.wait(SLICE)
            if self._work.is_completed():
                self._work.wait()  # raises what failed, if anything did
                return
            self._give_up_if_due(end)

    def _poll(self, end: float) -> None:
        pause_s = FIRST_POLL_S
        while not self._work.is_completed():
            self._give_up_if_due(end)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_POLL_S)
        self._work.wait()

    def _give_up_if_due(self, end: float) -> None:
        if self._group.is_aborted:
            raise GroupError("weight broadcast aborted")
        if time.monotonic() > end:
            raise GroupError(
                f"weight broadcast over {self._group.backend} not done within "
                f"{self._group.deadline_s:g} s (learner.publish_timeout_s)"
            )


def backend_of(device: torch.device) -> Backend:
    """nccl between GPUs, gloo otherwise."""
    return "nccl" if device.type == "cuda" else "gloo"


def versions(device: torch.device) -> str:
    """What two members must have in common to understand each other on the wire."""
    if device.type != "cuda":
        return f"gloo of torch {torch.__version__.split('+')[0]}"
    major, minor, *_ = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return f"nccl {major}.{minor}"


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A CUDA stream for transfers, beside the one that computes; None on a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def own_address(host: str, port: int) -> str:
    """The address of this machine that the way to `host` starts from."""
    with socket.socket(family_of(host), socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing: UDP only picks the route
        return str(probe.getsockname()[0])


def _gloo_group(
    store: PrefixStore, rank: int, world_size: int, timeout: timedelta, sender: tuple[str, int]
) -> Any:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timeout
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=own_address(*sender))]
    return dist.ProcessGroupGloo(store, rank, world_size, options)


def _wait_for_all(store: PrefixStore, rank: int, world_size: int, timeout: timedelta) -> None:
    store.set(f"here/{rank}", "1")
    store.wait([f"here/{other}" for other in range(world_size)], timeout)


def _nccl_group(store: PrefixStore, rank: int, world_size: int, timeout: timedelta) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    with _blocking_waits():
        return dist.ProcessGroupNCCL(store, rank, world_size, options)


@contextlib.contextmanager
def _blocking_waits() -> Iterator[None]:
    """ProcessGroupNCCL reads this in its constructor, so FSDP's groups keep what they have.

    With it PyTorch starts no watchdog for the group. The watchdog would abort from a thread of its
    own, and take down the process, when a member dies; without it abort works and the process lives
    (three processes on an H200).
    """
    before = os.environ.get(BLOCKING_WAIT)
    os.environ[BLOCKING_WAIT] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[BLOCKING_WAIT]
        else:
            os.environ[BLOCKING_WAIT] = before
