"""What a publish is compared with: the same bytes in a plain process group, and nothing else.

    bare = Bare(num_receivers, num_bytes, device); bare.broadcast() -> seconds; bare.close()

Gloo on a CPU, NCCL on a GPU; memory touched beforehand, buckets of 64 MiB with two in flight, as
many processes as a publish has. The clock stops when the last receiver has said that it has all.
"""

import multiprocessing
import os
import time
from collections import deque
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from common.weights.layout import DEFAULT_BUCKET_BYTES

TIMEOUT = timedelta(minutes=30)
"""Receivers wait for the next round while other things are measured."""


class Bare:
    """The sender, and receivers as children."""

    def __init__(self, receivers: int, *, num_bytes: int, device: torch.device) -> None:
        """All are there when this returns."""
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("spawn")
        self._processes = [
            context.Process(
                target=receive,
                args=(rank, receivers + 1, self._store.port, num_bytes, device),
                daemon=True,
            )
            for rank in range(1, receivers + 1)
        ]
        for process in self._processes:
            process.start()
        self._line = _Line(self._store, 0, receivers + 1, num_bytes, device)

    def broadcast(self) -> float:
        """Seconds until everybody has everything."""
        self._line.say("on")
        started = time.monotonic()
        self._line.broadcast()
        return time.monotonic() - started

    def close(self) -> None:
        """End the receivers."""
        self._line.say("end")
        for process in self._processes:
            process.join()


def receive(rank: int, world_size: int, port: int, num_bytes: int, device: torch.device) -> None:
    """Main of a receiver: rounds until it is told to end."""
    torch.set_num_threads(1)
    be_a_host_of_its_own(f"bare{rank}")
    store = dist.TCPStore("127.0.0.1", port, timeout=TIMEOUT)
    line = _Line(store, rank, world_size, num_bytes, device)
    while line.hear() == "on":
        line.broadcast()


def be_a_host_of_its_own(name: str) -> None:
    """For NCCL, which would refuse a second process on one GPU; they meet on loopback sockets."""
    os.environ |= {"NCCL_HOSTID": name, "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}


class _Line:
    """One member of the group and its memory."""

    def __init__(
        self, store: Any, rank: int, world_size: int, num_bytes: int, device: torch.device
    ) -> None:
        self._device, self._store, self._rounds = device, store, 0
        self._memory_N = torch.ones(num_bytes, dtype=torch.uint8, device=device)
        if device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = TIMEOUT
            self._group: Any = dist.ProcessGroupNCCL(store, rank, world_size, options)
        else:
            self._group = dist.ProcessGroupGloo(store, rank, world_size, TIMEOUT)

    def say(self, word: str) -> None:
        """Rank 0 begins a round or ends them.

        Through the store: on a GPU a receiver that waited in a collective would take time slices
        from whatever is measured in between.
        """
        self._rounds += 1
        self._store.set(f"round{self._rounds}", word)
        if word == "on":
            self._meet()

    def hear(self) -> str:
        """Others: what rank 0 says."""
        self._rounds += 1
        word: str = self._store.get(f"round{self._rounds}").decode()
        if word == "on":
            self._meet()
        return word

    def broadcast(self) -> None:
        """All buckets; returns when everybody has them."""
        under_way: deque[Any] = deque()
        for bucket_B in self._memory_N.split(DEFAULT_BUCKET_BYTES):
            under_way.append(self._start(bucket_B))
            if len(under_way) == 2:
                under_way.popleft().wait()
        for work in under_way:
            work.wait()
        self._meet()

    def _start(self, tensor: Tensor) -> Any:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        return self._group.broadcast([tensor], options)

    def _meet(self) -> None:
        everybody = torch.zeros(1, device=self._device)
        self._group.allreduce([everybody]).wait()
        everybody.item()  # on a GPU, `wait` only orders streams
