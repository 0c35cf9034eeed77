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

from common.answer_presets import CLOSE, OPEN, first_block, has_one_block, has_seed_pair
from common.messages import Mode
from common.reward_api import FormatRule

_FLAGS = re.IGNORECASE | re.ASCII
_THINK_OPEN = re.compile(r"\s*<think>", _FLAGS)
_THINK_CLOSE = re.compile(r"</think>", _FLAGS)
_ANSWER_OPEN = re.compile(r"<answer>", _FLAGS)
_ANSWER_CLOSE = re.compile(r"</answer>", _FLAGS)
_THOUGHT_THEN_ANSWER = re.compile(r"</think>\s*<answer>", _FLAGS)


def has_format(response: str, *, mode: Mode, rule: FormatRule, readable: bool) -> bool:
    """Format of the default parser.

    Args:
        response: the whole text.
        mode: what the prompt asked for.
        rule: loose or strict, see the module docstring.
        readable: the parser found an answer inside a closed block, in order.
    """
    if mode == "think":
        thought = _thought_of_exact_format(response)
        if thought is None or rule == "loose":
            return thought is not None
        return readable and not thought.isspace() and thought != "" and _one_line_answer(response)
    return readable and (rule == "loose" or _one_line_answer(response))


def has_seed_format(response: str, *, rule: FormatRule) -> bool:
    """Format of the public training code (SPEC A6); the mode plays no part."""
    body = first_block(response)
    if body is None or not has_seed_pair(body):
        return False
    if rule == "loose":
        return True
    return has_one_block(response) and response.rstrip().endswith(CLOSE) and "\n" not in body


def has_timezero_format(response: str) -> bool:
    """`<think>…</think> <answer>…</answer>` and nothing else, tags in lower case (SPEC B2)."""
    text = response.strip()
    return (
        text.startswith("<think>")
        and text.endswith(CLOSE)
        and bool(re.search(r"</think>\s*" + OPEN, text))
    )


def _thought_of_exact_format(response: str) -> str | None:
    """Inside of the thought when the response is a thought and then an answer, else None."""
    opening = _THINK_OPEN.match(response)
    if opening is None or not _ends_with_answer(response):
        return None
    middle = _THOUGHT_THEN_ANSWER.search(response, opening.end())
    return response[opening.end() : middle.start()] if middle else None


def _one_line_answer(response: str) -> bool:
    """One answer block, at the end, without a line break, after at most one thought."""
    opening = _ANSWER_OPEN.search(response)
    if opening is None or not _ends_with_answer(response):
        return False
    closing = _ANSWER_CLOSE.search(response, opening.end())
    if closing is None or _ANSWER_CLOSE.search(response, closing.end()):
        return False
    if _ANSWER_OPEN.search(response, opening.end()) or _second(_THINK_CLOSE, response):
        return False
    return "\n" not in response[opening.end() : closing.start()]


def _second(pattern: re.Pattern[str], text: str) -> bool:
    first = pattern.search(text)
    return first is not None and pattern.search(text, first.end()) is not None


def _ends_with_answer(response: str) -> bool:
    return response.rstrip()[-len(CLOSE) :].lower() == CLOSE
