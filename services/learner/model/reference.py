"""The start checkpoint, frozen → the log-probabilities that a KL term is taken to.

`step.py` asks it about each micro-batch, without gradient. It is loaded and spread over the ranks
as the policy is, and shares the policy's tower, clips and features while that tower is frozen: both
are those of the start checkpoint, so each clip is decoded and encoded once.
"""

from pathlib import Path

import torch

from common.config import Room
from services.learner.model.policy import Policy
from services.learner.model.start import start_policy
from services.learner.model.vision import LoadFrames
from services.learner.parallel import Ranks


def load_reference(
    policy: Policy,
    *,
    start: Path,
    dtype: torch.dtype,
    ranks: Ranks,
    load_frames: LoadFrames,
    memory: Room | None = None,
) -> Policy:
    """A collective on several ranks: each keeps a share, and computes in `dtype`.

    Args:
        policy: the one that is trained from `start`, sharded already.
        start: folder of the checkpoint.
        dtype: of the parameters.
        ranks: of the learner.
        load_frames: where frames of a clip come from, if the policy's tower is trained.
        memory: `[learner]`: which features are kept, if the policy's tower is trained.
    """
    reference = start_policy(
        start,
        ranks=ranks,
        compute_dtype=dtype,
        dtype=dtype,
        load_frames=load_frames,
        memory=memory,
    )
    reference.requires_grad_(False)
    if policy.freeze_vision:
        reference.model.model.visual = policy.tower
        reference.clips = policy.clips
    return reference
