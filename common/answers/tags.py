"""Think and answer tags of a response, any case, in linear time: `find_answer(text) -> AnswerText`.

`str.find` on the folded text instead of patterns: a megabyte of tags or of `<` costs a few
milliseconds. Used by `common.answers.grammar` and by the format reward.
"""

import re
from typing import NamedTuple

MAX_READ_CHARS = 65_536
"""Characters of an answer that are looked at; 2,048 tokens are about 8,000."""
MAX_TAGS = 256
"""Thoughts, and blank answer blocks, after which the rest of a response is not looked at."""
_THINKING = re.compile("<(/?)thinking>", re.IGNORECASE)
"""What some models write for think."""
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"


class AnswerText(NamedTuple):
    """The part of a response that answers."""

    text: str
    """At most `MAX_READ_CHARS`."""
    tagged: bool
    """Whether it is the inside of a closed answer block."""


def fold(text: str) -> str:
    """Lower case of the same length, so that positions carry over; only `İ` would grow."""
    return text.lower() if text.isascii() else text.replace("\u0130", "i").lower()


def find_answer(text: str) -> AnswerText:
    """The first answer block that is not blank, else the whole text; thoughts are never part of it.

    A `</think>` without its opening tag ends a thought that began in the prompt. In a thought that
    never ends only what follows an `<answer>` counts. A block that never ends goes on to the end.
    """
    if "<" not in text:
        return AnswerText(text[:MAX_READ_CHARS], tagged=False)
    folded = fold(text)
    if "thinking>" in folded:
        text = _THINKING.sub(r"<\1think>", text)
        folded = fold(text)
    if THINK_OPEN in folded or THINK_CLOSE in folded:
        text = _without_thoughts(text, folded)
        folded = fold(text)
    begin = folded.find(ANSWER_OPEN)
    if begin < 0:
        return AnswerText(text[:MAX_READ_CHARS], tagged=False)
    for _ in range(MAX_TAGS):
        begin += len(ANSWER_OPEN)
        end = folded.find(ANSWER_CLOSE, begin)
        block = text[begin:] if end < 0 else text[begin:end]
        if block and not block.isspace():
            return AnswerText(block[:MAX_READ_CHARS], tagged=end >= 0)
        begin = folded.find(ANSWER_OPEN, end) if end >= 0 else -1
        if begin < 0:
            break
    return AnswerText("", tagged=False)


def thought_of(text: str) -> str | None:
    """Inside of the first closed thought, None without one or when it is blank."""
    folded = fold(text)
    begin = folded.find(THINK_OPEN)
    end = folded.find(THINK_CLOSE, begin) if begin >= 0 else -1
    thought = text[begin + len(THINK_OPEN) : end] if end >= 0 else ""
    return thought if thought and not thought.isspace() else None


def _without_thoughts(text: str, folded: str) -> str:
    kept: list[str] = []
    position, opening, closing = 0, -1, -1
    absent = len(text)
    for _ in range(MAX_TAGS):
        if opening < position:
            opening = _find(folded, THINK_OPEN, position, absent)
        if closing < position:
            closing = _find(folded, THINK_CLOSE, position, absent)
        if closing < opening:
            kept.clear()
            position = closing + len(THINK_CLOSE)
            continue
        kept.append(text[position:opening])
        if closing == absent:
            answer = folded.find(ANSWER_OPEN, opening)
            kept.append(text[answer:] if answer >= 0 else "")
            break
        position = closing + len(THINK_CLOSE)
    return " | ".join(piece for piece in kept if piece)


def _find(text: str, piece: str, start: int, absent: int) -> int:
    found = text.find(piece, start)
    return found if found >= 0 else absent
