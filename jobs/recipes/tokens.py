"""Tokens of the longest clip and group: `[shared]` and the architecture → `GroupTokens` (pure).

The pixel arithmetic is that of `common.video.sampling`, restated as an upper bound over all clips
without qwen-vl-utils, which imports torch; a test holds the two against each other.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

from common.config import Shared
from common.model.architecture import TEMPORAL_PATCH, Architecture
from common.video.sampling import VideoSampling

MAX_TOKENS_A_FRAME = 768
"""qwen-vl-utils' VIDEO_MAX_TOKEN_NUM."""
TEXT_TOKENS = 200
"""Question, instruction and chat template: published grounding rows have 100 to 150 tokens."""
TIMESTAMP_TOKENS = 10
"""Qwen3-VL and Qwen3.5 write `<12.5 seconds>` between two marks before each temporal patch: 7.9 a
patch were measured for 199 patches, 10.1 for 384, the question included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTokens:
    """Of one prompt and its answers, at their longest."""

    frames: int
    visual: int
    """One token is factor x factor pixels of two frames."""
    text: int
    """Timestamps included."""
    answers: int
    """Answers in the group, the injected one included."""
    generated: int
    """Answers that a replica generates."""
    answer: int
    """Of the longest answer."""

    @property
    def prompt(self) -> int:
        """What `shared.max_prompt_tokens` bounds."""
        return self.visual + self.text

    @property
    def packed(self) -> int:
        """Prompt once and every answer: what the learner forwards for a group."""
        return self.prompt + self.answers * self.answer

    @property
    def sequence(self) -> int:
        """Prompt and one answer: what `rollout.max_model_len` bounds."""
        return self.prompt + self.answer


def group_tokens(shared: Shared, *, architecture: Architecture) -> GroupTokens:
    """The longest group that `[shared]` allows."""
    stamp = 0 if architecture.family == "qwen2_5_vl" else TIMESTAMP_TOKENS
    frames, visual = longest_clip(shared.video.sampling, stamp=stamp)
    return GroupTokens(
        frames=frames,
        visual=visual,
        text=TEXT_TOKENS + stamp * (frames // TEMPORAL_PATCH),
        answers=shared.group_size,
        generated=shared.num_policy_samples,
        answer=shared.sampling.max_tokens,
    )


def longest_clip(sampling: VideoSampling, *, stamp: int) -> tuple[int, int]:
    """Frames and visual tokens of the clip whose prompt is longest.

    Frames of any shape fit their budget, so the bound is budget / factor^2 a temporal patch; a real
    clip has a few percent less, because sides are multiples of the factor.

    Args:
        sampling: the bounds.
        stamp: tokens of a temporal patch's timestamp.
    """
    frames = max(
        _longest_of_each_size(sampling),
        key=lambda frames: (
            visual_tokens(frames, sampling=sampling) + stamp * (frames // TEMPORAL_PATCH)
        ),
    )
    return frames, visual_tokens(frames, sampling=sampling)


def visual_tokens(frames: int, *, sampling: VideoSampling) -> int:
    """Most visual tokens of a clip of that many frames (an even number)."""
    return frames // TEMPORAL_PATCH * _tokens_a_patch(frames, sampling=sampling)


def _longest_of_each_size(sampling: VideoSampling) -> Iterator[int]:
    """Numbers of frames beyond which frames get smaller; at most one for each size there is.

    More frames of the same size are more tokens, so no other number can be the longest clip's.
    """
    counts = range(sampling.min_frames, sampling.max_frames + 1, TEMPORAL_PATCH)
    first = 0
    while first < len(counts):
        size = _tokens_a_patch(counts[first], sampling=sampling)
        # Sizes fall, and bisect wants what rises.
        first = bisect.bisect_right(
            counts, -size, lo=first, key=lambda frames: -_tokens_a_patch(frames, sampling=sampling)
        )
        yield counts[first - 1]


def _tokens_a_patch(frames: int, *, sampling: VideoSampling) -> int:
    """Most visual tokens of two frames in a clip of that many; it falls with their number."""
    area = sampling.factor**2
    share = min(MAX_TOKENS_A_FRAME * area, sampling.total_pixels / frames * TEMPORAL_PATCH)
    budget = min(sampling.max_pixels, max(share, int(sampling.min_pixels * 1.05)))
    return max(1, int(budget // area))
