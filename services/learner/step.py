"""One step: micro-batches → gradients over all ranks → AdamW, once or several times a batch.

`batching` gives the step's work, `objective` says what is minimised, `train.py` calls.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from common.config import Run
from services.learner.batching.batch import MicroBatch, TrainBatch
from services.learner.batching.budget import PartlyUpdatedError
from services.learner.model.optimizer import adamw
from services.learner.model.policy import Policy, TokenScores
from services.learner.model.reference import load_reference
from services.learner.model.vision import LoadFrames
from services.learner.objective.loss import LossStats, denominator, policy_loss
from services.learner.parallel import Ranks, reset_sharding
from services.learner.watching.dump import StepDumps, StepRecord

logger = logging.getLogger(__name__)

Scorer = Callable[[MicroBatch], TokenScores]


@dataclass(frozen=True, slots=True)
class Stepper:
    """The policy with what changes it; the same calls on every rank."""

    run: Run
    ranks: Ranks
    policy: Policy
    reference: Scorer | None
    """The start checkpoint, when the loss has a KL term: a frozen copy, or the policy without its
    adapters."""
    optimizer: torch.optim.Optimizer
    dumps: StepDumps

    @classmethod
    def of(
        cls, run: Run, policy: Policy, *, start: Path, ranks: Ranks, load_frames: LoadFrames
    ) -> Self:
        """An optimizer for `policy`, sharded already; the reference is loaded from `start`."""
        optimizer = adamw(policy, run.learner.optimizer)
        reference: Scorer | None = None
        if run.learner.loss.kl_coef > 0 and policy.adapters is not None:
            reference = policy.unadapted
        elif run.learner.loss.kl_coef > 0:
            dtype = getattr(torch, run.shared.dtype)
            reference = load_reference(
                policy,
                start=start,
                dtype=dtype,
                ranks=ranks,
                load_frames=load_frames,
                memory=run.learner,
            )
        return cls(run, ranks, policy, reference, optimizer, StepDumps(run, rank=ranks.rank))

    def step(self, batch: TrainBatch, *, number: int) -> dict[str, float]:
        """One batch: `learner.updates_per_batch` updates, all at the step's learning rate.

        Returns what the first update saw, over all ranks, but for the clip fraction, which is over
        all of them: before the first update nothing can be clipped.

        An update whose gradient norm is not finite is skipped with those that would follow, and the
        step counted (SPEC A7). A step without anything to train on changes nothing, the optimizer's
        moments included.

        Raises:
            torch.OutOfMemoryError: memory ran out; PartlyUpdatedError, one of those, if an update
                had been made.
        """
        record = self.dumps.step(number)
        if not batch.micro_batches:
            record.write()
            return self._without_update(number)
        before: list[_Before] = []
        seen, updates = [], []
        for _ in range(self.run.learner.updates_per_batch):
            try:
                seen.append(self._backward(batch, before, record))
                updates.append(self._update(number))
            except torch.OutOfMemoryError as error:
                if updates:
                    raise PartlyUpdatedError(str(error)) from error
                raise
            if updates[-1]["learner/skipped_steps"]:
                break
        record.write()
        clipped = LossStats.merged(seen).metrics()["learner/clip_fraction"]
        num_updates = sum(update["learner/updates"] for update in updates)
        return {
            **seen[0].metrics(),
            **updates[-1],
            "learner/clip_fraction": clipped,
            "learner/updates": num_updates,
        }

    def _backward(
        self, batch: TrainBatch, before: list["_Before"], record: StepRecord
    ) -> LossStats:
        """Gradients of one update; `before` is filled by a batch's first one, read by the rest."""
        settings = self.run.learner.loss
        share = record.noting(denominator)(batch.num_tokens, batch.num_sequences, settings=settings)
        parts = []
        for index, micro_batch in enumerate(batch.micro_batches):
            micro_batch = micro_batch.to(self.ranks.device)
            is_first = index == len(before)
            # Before the policy's own pass: nothing may be resharded between that and its backward.
            start_GSR = self._at_start(micro_batch) if is_first else None
            scores = self.policy(micro_batch)
            if is_first:
                before.append(_Before(scores.logprobs_GSR.detach(), start_GSR))
            loss, stats = record.noting(policy_loss, micro_batch)(
                scores.logprobs_GSR,
                old_logprobs_GSR=before[index].old_GSR,
                rollout_logprobs_GSR=micro_batch.rollout_logprobs_GSR,
                advantages_GS=micro_batch.advantages_GS,
                mask_GSR=micro_batch.answer_mask_GSR,
                is_policy_GS=micro_batch.is_policy_GS,
                entropy_GSR=scores.entropy_GSR,
                denominator=share,
                settings=settings,
                reference_logprobs_GSR=before[index].reference_GSR,
            )
            loss.backward()  # type: ignore[no-untyped-call]
            parts.append(stats)
        return self._over_ranks(LossStats.merged(parts))

    def _at_start(self, micro_batch: MicroBatch) -> Tensor | None:
        """Log-probabilities by the reference, if there is one."""
        if self.reference is None:
            return None
        with torch.no_grad():
            logprobs_GSR: Tensor = self.reference(micro_batch).logprobs_GSR
        return logprobs_GSR

    def _lr(self, number: int) -> float:
        settings = self.run.learner.optimizer
        return settings.lr * min(1.0, number / max(1, settings.warmup_steps))

    def _without_update(self, number: int) -> dict[str, float]:
        if self.ranks.is_main:
            settings = self.run.learner.advantage
            logger.warning(
                "nothing left to train on: this step changes no weights",
                extra={"step": number}
                | settings.model_dump(include={"zero_variance", "truncated"}),
            )
        return LossStats.of_nothing().metrics() | {
            "learner/grad_norm": 0.0,
            "learner/skipped_steps": 0.0,
            "learner/updates": 0.0,
            "learner/lr": self._lr(number),
        }

    def forget(self) -> None:
        """Undo a step that failed half-way: gradients, and what FSDP holds for a backward."""
        reset_sharding(self.policy)
        self.optimizer.zero_grad()
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def _update(self, number: int) -> dict[str, float]:
        settings = self.run.learner.optimizer
        lr = self._lr(number)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        clipped = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), settings.max_grad_norm)
        norm = float(clipped.full_tensor() if isinstance(clipped, DTensor) else clipped)
        finite = math.isfinite(norm)
        if finite:
            self.optimizer.step()
        else:
            logger.warning("gradient norm is not finite, step skipped", extra={"step": number})
        self.optimizer.zero_grad()
        return {
            "learner/grad_norm": norm if finite else -1.0,
            "learner/skipped_steps": float(not finite),
            "learner/updates": float(finite),
            "learner/lr": lr,
        }

    def _over_ranks(self, stats: LossStats) -> LossStats:
        return LossStats(
            sums=self.ranks.all_reduce_sum(stats.sums),
            moments=self.ranks.all_reduce_sum(stats.moments),
            maxima=self.ranks.all_reduce_max(stats.maxima),
        )


class _Before(NamedTuple):
    """Of a micro-batch, when its batch's first update had not been made."""

    old_GSR: Tensor
    """Log-probabilities by the policy, nats, without gradient."""
    reference_GSR: Tensor | None
