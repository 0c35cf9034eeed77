"""Visual features of clips, kept while they fit: on the device, then in (pinned) host memory.

`vision.py` makes them and looks them up by clip, processor and tower.

Shapes: M merged visual tokens of a clip, H hidden size of the language model, D deepstack levels.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ClipFeatures:
    """What the language model takes in for one clip."""

    embeds_MH: Tensor
    deepstack_DMH: tuple[Tensor, ...]
    """Qwen3-VL adds these to the hidden states of its first D layers; empty elsewhere."""

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors."""
        return sum(tensor.nbytes for tensor in (self.embeds_MH, *self.deepstack_DMH))

    def to(self, device: torch.device) -> "ClipFeatures":
        """The same features on another device; from pinned memory without waiting."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def on_host(self) -> "ClipFeatures":
        """A copy in host memory, pinned where it comes from a GPU: 55 instead of 2.5-7 GB/s."""
        return self._mapped(lambda tensor: tensor.cpu().pin_memory() if tensor.is_cuda else tensor)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "ClipFeatures":
        return ClipFeatures(change(self.embeds_MH), tuple(map(change, self.deepstack_DMH)))


class FeatureCache:
    """Features by key, least recently used out first, bounded in bytes."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._features: OrderedDict[object, ClipFeatures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._features)

    def get(self, key: object) -> ClipFeatures | None:
        """The features under `key`, now the most recently used."""
        features = self._features.get(key)
        if features is not None:
            self._features.move_to_end(key)
        return features

    def put(self, key: object, features: ClipFeatures) -> list[tuple[object, ClipFeatures]]:
        """Keep features and drop the oldest until all fit; returns what is not kept."""
        if key in self._features:
            return []
        if features.num_bytes > self._max_bytes:
            return [(key, features)]
        self._features[key] = features
        self._num_bytes += features.num_bytes
        dropped = []
        while self._num_bytes > self._max_bytes:
            dropped.append(self._features.popitem(last=False))
            self._num_bytes -= dropped[-1][1].num_bytes
        return dropped


class TieredCache:
    """A cache on the device in front of one in host memory; what the first drops the second keeps.

    On a CPU both are host memory, and the first is left out.
    """

    def __init__(self, *, device_bytes: int, host_bytes: int) -> None:
        self._device = FeatureCache(max_bytes=device_bytes)
        self._host = FeatureCache(max_bytes=host_bytes)

    def __contains__(self, key: object) -> bool:
        return self._device.get(key) is not None or self._host.get(key) is not None

    def get(self, key: object, *, device: torch.device) -> ClipFeatures | None:
        """The features under `key`, on `device`."""
        if (found := self._device.get(key)) is not None:
            return found
        found = self._host.get(key)
        return None if found is None else found.to(device)

    def put(self, key: object, features: ClipFeatures) -> None:
        """Keep features where there is room."""
        dropped: list[tuple[object, ClipFeatures]] = [(key, features)]
        if features.embeds_MH.is_cuda:
            dropped = self._device.put(key, features)
        for old_key, old in dropped:
            if self._host.get(old_key) is None:
                self._host.put(old_key, old.on_host())
