"""What travels in a weight group: buckets, whole or as deltas, then the closing digest.

    send(group, buckets, digest)  ->  digest = receive(group, stream, staging)

A stream is broadcasts in order, of sizes that both sides know from `WeightStream`; a delta is
preceded by its size. The receiver declares success: it digests what stands in its staging after
each bucket.
"""

from collections import deque
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from common.errors import WeightError
from common.weights.delta import patch
from common.weights.digest import bucket_digest, stream_digest
from common.weights.group import NUM_IN_FLIGHT, Transfer, WeightGroup
from common.weights.layout import Layout
from common.weights.messages import WeightStream
from common.weights.staging import Staging

DIGEST_BYTES = 32


def layout_of(stream: WeightStream) -> Layout:
    """The layout that a message describes."""
    return Layout.of(stream.slices, bucket_bytes=stream.bucket_bytes)


def send(
    group: WeightGroup,
    buckets: Iterable[Tensor],
    *,
    deltas: bool,
    digest: Callable[[], str],
    device: torch.device,
) -> int:
    """Broadcast buckets ([B] uint8 on `device`) in order, then the digest.

    Args:
        deltas: buckets are deltas: empty where nothing changed, of full size where they are whole.
        digest: called when the last bucket was started; it may not be known before.

    Returns:
        Bytes sent.

    Raises:
        WeightError: the transfer broke.
    """
    under_way: deque[Transfer] = deque()
    num_bytes = 0
    for bucket_B in buckets:
        messages = [bucket_B] if bucket_B.numel() else []
        if deltas:
            messages.insert(0, torch.tensor([bucket_B.numel()], device=device))
        for message in messages:
            under_way.append(group.start(message))
            num_bytes += message.numel() * message.element_size()
            if len(under_way) == NUM_IN_FLIGHT:
                under_way.popleft().wait()
    for transfer in under_way:
        transfer.wait()
    closing = torch.frombuffer(bytearray.fromhex(digest()), dtype=torch.uint8)
    group.broadcast(closing.to(device))
    return num_bytes


def receive(
    group: WeightGroup, stream: WeightStream, staging: Staging, *, device: torch.device
) -> str:
    """Receive a stream into `staging` and verify it.

    Returns:
        The hex digest of what `staging` holds, equal to the sender's.

    Raises:
        WeightError: the transfer broke, or the digest differs; the contents are lost.
    """
    landing = _Landing(group, stream, staging, device)
    for index in range(len(staging.layout.buckets)):
        landing.start(index)
    return landing.finish()


class _Landing:
    """Buckets under way to one staging area."""

    def __init__(
        self, group: WeightGroup, stream: WeightStream, staging: Staging, device: torch.device
    ) -> None:
        self._group, self._stream, self._staging, self._device = group, stream, staging, device
        self._under_way: deque[tuple[int, Tensor | None, Transfer | None]] = deque()
        self._digests: list[Tensor] = []

    def start(self, index: int) -> None:
        start, end = self._staging.layout.buckets[index]
        size = self._size() if self._stream.deltas else end - start
        if not 0 <= size <= end - start:
            raise WeightError(f"found a delta of {size} bytes for a bucket of {end - start}")
        if size == end - start:
            self._add(index, None, self._group.start(self._staging.open(index)))
        elif size == 0:
            self._add(index, None, None)
        else:
            delta_E = torch.empty(size, dtype=torch.uint8, device=self._device)
            self._add(index, delta_E, self._group.start(delta_E))

    def finish(self) -> str:
        while self._under_way:
            self._land()
        sent = torch.empty(DIGEST_BYTES, dtype=torch.uint8, device=self._device)
        self._group.broadcast(sent)
        wanted = bytes(sent.cpu().tolist()).hex()
        found = stream_digest(self._staging.layout, self._digests)
        if wanted != found:
            raise WeightError(f"received digest {found[:12]}, wanted {wanted[:12]}: not applied")
        return found

    def _size(self) -> int:
        header = torch.empty(1, dtype=torch.int64, device=self._device)
        self._group.broadcast(header)
        return int(header)

    def _add(self, index: int, delta_E: Tensor | None, transfer: Transfer | None) -> None:
        self._under_way.append((index, delta_E, transfer))
        if len(self._under_way) == NUM_IN_FLIGHT:
            self._land()

    def _land(self) -> None:
        index, delta_E, transfer = self._under_way.popleft()
        if transfer is not None:
            transfer.wait()
        whole = transfer is not None and delta_E is None
        bucket_B = self._staging.open(index) if whole else self._staging.load(index)
        if delta_E is not None:
            patch(bucket_B, delta_E)
        self._digests.append(bucket_digest(bucket_B))
        if transfer is not None:
            self._staging.keep(index)
