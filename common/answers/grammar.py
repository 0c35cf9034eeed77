"""The default reading of an answer: free text → spans in seconds. `read_default(text) -> Reading`.

Two steps. `find_answer` finds what was answered: the first non-blank `<answer>` block outside any
thought, else the whole text without thoughts. `pairs` reads times there (12.5, .5, 1e1, 12.5s,
2 min, 1m05s, mm:ss, h:mm:ss) and pairs neighbours by the words between them.

Linear time: characters and times that are looked at are bounded, gaps between two times are matched
only up to `MAX_GAP_CHARS`, and no pattern can backtrack over an unbounded stretch twice.
`common.answers.reading` is the public face; `common.answers.presets` reads as other code bases do.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from common.answers.other_numbers import without_other_numbers
from common.answers.spans import Span
from common.answers.tags import find_answer
from common.answers.times import MAX_GAP_CHARS, Time, times
from common.answers.writing import plain

MAX_COMMA_CHARS = 256
"""Longest text in which commas inside numbers are understood."""

_SIGNS = r"""[\s"'`*_)\]}>]*"""
_CLOSE = (
    _SIGNS
    + r"(?:mark|point|in\sthe\svideo|开始,?)?(?:\((?:the\s)?(?:start|begin|beginning|end)\))?"
    + _SIGNS
)
"""What may stand behind the first time."""
_OPEN = r"""[\s"'`*_(\[{<~≈第]*"""
_HEDGE = (
    r"(?:\s*(?:the|about|around|approximately|approx\.?|roughly|at|seconds?(?=\s)|t\s*[=~]"
    r"|etwa|ungefähr|circa|ca\.|Sekunde|environ|la|le|seconde|unos|las|los|el|segundo|il|secondo"
    r"|约|大约|約))*"
)
"""What may stand before the second."""
_RANGE_WORDS = (
    r"up\s+to|to|until|till?|through|thru|bis(?:\s+zu[rm]?)?|à|au|hasta|fino\s+a|até|tot|do|ila"
    r"|до|по|至|到|(?:目)?から|부터|에서"
)
_RANGE_SIGNS = (
    r"-{1,2}>?|=>|\.{2,3}|…|<=?\s*t\s*<=?|≤\s*t\s*≤"
    r"|[~\u2012\u2013\u2014\u2212\u2192]"  # figure, en and em dash, minus, arrow
)
_RANGE = re.compile(
    _CLOSE + rf"[.,]?\s*(?:{_RANGE_WORDS}|{_RANGE_SIGNS})" + _HEDGE + _OPEN, re.IGNORECASE
)
_AND = re.compile(_CLOSE + "(?:and|&|und|et|en|y|e|и|和|与|與)" + _HEDGE + _OPEN, re.IGNORECASE)
_A = re.compile(_CLOSE + r"(?:a|al|as|às|alle)\s" + _HEDGE + _OPEN, re.IGNORECASE)
"""Spanish, Italian, Portuguese; in English an article, so it joins only after `_DE`."""
_DE = re.compile(
    r"(?<![a-zà-ÿ])(?:de|del|da|dal|dalle|das|desde|entre)\W*(?:(?:los|las|o|il|el)\s)?"
    r"(?:(?:segundo|secondo)\s)?$",
    re.IGNORECASE,
)
_COMMA = re.compile(r"""["'`*\s]*[,;]?["'`*\s]*""")
_LABEL = re.compile(
    r"""(?<![a-z])(?:(?P<end>end|finish|stop|conclud|to(?=["']\s?:))|start|begin|onset)""",
    re.IGNORECASE,
)
_BETWEEN = re.compile(
    r"(?:(?<![a-z])(?:between|from|zwischen|entre|tussen|tra|fra)|между|在|介于)"
    r"\W*(?:about|around|the)?\W*$",
    re.IGNORECASE,
)
_BARE = re.compile(
    r"\s*+([0-9]{1,8}+(?:\.[0-9]{1,8}+)?+)s?\s++(?:to|and|-)\s++([0-9]{1,8}+(?:\.[0-9]{1,8}+)?+)s?\s*+"
)
"""What a trained model answers; the rest of this file would read the same, more slowly."""
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})*(?:\.[0-9]+)?")
_COMMA_NUMBER = r"([0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|[0-9]+,[0-9]{1,2})"
_ONE_RANGE_WITH_COMMAS = re.compile(
    r"[^0-9]*"
    + _COMMA_NUMBER
    + r"(\s*(?:s|secs?|seconds?|[^\W\d_]{4,9})?"
    + r"\s*(?:to|and|until|bis|und|à|et|al?|hasta|до|[-\u2013\u2014])\s*)"
    + _COMMA_NUMBER
    + r"[^0-9]*",
    re.IGNORECASE,
)


class Reading(NamedTuple):
    """What a parser found."""

    spans: tuple[Span, ...]
    """Every span, in the order of the text, seconds."""
    used: tuple[Span, ...]
    """The spans a scorer compares: all of them, or the one (rounded) pair a preset takes."""
    reversed: bool
    """Whether a span was written end first and put in order; the presets never reorder."""
    tagged: bool = False
    """Whether it stood in a closed answer block; only the default grammar says."""


NOTHING = Reading((), (), reversed=False)


def read_default(text: str) -> Reading:
    """Spans of an answer by the default grammar."""
    answer = find_answer(text)
    if bare := _BARE.fullmatch(answer.text):
        found = [(float(bare[1]), float(bare[2]))]
    else:
        found = pairs(without_other_numbers(plain(answer.text)))
    spans = tuple((start, end) if start <= end else (end, start) for start, end in found)
    is_reversed = any(start > end for start, end in found)
    return Reading(spans, spans, reversed=is_reversed, tagged=answer.tagged)


def pairs(text: str) -> list[Span]:
    """Pairs of times as they are written, a reversed one reversed; see the module docstring.

    Strong joins are a word or sign of range, start and end labels, and `between … and`. Only when
    there is none do `and`, a comma or a space join two neighbouring times.
    """
    text = _without_commas_in_numbers(text)
    found = list(_unchained(text, times(text)))
    return list(_strong_pairs(text, found)) or list(_weak_pairs(text, found))


def _strong_pairs(text: str, found: list[Time]) -> Iterator[Span]:
    index = 0
    while index + 1 < len(found):
        pair = _strong_join(text, found[index], found[index + 1])
        if pair is not None:
            yield pair
        index += 1 if pair is None else 2


def _unchained(text: str, found: list[Time]) -> Iterator[Time]:
    """Without times in a row of three or more (`1 - 2 - 3`): which two belong together?"""
    for run in _runs(found, lambda left, right: _are_in_a_row(text, left, right)):
        yield from run if len(run) < 3 else ()


def _are_in_a_row(text: str, left: Time, right: Time) -> bool:
    gap = text[left.end : right.start]
    return len(gap) <= MAX_GAP_CHARS and _RANGE.fullmatch(gap) is not None


def _strong_join(text: str, left: Time, right: Time) -> Span | None:
    if right.start - left.end > MAX_GAP_CHARS:
        return None
    gap = text[left.end : right.start]
    if _RANGE.fullmatch(gap):
        return _in_seconds(left, right)
    before = text[max(0, left.start - MAX_GAP_CHARS) : left.start]
    label = _last_label(gap)
    if label == "end":
        return _in_seconds(left, right)
    if label == "start" and _last_label(before) == "end":
        return _in_seconds(right, left)
    if _AND.fullmatch(gap) and _BETWEEN.search(before):
        return _in_seconds(left, right)
    if _A.fullmatch(gap) and _DE.search(before):
        return _in_seconds(left, right)
    return None


def _weak_pairs(text: str, found: list[Time]) -> Iterator[Span]:
    """Two by two, of as many in a row as make pairs; a third that ends `[5, 9, 0.9]` is a score."""
    for run in _runs(found, lambda left, right: _are_neighbours(text, left, right)):
        last = run[-1]
        if len(run) == 3 and "." in text[last.start : last.end] and 0 <= last.seconds <= 1:
            run.pop()
        if len(run) % 2 == 0:
            yield from map(_in_seconds, run[::2], run[1::2])


def _are_neighbours(text: str, left: Time, right: Time) -> bool:
    gap = text[left.end : right.start]
    return len(gap) <= MAX_GAP_CHARS and any(join.fullmatch(gap) for join in (_AND, _COMMA))


def _runs(found: list[Time], belong: Callable[[Time, Time], bool]) -> Iterator[list[Time]]:
    """The times in order, cut where two do not belong together."""
    run: list[Time] = []
    for time in found:
        if run and not belong(run[-1], time):
            yield run
            run = []
        run.append(time)
    if run:
        yield run


def _last_label(text: str) -> str | None:
    label = None
    for match in _LABEL.finditer(text):
        label = "end" if match["end"] else "start"
    return label


def _in_seconds(start: Time, end: Time) -> Span:
    """`1 to 2 minutes` starts at a minute: a bare start takes the unit of a longer end."""
    if not start.unit_s and end.unit_s >= 60 and start.seconds <= end.seconds / end.unit_s:
        return start.seconds * end.unit_s, end.seconds
    return start.seconds, end.seconds


def _without_commas_in_numbers(text: str) -> str:
    """`1,000.0 to 1,200.0` and `12,5 to 17,8` → plain numbers, when the text is one such range.

    Anywhere else a comma separates: `105 to 110,200 to 210` is two spans.
    """
    if "," not in text or len(text) > MAX_COMMA_CHARS:
        return text
    match = _ONE_RANGE_WITH_COMMAS.fullmatch(text)
    if match is None or not ("," in match[1] or "," in match[3]):
        return text
    before, after = text[: match.start(1)], text[match.end(3) :]
    return f"{before}{_plain(match[1])}{match[2]}{_plain(match[3])}{after}"


def _plain(number: str) -> str:
    return number.replace(",", "" if _GROUPED.fullmatch(number) else ".")
