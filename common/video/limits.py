"""What a clip may cost, known before it is opened: `ClipLimits.of(shared, rollout).refuse(clip)`.

A `ClipRef` of a kilobyte can ask for gigabytes. A replica's loader asks first, whoever sent it.
"""

from dataclasses import dataclass
from typing import Self

from common.config import Rollout, Shared
from common.errors import VideoError
from common.messages import ClipRef
from common.video.sampling import VideoSampling

FRAMES_A_TOKEN = 2
"""A visual token stands for a patch of that many frames (temporal_patch_size of all three
families)."""


@dataclass(frozen=True, kw_only=True)
class ClipLimits:
    """Most frames and pixels of one clip."""

    max_frames: int
    max_pixels: int
    """Frames x height x width, after resizing."""

    @classmethod
    def of(cls, shared: Shared, rollout: Rollout) -> Self:
        """Nothing that a prompt of `shared.max_prompt_tokens` holds is refused."""
        video = shared.video
        token_px = FRAMES_A_TOKEN * video.factor**2
        sampled = max(video.max_frames, VideoSampling.model_fields["max_frames"].default)
        return cls(
            max_frames=rollout.max_clip_frames or sampled,
            max_pixels=rollout.max_clip_pixels or shared.max_prompt_tokens * token_px,
        )

    def refuse(self, clip: ClipRef) -> None:
        """Raises when a clip is none or too large.

        Raises:
            VideoError: names what was found, the limit and its knob.
        """
        height_px, width_px = clip.frame_hw
        count = len(clip.frame_indices)
        if min(height_px, width_px) < 1 or count < FRAMES_A_TOKEN or count % FRAMES_A_TOKEN:
            raise VideoError(
                f"found {count} frames of {width_px}x{height_px}, wanted an even number of frames "
                "with sides of at least 1"
            )
        if not 0 <= min(clip.frame_indices) <= max(clip.frame_indices) < clip.total_frames:
            raise VideoError(
                f"found frames {min(clip.frame_indices)} to {max(clip.frame_indices)}, wanted some "
                f"of the {clip.total_frames} of the file"
            )
        if count > self.max_frames:
            raise VideoError(
                f"found {count} frames, wanted at most {self.max_frames} (rollout.max_clip_frames)"
            )
        if (pixels := count * height_px * width_px) > self.max_pixels:
            raise VideoError(
                f"found {count} frames of {width_px}x{height_px}, {pixels} pixels, wanted at most "
                f"{self.max_pixels} (rollout.max_clip_pixels; default: what "
                "shared.max_prompt_tokens holds)"
            )
