"""Readings of an answer as published code bases do it, faults included: `text -> Reading`.

Kept for comparisons with published numbers; `common.answers.grammar` is the reading to train with.
SPEC A6 (seed_train), A9 (seed_eval), A9 and B5 (timelens, timezero) say what each one does.

The public patterns are quadratic or worse on long runs of digits or tags. Here numbers are
possessive and start only where no digit precedes, and blocks are found with `str.find`: the same
matches in linear time. Text past `MAX_READ_CHARS` of what is read is ignored, and where all pairs
are listed, those past `MAX_TIMES`.
"""

import re
import sys
from itertools import islice

from common.answers.grammar import NOTHING, Reading
from common.answers.spans import Span
from common.answers.tags import ANSWER_CLOSE, ANSWER_OPEN, MAX_READ_CHARS, MAX_TAGS
from common.answers.times import MAX_TIMES

NUMBER = r"(?<!\d)(\d++\.?+\d*+)"
_TO_OR_AND = re.compile(NUMBER + r"\s*+(?:to|and)\s*+" + NUMBER)
_TO = re.compile(NUMBER + r"\s++to\s++" + NUMBER)
_ONE_SPACE = re.compile(NUMBER + " (?:to|and) " + NUMBER)
_DASH = re.compile(NUMBER + r"\s*+-\s*+" + NUMBER)
STANDALONE_NUMBER = re.compile(r"\b\d+(?:\.\d+)?\b")
_CLOCK = re.compile(r"\b(\d{1,2}:\d{2}:\d{2}(?:\.\d+)?|\d{1,2}:\d{2}(?:\.\d+)?)\b")


def read_seed_train(text: str) -> Reading:
    """SPEC A6: in the first block or everywhere: last `a to|and b`, last `a - b`, two numbers."""
    body = first_block(text)
    body = (text if body is None else body)[:MAX_READ_CHARS]
    for pattern in (_TO_OR_AND, _DASH):
        if found := pattern.findall(body):
            return _one((_float(found[-1][0]), _float(found[-1][1])))
    numbers = STANDALONE_NUMBER.findall(body)
    return _one((_float(numbers[0]), _float(numbers[1]))) if len(numbers) > 1 else NOTHING


def read_seed_eval(text: str) -> Reading:
    """SPEC A9: in the first one-line block or everywhere, lower case: first pair, whole seconds."""
    text = text.lower()
    body = _first_one_line_block(text)
    spans = _timelens_spans((text if body is None else body)[:MAX_READ_CHARS])
    return Reading(spans, tuple((_whole(s), _whole(e)) for s, e in spans[:1]), reversed=False)


def read_timelens(text: str) -> Reading:
    """SPEC A9: the official scorer; everything is read, thoughts too, and the first pair counts."""
    spans = _timelens_spans(text[:MAX_READ_CHARS].lower())
    return Reading(spans, spans[:1], reversed=False)


def read_timezero(text: str) -> Reading:
    """SPEC B5: the last `a to|and b` with single spaces, anywhere in the text."""
    found = _ONE_SPACE.findall(text[:MAX_READ_CHARS])
    return _one((_float(found[-1][0]), _float(found[-1][1]))) if found else NOTHING


def first_block(text: str) -> str | None:
    """Inside of the first `<answer>…</answer>`, tags in lower case; None without one."""
    begin = text.find(ANSWER_OPEN)
    end = text.find(ANSWER_CLOSE, begin + len(ANSWER_OPEN)) if begin >= 0 else -1
    return text[begin + len(ANSWER_OPEN) : end] if end >= 0 else None


def has_one_block(text: str) -> bool:
    """Whether there is exactly one `<answer>…</answer>`, tags in lower case."""
    begin = text.find(ANSWER_OPEN)
    end = text.find(ANSWER_CLOSE, begin + len(ANSWER_OPEN)) if begin >= 0 else -1
    return end >= 0 and first_block(text[end + len(ANSWER_CLOSE) :]) is None


def has_seed_pair(body: str) -> bool:
    """Whether the public format check sees `number (to|and|-) number`."""
    body = body[:MAX_READ_CHARS]
    return bool(_TO_OR_AND.search(body) or _DASH.search(body))


def _first_one_line_block(text: str) -> str | None:
    begin, end = text.find(ANSWER_OPEN), -1
    for _ in range(MAX_TAGS):
        if begin < 0:
            break
        if end < begin:
            end = text.find(ANSWER_CLOSE, begin)
        if end < 0:
            break
        line_end = text.find("\n", begin)
        if line_end < 0 or end < line_end:
            return text[begin + len(ANSWER_OPEN) : end]
        begin = text.find(ANSWER_OPEN, line_end)
    return None


def _timelens_spans(text: str) -> tuple[Span, ...]:
    clocks = [_clock_s(match[0]) for match in islice(_CLOCK.finditer(text), 2 * MAX_TIMES)]
    if len(clocks) > 1:
        return _in_pairs(clocks)
    for pattern in (_DASH, _TO):
        if found := tuple(islice(pattern.finditer(text), MAX_TIMES)):
            return tuple((_float(match[1]), _float(match[2])) for match in found)
    numbers = islice(STANDALONE_NUMBER.finditer(text), 2 * MAX_TIMES)
    return _in_pairs([_float(match[0]) for match in numbers])


def _in_pairs(times: list[float]) -> tuple[Span, ...]:
    return tuple(zip(times[::2], times[1::2], strict=False))


def _clock_s(clock: str) -> float:
    seconds = 0.0
    for part in clock.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def _whole(seconds: float) -> float:
    """Banker's rounding, as the public evaluation."""
    return float(round(seconds))


def _float(digits: str) -> float:
    """A number too long for a float is the largest one: infinity does not travel as JSON."""
    return min(float(digits), sys.float_info.max)


def _one(span: Span) -> Reading:
    return Reading((span,), (span,), reversed=False)
