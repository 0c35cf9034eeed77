"""Which failure a run shows, in words: summary.json → sentences of its report. Pure.

Four are known: a policy that has collapsed on one answer, one that no longer answers at all, one
that learned its training rows and not the task, and ground truth that drowns the policy's own
answers. A run may show several or none.

Thresholds stand between the figures of runs that were seen to fail and those that were not
(docs/compare.md).
"""

from collections.abc import Iterator, Mapping
from typing import Any

COLLAPSED_SHARE = 0.7
"""Of the entropy at the start, below; GRPO ended at .04 to .65 of it, all other runs at .52 and
more, of which the spread tells it apart."""
COLLAPSED_SPREAD = 0.12
"""Best of G less the mean of samples, below; GRPO .00 to .10, all other runs .13 and more."""
LOST_SHARE = 0.05
"""Best of G, of that at the start, below: one run of GRPO, of whose answers none could be read any
more, ended at .00, all other runs at .07 and more."""
TRANSFER_GAP = 0.3
"""IoU of sampled answers on training rows less the same on held-out ones, above; SFT on few rows,
which gained least on held-out queries, .45 to .50, all other runs .24 and less."""
DROWNING_CONTAMINATION = 1.0
"""Stds of the policy's rewards by which the truth moves the mean, above; long, where hardly an
answer hits and nothing was learned, 1.3 and more; few and noisy .2 to .8, but for the set reward:
what misses differs little there, so that its stds are small."""
DROWNING_FLIPS = 0.28
"""Share of policy answers that are pushed the other way because of it, above; long .34 and more,
few and noisy .06 to .22."""

Summary = Mapping[str, Any]


def echo(summary: Summary) -> list[str]:
    """A sentence per failure that the figures show, or one that they show none.

    What was not measured shows nothing; when nothing was measured, that is said instead.
    """
    needed = ("entropy_end", "train_iou_end", "contamination")
    if all(summary.get(key) is None for key in needed):
        return ["Nothing was sampled and no training group was measured: no failure can be seen."]
    found = [*_collapse(summary), *_loss(summary), *_imitation(summary), *_drowning(summary)]
    return found or [
        "Neither a collapse, nor lost answers, nor imitation without transfer, nor a drowning "
        "ground truth is seen."
    ]


def _collapse(summary: Summary) -> Iterator[str]:
    entropy, best, mean = (
        summary.get(f"{key}_end") for key in ("entropy", "best_of_g", "sampled_miou")
    )
    before = summary["entropy_start"]
    if entropy is None or before is None or best is None or mean is None:
        return
    if entropy < COLLAPSED_SHARE * before and best - mean < COLLAPSED_SPREAD:
        yield (
            f"Collapse: entropy is {entropy:.2f} nats per token ({before:.2f} at the start), and "
            f"the best of {summary['num_samples']} answers is only {best - mean:.2f} IoU better "
            "than their mean: the policy gives one answer, and there is little left to choose from."
        )


def _loss(summary: Summary) -> Iterator[str]:
    before, best = summary.get("best_of_g_start"), summary.get("best_of_g_end")
    if before is None or best is None:
        return
    if best < LOST_SHARE * before:
        yield (
            f"Answers lost: the best of {summary['num_samples']} answers has IoU {best:.2f} "
            f"({before:.2f} at the start): hardly any can be read or lies where it should, and "
            "rewards that are all 0 bring none back."
        )


def _imitation(summary: Summary) -> Iterator[str]:
    train, held_out = summary.get("train_iou_end"), summary.get("sampled_miou_end")
    if train is None or held_out is None:
        return
    if train - held_out > TRANSFER_GAP:
        yield (
            f"Imitation without transfer: answers to training rows have IoU {train:.2f}, those to "
            f"held-out queries {held_out:.2f}: the policy knows its rows by heart."
        )


def _drowning(summary: Summary) -> Iterator[str]:
    moved, flips = summary.get("contamination"), summary.get("sign_flip_share")
    # SFT trains on no answer of the policy, so none is pushed anywhere.
    if moved is None or flips is None or summary["method"] == "sft":
        return
    if moved > DROWNING_CONTAMINATION and flips > DROWNING_FLIPS:
        yield (
            f"Ground truth drowns the policy: it moves the mean reward of a group by {moved:.1f} "
            f"of the policy's own standard deviations, and {flips:.0%} of the policy's answers, "
            "better than its mean, are pushed away."
        )
