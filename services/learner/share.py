"""One rank's share of the groups of a step: what is wrong with it, its tensors, its clips.

`train.py` asks, on every rank alike; `batching/` says who has what, `model/vision.py` has clips.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from common.config import Run
from common.messages import ClipRef, ScoredGroup
from services.learner.batching import batch as batching
from services.learner.batching.batch import NO_WORK, TrainBatch
from services.learner.batching.plan import Limits
from services.learner.model.policy import Policy
from services.learner.objective.advantage import StepAdvantages, step_advantages
from services.learner.parallel import Ranks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Share:
    """Of this rank."""

    run: Run
    ranks: Ranks
    policy: Policy

    def agreed_faults(self, groups: Sequence[ScoredGroup], *, limits: Limits) -> dict[str, str]:
        """Why groups cannot be trained on, by prompt id: the same on all ranks; a collective.

        Each rank decodes the clips of its own share.
        """
        large, shares = self._divided(groups, limits)
        found = self.policy.group_faults(shares[self.ranks.rank])
        faults = {key: fault for own in self.ranks.gather_json(found) for key, fault in own.items()}
        return large | faults | unmasked(groups, run=self.run)

    def collate(self, groups: Sequence[ScoredGroup], *, limits: Limits) -> TrainBatch:
        """This rank's part of a step; without micro-batches, on all ranks, if nothing is left."""
        advantages = self.advantages(groups)
        if advantages.is_empty:
            if self.ranks.is_main:
                facts = {"groups": len(groups), "tied": advantages.num_tied}
                logger.warning("nothing to train on in this step", extra=facts)
            return NO_WORK
        return batching.collate(
            groups,
            advantages.by_group,
            limits=limits,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
        )

    def clips_of_ranks(self, groups: Sequence[ScoredGroup], *, limits: Limits) -> list[list[Any]]:
        """The clips that each rank needs for these groups, as JSON."""
        _, shares = self._divided(groups, limits)
        return [[group.clip.model_dump(mode="json") for group in own] for own in shares]

    def prefetch(self, clips: Sequence[Sequence[Any]]) -> None:
        """Decode this rank's of `clips_of_ranks` in the background."""
        own = clips[self.ranks.rank]
        self.policy.clips.prefetch(ClipRef.model_validate(clip) for clip in own)

    def clip_figures(self) -> dict[str, float]:
        """Of all ranks: what was at hand of the clips that a step asked for; a collective."""
        counts = self.policy.clips.take_counts()
        own = torch.tensor([counts.asked, counts.cached, counts.ahead], dtype=torch.float64)
        asked, cached, ahead = self.ranks.all_reduce_sum(own).tolist()
        return {
            "clips/features_hit_fraction": cached / max(asked, 1.0),
            "clips/pixels_hit_fraction": min(1.0, ahead / max(asked - cached, 1.0)),
        }

    def advantages(self, groups: Sequence[ScoredGroup]) -> StepAdvantages:
        """Of these groups as those of one step, the same on every rank."""
        strategy, settings = self.run.shared.strategy, self.run.learner.advantage
        return step_advantages(groups, strategy=strategy, settings=settings)

    def _divided(
        self, groups: Sequence[ScoredGroup], limits: Limits
    ) -> tuple[dict[str, str], list[list[ScoredGroup]]]:
        """What no rank has room for, and the rest by the rank that needs its clips."""
        advantages = self.advantages(groups).by_group
        large = batching.faults(groups, advantages, max_tokens=limits.max_tokens)
        if large:  # a step without these has other advantages
            groups = [group for group in groups if group.prompt_id not in large]
            advantages = self.advantages(groups).by_group
        world_size = self.ranks.world_size
        return large, batching.shares(groups, advantages, limits=limits, world_size=world_size)


def unmasked(groups: Sequence[ScoredGroup], *, run: Run) -> dict[str, str]:
    """Groups whose importance weights cannot be exact, by prompt id: their replica samples from
    less than the whole distribution and does not say from what."""
    sampling, correction = run.shared.sampling, run.learner.loss.correction
    if not sampling.truncates or correction == "off":
        return {}
    return {
        group.prompt_id: f"found answers of replica {group.replica} without the mask of their "
        f"sampling, wanted one: shared.sampling.top_p is {sampling.top_p} and top_k "
        f"{sampling.top_k} while learner.loss.correction is {correction!r}; the replica needs this "
        "run file and rollout.device = 'cuda'"
        for group in groups
        if any(s.provenance == "policy" and s.kept is None for s in group.samples)
    }
