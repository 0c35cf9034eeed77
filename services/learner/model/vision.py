"""ClipRef → visual features of one clip, computed once per clip while the tower is frozen.

`policy.py` asks for the clips of a micro-batch; frames come from the run's clip loader and pass the
checkpoint's own video processor, which neither samples nor resizes again.

Shapes: M merged visual tokens of a clip, H hidden size of the language model, D deepstack levels.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common import torchvision_cpu
from common.errors import VideoError
from common.messages import ClipRef, ScoredGroup
from common.video.frames import processor_metadata

FEATURE_CACHE_BYTES = 4 * 2**30
"""Host memory for features of frozen towers; a 14k-token clip of an 8B model takes about 0.5 GB."""
CLIPS_AHEAD = 32
"""Decoded clips that wait for their turn: at most this many."""


LoadFrames = Callable[[ClipRef], npt.NDArray[np.uint8]]
"""`ClipLoader.load` of the run, or `common.video.frames.load_frames`."""


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
        """The same features on another device."""
        return ClipFeatures(
            self.embeds_MH.to(device), tuple(level.to(device) for level in self.deepstack_DMH)
        )


class FeatureCache:
    """Features by (clip, sampling, tower), least recently used out first, bounded in bytes."""

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

    def put(self, key: object, features: ClipFeatures) -> None:
        """Keep features and drop the oldest until all fit; what is too large alone is not kept."""
        if features.num_bytes > self._max_bytes or key in self._features:
            return
        self._features[key] = features
        self._num_bytes += features.num_bytes
        while self._num_bytes > self._max_bytes:
            _, dropped = self._features.popitem(last=False)
            self._num_bytes -= dropped.num_bytes


class ClipEncoder:
    """The vision tower of a checkpoint with its video processor in front and a cache behind it."""

    def __init__(
        self,
        model: Any,
        video_processor: Any,
        *,
        frozen: bool,
        max_bytes: int,
        load_frames: LoadFrames,
    ) -> None:
        """`model` is a checkpoint's inner model: it has `visual` and `get_video_features`."""
        self._load_frames = load_frames
        self._model = model
        self._processor = video_processor
        self._cache = FeatureCache(max_bytes=max_bytes)
        self._frozen = frozen
        self._decoding = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clips")
        self._ahead: OrderedDict[object, Future[Tensor]] = OrderedDict()

    def prefetch(self, clips: Iterable[ClipRef]) -> None:
        """Decode clips in the background that will be asked for soon; errors wait until then."""
        for clip in clips:
            key = self._key(clip)
            if key not in self._ahead and self._cache.get(key) is None:
                self._ahead[key] = self._decoding.submit(self._decode, clip)
        while len(self._ahead) > CLIPS_AHEAD:
            self._ahead.popitem(last=False)[1].cancel()

    def decode_faults(self, clips: Iterable[ClipRef]) -> list[str | None]:
        """Decode clips now that are about to be asked for; why that fails for each, None if not.

        What is decoded stays at hand for `features`.
        """
        keys = []
        for clip in clips:
            keys.append(key := self._key(clip))
            if key not in self._ahead and self._cache.get(key) is None:
                self._ahead[key] = self._decoding.submit(self._decode, clip)
        return [self._fault(key) for key in keys]

    def _fault(self, key: object) -> str | None:
        future = self._ahead.get(key)
        if future is None:
            return None
        try:
            future.result()
        except (VideoError, OSError, RuntimeError, ValueError) as error:
            del self._ahead[key]  # the next look may find the file again
            return f"{type(error).__name__}: {error}"
        return None

    def grid(self, clip: ClipRef) -> tuple[int, int, int]:
        """Patches of a clip along time, height and width, before spatial merging.

        Raises:
            VideoError: the checkpoint cannot cut these frames into patches.
        """
        processor = self._processor
        factor = processor.patch_size * processor.merge_size
        height_px, width_px = clip.frame_hw
        if height_px % factor or width_px % factor:
            raise VideoError(
                f"{clip.uri}: found frames of {height_px}x{width_px} pixels, wanted multiples of "
                f"{factor}: shared.video.factor must be patch size x merge size of shared.model"
            )
        return (
            len(clip.frame_indices) // processor.temporal_patch_size,
            height_px // processor.patch_size,
            width_px // processor.patch_size,
        )

    def num_tokens(self, clip: ClipRef) -> int:
        """Visual tokens of a clip in the prompt."""
        time, height, width = self.grid(clip)
        return int(time * height * width // self._processor.merge_size**2)

    def assert_matches(self, group: ScoredGroup) -> None:
        """Check that the replica ran the clip that this process would decode.

        Raises:
            VideoError: grid, number of visual tokens or of placeholders differ; names both sides.
        """
        token_id = self._model.config.video_token_id
        tokens = self.num_tokens(group.clip)
        sides = {
            "patch grid": (group.grid_thw, self.grid(group.clip)),
            "number of visual tokens": (group.num_visual_tokens, tokens),
            "number of placeholders in the prompt": (
                group.prompt_token_ids.count(token_id),
                tokens,
            ),
        }
        for what, (found, wanted) in sides.items():
            if found != wanted:
                raise VideoError(
                    f"prompt {group.prompt_id} of replica {group.replica}: found {what} {found}, "
                    f"wanted {wanted} as derived here from {group.clip.uri}: both services need "
                    "the same shared.model and shared.video"
                )

    def features(self, clips: Sequence[ClipRef], *, device: torch.device) -> list[ClipFeatures]:
        """Features of each clip on `device`; a frozen tower's have no gradient and are remembered.

        Raises:
            VideoError: a clip cannot be decoded or cut into patches.
        """
        if self._tower is None:
            return self._encode(clips, device)
        return [self._cached(clip, device) for clip in clips]

    def blank_features(self, device: torch.device) -> ClipFeatures:
        """Of one black token of no clip: a call of a trained tower that keeps step with others'."""
        processor = self._processor
        merge, patch = processor.merge_size, processor.patch_size
        width = 3 * processor.temporal_patch_size * patch**2
        pixels = torch.zeros(merge**2, width, device=device)
        return self._run_tower(pixels, torch.tensor([[1, merge, merge]], device=device))[0]

    def _cached(self, clip: ClipRef, device: torch.device) -> ClipFeatures:
        key = self._key(clip)
        features = self._cache.get(key)
        if features is None:
            with torch.no_grad():
                features = self._encode([clip], device)[0].to(torch.device("cpu"))
            self._cache.put(key, features)
        return features.to(device)

    def _encode(self, clips: Sequence[ClipRef], device: torch.device) -> list[ClipFeatures]:
        """One tower call for all clips, so that ranks with a sharded tower stay in step."""
        grids = torch.tensor([self.grid(clip) for clip in clips])
        pixels = torch.cat([self._pixels(clip) for clip in clips])
        return self._run_tower(pixels.to(device), grids.to(device))

    def _run_tower(self, pixels: Tensor, grids: Tensor) -> list[ClipFeatures]:
        output = self._model.get_video_features(pixels, grids, return_dict=True)
        levels = getattr(output, "deepstack_features", None) or []
        return [
            ClipFeatures(embeds, tuple(level[index] for level in levels))
            for index, embeds in enumerate(output.pooler_output)
        ]

    @cached_property
    def _tower(self) -> str | None:
        """Digest of a frozen tower; when first asked for: a tower may get its values late."""
        return digest(self._model.visual) if self._frozen else None

    def _key(self, clip: ClipRef) -> object:
        return self._tower, clip.sha256, clip.sampling, clip.frame_hw, clip.frame_indices

    def _pixels(self, clip: ClipRef) -> Tensor:
        """Normalised patches of a clip, [patches, values of a patch]."""
        ahead = self._ahead.pop(self._key(clip), None)
        return self._decode(clip) if ahead is None else ahead.result()

    def _decode(self, clip: ClipRef) -> Tensor:
        metadata = processor_metadata(clip)
        metadata.pop("do_sample_frames")
        inputs = self._processor(
            videos=[self._load_frames(clip)],
            video_metadata=[metadata],
            do_sample_frames=False,
            do_resize=False,
            return_tensors="pt",
        )
        pixels: Tensor = inputs["pixel_values_videos"]
        return pixels


def load_video_processor(path: str) -> Any:
    """The video processor of a checkpoint folder."""
    torchvision_cpu.install()
    from transformers import AutoVideoProcessor

    return AutoVideoProcessor.from_pretrained(path)


def digest(module: torch.nn.Module) -> str:
    """Hex sha256 over the names and bytes of a module's parameters."""
    sha = hashlib.sha256()
    for name, parameter in module.named_parameters():
        sha.update(name.encode())
        sha.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
