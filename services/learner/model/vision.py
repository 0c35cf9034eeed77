"""ClipRef → visual features of one clip, computed once per clip while the tower is frozen.

`policy.py` asks for the clips of a micro-batch; frames come from the run's clip loader and pass the
checkpoint's own video processor, which neither samples nor resizes again.

Features are kept (`features.py`) under what they depend on: clip, processor and tower. Clips of the
next step are decoded and cut into patches by a pool of threads, bounded in bytes.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.config import Room
from common.errors import VideoError
from common.messages import ClipRef, ScoredGroup
from common.model import torchvision_cpu
from common.video.frames import processor_metadata
from services.learner.model.features import ClipFeatures, TieredCache

FORGET_AFTER = 8
"""Looks at a step's clips; what was decoded ahead and not asked for since is dropped."""


LoadFrames = Callable[[ClipRef], npt.NDArray[np.uint8]]
"""`ClipLoader.load` of the run, or `common.video.frames.load_frames`."""


@dataclass(slots=True)
class _Ahead:
    """A clip that is decoded before its turn."""

    pixels: Future[Tensor]
    num_bytes: int
    look: int
    """At which it was asked for last."""


@dataclass(slots=True)
class ClipCounts:
    """Since the last time they were read."""

    asked: int = 0
    cached: int = 0
    """Features that were at hand."""
    ahead: int = 0
    """Of the others, pixels that were ready when a step first looked for them."""


class ClipEncoder:
    """The vision tower of a checkpoint with its video processor in front and a cache behind it."""

    def __init__(
        self,
        model: Any,
        video_processor: Any,
        *,
        frozen: bool,
        load_frames: LoadFrames,
        memory: Room,
    ) -> None:
        """`model` is a checkpoint's inner model: it has `visual` and `get_video_features`."""
        self._load_frames = load_frames
        self._model = model
        self._processor = video_processor
        self._cache = TieredCache(
            device_bytes=memory.device_feature_cache_bytes, host_bytes=memory.feature_cache_bytes
        )
        self._frozen = frozen
        self._processor_digest = _settings_digest(video_processor)
        self._decoding = ThreadPoolExecutor(
            max_workers=memory.decode_workers, thread_name_prefix="clips"
        )
        self._max_bytes_ahead = memory.decode_ahead_bytes
        self._ahead: dict[object, _Ahead] = {}
        self._look = 0
        self._counts = ClipCounts()

    def prefetch(self, clips: Iterable[ClipRef]) -> None:
        """Decode clips in the background that will be asked for soon, in this order while memory
        lasts (`learner.decode_ahead_bytes`); errors wait until then."""
        left = self._max_bytes_ahead - sum(one.num_bytes for one in self._ahead.values())
        for clip in clips:
            if (key := self._key(clip)) in self._ahead or key in self._cache:
                continue
            size = self._pixel_bytes(clip)
            if size > left:
                return
            self._start(key, clip, size)
            left -= size

    def decode_faults(self, clips: Iterable[ClipRef]) -> list[str | None]:
        """Decode clips now that are about to be asked for; why that fails for each, None if not.

        What is decoded stays at hand for `features`.
        """
        keys = []
        self._look += 1
        for clip in clips:
            keys.append(key := self._key(clip))
            if (one := self._ahead.get(key)) is not None:
                self._counts.ahead += one.look < self._look and one.pixels.done()
                one.look = self._look
            elif key not in self._cache:
                self._start(key, clip, self._pixel_bytes(clip))
        for key in [k for k, one in self._ahead.items() if one.look < self._look - FORGET_AFTER]:
            self._ahead.pop(key).pixels.cancel()
        return [self._fault(key) for key in keys]

    def take_counts(self) -> ClipCounts:
        """What became of the clips asked for; counts from zero again."""
        counts, self._counts = self._counts, ClipCounts()
        return counts

    def _start(self, key: object, clip: ClipRef, num_bytes: int) -> None:
        self._ahead[key] = _Ahead(self._decoding.submit(self._decode, clip), num_bytes, self._look)

    def _pixel_bytes(self, clip: ClipRef) -> int:
        """Of normalised patches in float32; a clip that cannot be patched says so when decoded."""
        height_px, width_px = clip.frame_hw
        return 3 * 4 * len(clip.frame_indices) * height_px * width_px

    def _fault(self, key: object) -> str | None:
        if (one := self._ahead.get(key)) is None:
            return None
        try:
            one.pixels.result()
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
        self._counts.asked += 1
        features = self._cache.get(key, device=device)
        if features is not None:
            self._counts.cached += 1
            return features
        with torch.no_grad():
            features = self._encode([clip], device)[0]
        self._cache.put(key, features)
        return features

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
        made_by = self._processor_digest, self._tower
        return *made_by, clip.sha256, clip.sampling, clip.frame_hw, clip.frame_indices

    def _pixels(self, clip: ClipRef) -> Tensor:
        """Normalised patches of a clip, [patches, values of a patch]."""
        ahead = self._ahead.pop(self._key(clip), None)
        return self._decode(clip) if ahead is None else ahead.pixels.result()

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


def _settings_digest(video_processor: Any) -> str:
    """Hex sha256 over a processor's settings."""
    return hashlib.sha256(video_processor.to_json_string().encode()).hexdigest()


def digest(module: torch.nn.Module) -> str:
    """Hex sha256 over the names and bytes of a module's parameters."""
    sha = hashlib.sha256()
    for name, parameter in module.named_parameters():
        sha.update(name.encode())
        sha.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
