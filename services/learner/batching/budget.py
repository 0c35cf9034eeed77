"""How much a rank forwards at once: settings, model and card → `Budget`; what a failure taught.

Running out of memory cannot be undone where several ranks are in step: the others wait inside a
collective that this rank has left. So there the halved budget is remembered in the run's folder and
the run ends; whoever resumes it goes on with half. A rank alone halves and repeats the step.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from common.config import Run
from common.errors import ConfigError, MemoryShortError
from common.model.architecture import architecture_of
from common.model.memory import Card, recomputed_share, room_on_card
from services.learner.batching.batch import TrainBatch
from services.learner.batching.plan import Limits, flop_cost, smallest, useful_share
from services.learner.parallel import Ranks
from services.learner.state import durable

logger = logging.getLogger(__name__)

FILE = "max_tokens_per_rank.json"
"""In the run's folder: {"configured": by settings and card, "wanted": what is used instead}."""
CPU_TOKENS = 32_768
"""Of a CPU, whose memory is not looked at: 20k tokens of prompt and 1.5k of eight answers fit."""


class PartlyUpdatedError(torch.OutOfMemoryError):
    """Memory ran out when a step had changed weights already: it cannot be repeated."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The same on every rank."""

    limits: Limits
    recomputed: float
    """Share of the decoder layers that backward computes again."""
    configured: int
    """`limits.max_tokens` by settings and card, before memory ever ran out."""

    @classmethod
    def of(cls, run: Run, *, start: Path, ranks: Ranks) -> Self:
        """From `[learner]`, or from the smallest card of all ranks; a collective.

        Raises:
            ConfigError: the card has no room for the longest sequence of `[shared]`.
        """
        architecture = architecture_of(str(start))
        card_bytes = _smallest_card(ranks)
        if card_bytes is None:
            chosen = run.learner.gradient_checkpointing
            recomputed = 0.0 if chosen == "auto" else recomputed_share(chosen)
            room = CPU_TOKENS
        else:
            card = Card(card_bytes, ranks=ranks.world_size)
            recomputed, room = room_on_card(
                run.shared, learner=run.learner, architecture=architecture, card=card
            )
        max_tokens = run.learner.max_tokens_per_rank or room
        _refuse_too_small(run, max_tokens, card_bytes)
        learned = ranks.broadcast_json(_learned(run.learner.run_dir, max_tokens))
        cost = flop_cost(
            architecture, passes=3 + recomputed, trained_tower=not run.learner.freeze_vision
        )
        if learned != max_tokens:
            logger.warning(
                "fewer tokens at once: memory ran out before",
                extra={"max_tokens_per_rank": learned, "before": max_tokens},
            )
        return cls(Limits(learned, cost), recomputed, configured=max_tokens)

    def reduced(self, batch: TrainBatch, *, run_dir: Path, error: BaseException) -> Self:
        """Half of what was forwarded at once, remembered in the run's folder; said in the log.

        Raises:
            MemoryShortError: no part of the step can be split further.
        """
        parts = [parts for bins in batch.plan for parts in bins]
        before = max(sum(part.tokens for part in one) for one in parts)
        least = max(smallest(part.work) for one in parts for part in one)
        wanted = max(before // 2, least)
        if wanted >= before:
            raise MemoryShortError(
                f"memory ran out: found a prompt and an answer of {before:,} tokens, wanted fewer: "
                "shorter clips (shared.max_prompt_tokens), learner.gradient_checkpointing = 'on', "
                f"more ranks ({error})"
            ) from error
        run_dir.mkdir(parents=True, exist_ok=True)
        learned = {"configured": self.configured, "wanted": wanted}
        durable.replace_text(run_dir / FILE, json.dumps(learned))
        logger.warning(
            "memory ran out: fewer tokens at once from now on",
            extra={"max_tokens_per_rank": wanted, "before": before, "error": str(error)},
        )
        return replace(self, limits=replace(self.limits, max_tokens=wanted))


def step_within(
    budget: Budget,
    *,
    run_dir: Path,
    ranks: Ranks,
    collate: Callable[[Limits], TrainBatch],
    step: Callable[[TrainBatch], dict[str, float]],
    forget: Callable[[], None],
) -> tuple[dict[str, float], Budget]:
    """One optimizer step; where memory runs out it is repeated once with half as much at once.

    Args:
        budget: of this step.
        run_dir: keeps what was learned.
        ranks: one rank repeats; of several, who failed ends the run for all.
        collate: the step's work within limits.
        step: computes it; raises torch.OutOfMemoryError.
        forget: undoes an unfinished step.

    Returns:
        The step's figures, and the budget to go on with.

    Raises:
        MemoryShortError: there are several ranks, weights were changed already, or what is left
            cannot be split.
        torch.OutOfMemoryError: half was too much as well.
    """
    batch = collate(budget.limits)
    try:
        return step(batch) | _figures(batch, budget, retries=0), budget
    except torch.OutOfMemoryError as error:
        budget = budget.reduced(batch, run_dir=run_dir, error=error)
        if isinstance(error, PartlyUpdatedError):
            raise MemoryShortError(
                "memory ran out between a step's updates (learner.updates_per_batch), of which "
                "those before would be applied twice: the run ends here and, resumed (--resume), "
                f"forwards {budget.limits.max_tokens:,} tokens at once "
                "(learner.max_tokens_per_rank)"
            ) from error
        if ranks.world_size > 1:
            raise MemoryShortError(
                f"memory ran out on rank {ranks.rank} of {ranks.world_size}, which are in step: "
                f"the run ends here and, resumed (--resume), forwards {budget.limits.max_tokens:,} "
                "tokens at once (learner.max_tokens_per_rank)"
            ) from error
    # Outside of the handler: its traceback holds the tensors of the step that failed.
    forget()
    batch = collate(budget.limits)
    return step(batch) | _figures(batch, budget, retries=1), budget


def _figures(batch: TrainBatch, budget: Budget, *, retries: int) -> dict[str, float]:
    """Of the step line."""
    parts = [part for bins in batch.plan for parts in bins for part in parts]
    counts = {
        "batch/micro_batches": float(len(batch.plan)),
        "batch/max_tokens_per_rank": float(budget.limits.max_tokens),
        "batch/memory_retries": float(retries),
    }
    if not parts:  # nothing was left to train on
        return counts
    works = list({part.work.key: part.work for part in parts}.values())
    slots = sum(part.tokens - part.work.prompt for part in parts)
    real = sum(part.work.answers[row] - 1 for part in parts for row in part.rows)
    return counts | {
        "batch/useful_fraction": useful_share(batch.plan, works, cost=budget.limits.cost),
        "batch/padding_fraction": 1 - real / slots if slots else 0.0,
    }


def _smallest_card(ranks: Ranks) -> float | None:
    """Bytes; None on a CPU."""
    if ranks.device.type != "cuda":
        return None
    own = float(torch.cuda.get_device_properties(ranks.device).total_memory)
    return -ranks.all_reduce_max(torch.tensor([-own], dtype=torch.float64)).item()


def _refuse_too_small(run: Run, max_tokens: int, card_bytes: float | None) -> None:
    wanted = run.shared.max_prompt_tokens + run.shared.sampling.max_tokens
    if card_bytes is None or run.learner.max_tokens_per_rank is not None or max_tokens >= wanted:
        return
    raise ConfigError(
        f"learner.device: found room for {max(0, max_tokens):,} tokens at once on a card of "
        f"{card_bytes / 1e9:.0f} GB, wanted {wanted:,} (shared.max_prompt_tokens + "
        "shared.sampling.max_tokens): more ranks, learner.weight_staging = 'host', shorter clips; "
        "learner.max_tokens_per_rank overrides this estimate"
    )


def _learned(run_dir: Path, configured: int) -> int:
    """What memory had room for, unless settings or card have changed since."""
    path = run_dir / FILE
    try:
        learned = json.loads(path.read_text(encoding="utf-8"))
        return int(learned["wanted"]) if learned["configured"] == configured else configured
    except FileNotFoundError:
        return configured
    except (ValueError, KeyError, TypeError) as error:
        # Should memory run out again, that is learned again.
        logger.warning(
            "what memory had room for is forgotten: its file is damaged",
            extra={"path": str(path), "error": repr(error)},
        )
        return configured
