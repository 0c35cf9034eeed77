"""A whole stream of weights at rest: on the device where it is computed, or in pinned host memory.

    work = staging.open(i)        # the bucket on the compute device, contents undefined
    work = staging.load(i)        # the same, with its contents
    staging.keep(i)               # what was written there stays
    work = staging.load(i, mine)  # mine = staging.landings(): for a reader beside the writer

On the device all are views and `keep` is free. In host memory two device buckets take turns, two
for the writer and two for each reader: contents travel asynchronously (pinned: 55 GB/s where
pageable memory gives 2.5 to 7). On a CPU there is one memory, and no difference.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from common.weights.layout import Layout

Place = Literal["device", "host"]
NUM_LANDINGS = 2


class Staging:
    """Room for `layout.num_bytes`; buckets are opened in order."""

    def __init__(
        self,
        layout: Layout,
        *,
        device: torch.device,
        place: Place,
        memory: Tensor | None = None,
    ) -> None:
        """Allocate; pinning 9 GB of host memory takes 6 s, once.

        Args:
            layout: of the stream.
            device: where it is computed.
            place: where it stays.
            memory: [N] uint8 on the device, to be used instead of new memory.

        Raises:
            torch.OutOfMemoryError: the device has no room.
        """
        self.layout = layout
        self._in_host = place == "host" and device.type == "cuda"
        if memory is None or self._in_host:
            memory = torch.empty(
                layout.num_bytes,
                dtype=torch.uint8,
                device="cpu" if self._in_host else device,
                pin_memory=self._in_host,
            )
        # Zeros between tensors: padding is part of what is digested.
        self._stream_N = memory.zero_()
        self._device = device
        self._landings = self.landings()

    @property
    def stream_N(self) -> Tensor:
        """[N] uint8, everything that was kept; on the device or in pinned host memory."""
        if self._in_host:
            torch.cuda.synchronize()
        return self._stream_N

    def landings(self) -> list[Tensor]:
        """Room on the compute device for buckets of a stream in host memory, in turns; else none.

        Who reads beside the one that writes needs landings of its own.
        """
        size = self.layout.bucket_bytes if self._in_host else 0
        return [
            torch.empty(size, dtype=torch.uint8, device=self._device) for _ in range(NUM_LANDINGS)
        ]

    def open(self, index: int, landings: Sequence[Tensor] | None = None) -> Tensor:
        """[B] uint8 on the compute device, for writing."""
        start, end = self.layout.buckets[index]
        if self._in_host:
            return (landings or self._landings)[index % NUM_LANDINGS][: end - start]
        return self._stream_N[start:end]

    def load(self, index: int, landings: Sequence[Tensor] | None = None) -> Tensor:
        """As `open`, holding what was kept."""
        work_B = self.open(index, landings)
        if self._in_host:
            start, end = self.layout.buckets[index]
            work_B.copy_(self._stream_N[start:end], non_blocking=True)
        return work_B

    def keep(self, index: int) -> None:
        """Keep what stands in the opened bucket; ordered behind what was queued on the stream."""
        if self._in_host:
            start, end = self.layout.buckets[index]
            self._stream_N[start:end].copy_(self.open(index), non_blocking=True)
