"""Ground truth printed as an answer → the text that joins a group (pure). SPEC B3 leaves it open.

think mode offers three options, by name:

    bare     the answer without a thought, as the paper literally implies; it earns no format reward
    splice   the answer after the thought of the best rollout (default)
    none     nothing is injected
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from common.config import ThinkInjection
from common.messages import Mode

_FLAGS = re.IGNORECASE | re.ASCII
_THINK_OPEN = re.compile(r"<think>", _FLAGS)
_THINK_CLOSE = re.compile(r"</think>", _FLAGS)


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


def thought_of(response: str) -> str | None:
    """Inside of the first closed `<think>…</think>` that is not blank; None without one."""
    opening = _THINK_OPEN.search(response)
    closing = _THINK_CLOSE.search(response, opening.end()) if opening else None
    if opening is None or closing is None:
        return None
    thought = response[opening.end() : closing.start()]
    return thought if thought and not thought.isspace() else None
