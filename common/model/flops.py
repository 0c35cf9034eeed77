"""FLOPs of a model's passes over prompts, answers and clips (pure; attention is quadratic).

The learner cuts its work by them, and plans of recipes estimate seconds with them.
"""

from collections.abc import Sequence

from common.model.architecture import MERGE, Architecture


def forward_flop(
    architecture: Architecture, *, prompt: int, answers: Sequence[int], scored: int
) -> float:
    """Of one packed group: matrices, attention (causal, answers see prompt and themselves), head.

    Args:
        architecture: sizes.
        prompt: tokens.
        answers: tokens of each.
        scored: tokens whose logits are computed.
    """
    tokens = prompt + sum(answers)
    pairs = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in answers)
    return (
        2 * architecture.decoder_parameters * tokens
        + architecture.full_attention_layers * 4 * architecture.query_width * pairs
        + 2 * architecture.hidden * architecture.vocabulary * scored
    )


def tower_flop(architecture: Architecture, *, visual: int) -> float:
    """One pass over the patches of `visual` tokens, without attention inside the tower."""
    return 2.0 * architecture.tower_parameters * MERGE**2 * visual
