"""Ground truth printed as an answer → the text that joins a group (pure). SPEC B3 leaves it open.

think mode offers three options, by name:

    bare     the answer without a thought, as the paper literally implies; it earns no format reward
    splice   the answer after the thought of the best rollout (default)
    none     nothing is injected
"""

from collections.abc import Iterable
from typing import NamedTuple

from common.answers.tags import thought_of
from common.config import ThinkInjection
from common.messages import Mode


class Injection(NamedTuple):
    """An answer text, or why there is none; exactly one of the two."""

    text: str | None
    reason: str | None = None


def inject(
    answer: str, *, mode: Mode, option: ThinkInjection, rollouts: Iterable[str] = ()
) -> Injection:
    """The text that joins the group.

    Args:
        answer: the ground truth as `<answer> … </answer>`.
        mode: what the prompt asked for; the option matters in think mode alone.
        option: see the module docstring.
        rollouts: responses, best first; splice takes the first one with a closed thought.
    """
    if mode == "answer" or option == "bare":
        return Injection(answer)
    if option == "none":
        return Injection(None, "think_injection is none")
    for rollout in rollouts:
        thought = thought_of(rollout)
        if thought is not None:
            return Injection(f"<think>{thought}</think>{answer}")
    return Injection(None, "think_injection is splice and no response has a closed thought")
