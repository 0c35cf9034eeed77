"""Format reward: does a response have the shape that was asked for? Pure, linear in its length.

answer mode, loose    a closed answer block that holds something readable and in order
answer mode, strict   the same, and it is the only block, on one line, at the end of the response
think mode, loose     the whole response is `<think>…</think> <answer>…</answer>` (SPEC B2)
think mode, strict    the same with one thought that is not blank and one answer, on one line,
                      readable and in order

Tags count in any case. The presets check what the public code checks (SPEC A6): there `<think>` is
never required, a reversed span earns the reward, and tags are lower case.
"""

import re

from common.answers.presets import first_block, has_one_block, has_seed_pair
from common.answers.tags import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, fold
from common.messages import Mode
from common.rest.reward_api import FormatRule

_THOUGHT_THEN_ANSWER = re.compile(THINK_CLOSE + r"\s*" + ANSWER_OPEN)


def has_format(response: str, *, mode: Mode, rule: FormatRule, readable: bool) -> bool:
    """Format of the default parser.

    Args:
        response: the whole text.
        mode: what the prompt asked for.
        rule: loose or strict, see the module docstring.
        readable: the parser found an answer inside a closed block, in order.
    """
    if mode == "answer" and rule == "loose":
        return readable
    folded = fold(response).strip()
    if mode == "think":
        thought = _thought_before_answer(folded)
        if thought is None or rule == "loose":
            return thought is not None
        if not thought or thought.isspace() or folded.count(THINK_CLOSE) > 1:
            return False
    return readable and _one_line_answer_at_end(folded)


def has_seed_format(response: str, *, rule: FormatRule) -> bool:
    """Format of the public training code (SPEC A6); the mode plays no part."""
    body = first_block(response)
    if body is None or not has_seed_pair(body):
        return False
    if rule == "loose":
        return True
    at_end = response.rstrip().endswith(ANSWER_CLOSE)
    return at_end and has_one_block(response) and "\n" not in body


def has_timezero_format(response: str) -> bool:
    """`<think>…</think> <answer>…</answer>` and nothing else, tags in lower case (SPEC B2)."""
    return _thought_before_answer(response.strip()) is not None


def _thought_before_answer(stripped: str) -> str | None:
    """Inside of the thought when the text is a thought and then an answer, else None."""
    if not (stripped.startswith(THINK_OPEN) and stripped.endswith(ANSWER_CLOSE)):
        return None
    middle = _THOUGHT_THEN_ANSWER.search(stripped, len(THINK_OPEN))
    return stripped[len(THINK_OPEN) : middle.start()] if middle else None


def _one_line_answer_at_end(stripped: str) -> bool:
    """Exactly one answer block, without a line break, and nothing after it."""
    if not stripped.endswith(ANSWER_CLOSE):
        return False
    if stripped.count(ANSWER_OPEN) != 1 or stripped.count(ANSWER_CLOSE) != 1:
        return False
    return "\n" not in stripped[stripped.find(ANSWER_OPEN) :]
