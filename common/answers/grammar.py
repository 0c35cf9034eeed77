"""The default reading of an answer: free text → spans in seconds. `read_default(text) -> Reading`.

Two steps. `find_answer` finds what was answered: the first non-blank `<answer>` block outside any
thought, else the whole text without thoughts. `pairs` reads times there (12.5, .5, 1e1, 12.5s,
2 min, 1m05s, mm:ss, h:mm:ss) and pairs neighbours by the words between them.

Linear time: characters and times that are looked at are bounded, gaps between two times are matched
only up to `MAX_GAP_CHARS`, and no pattern can backtrack over an unbounded stretch twice.
`common.answers.reading` is the public face; `common.answers.presets` reads as other code bases do.
"""

import re
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from common.answers.spans import Span
from common.answers.tags import find_answer

MAX_TIMES = 512
MAX_GAP_CHARS = 48
"""Two times with more than this between them are not a pair."""
MAX_TIME_S = 1e9
"""Thirty years: a longer time is no time in a video, and no sum of allowed ones overflows."""
MAX_COMMA_CHARS = 256
"""Longest text in which commas inside numbers are understood."""

_UNIT = r"""
  (?:\s*+(?:(?P<h>h|hrs?|hours?)|(?P<m>m|mins?|minutes?)|(?P<ms>ms|msecs?|milliseconds?)
  |(?P<s>s|secs?|seconds?|秒)|(?:st|nd|rd|th)(?:\s+(?:seconds?|secs?|s))?)(?![a-z]))?
"""
_TIME = re.compile(
    r"""(?:(?<![0-9A-Za-z_.])|(?<=to)|(?<=and)|(?<=[0-9][hm])|(?<=\.\.))(?<![0-9][.:])
    (?:(?P<clock>[0-9]{1,3}(?::[0-9]{2}){1,2}(?:\.[0-9]++|,[0-9]{3}(?![0-9:]))?)(?![0-9:])
       (?:\s*+(?:s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?)(?![a-z]))?
    |(?P<number>(?:[0-9]++(?:\.[0-9]++)?|(?<!\.)\.[0-9]++)(?:e[-+]?[0-9]{1,2}(?![0-9a-z.]))?)(?!:[0-9])"""
    + _UNIT
    + ")",
    re.VERBOSE | re.IGNORECASE,
)

_CLOSE = r"""[\s"'`*_)\]}>]*"""
_OPEN = r"""[\s"'`*_(\[{<]*"""
_HEDGE = r"(?:\s*(?:the|about|around|approximately|approx\.?|roughly|at|t\s*=))*"
_RANGE = re.compile(
    _CLOSE
    + r"[.,]?\s*(?:up\s+to|to|until|till?|through|thru|-{1,2}>?|=>|\.{2,3}|…|至|到"
    + r"|[~\u2012\u2013\u2014\u2212\u2192])"  # figure, en and em dash, minus, arrow
    + _HEDGE
    + _OPEN,
    re.IGNORECASE,
)
_AND = re.compile(_CLOSE + "(?:and|&)" + _HEDGE + _OPEN, re.IGNORECASE)
_COMMA = re.compile(r"""["'`*\s]*,?["'`*\s]*""")
_COMPOUND = re.compile(r"[\s,]*(?:and|&)?\s*", re.IGNORECASE)
_LABEL = re.compile(
    r"(?<![a-z])(?:(?P<end>end|finish|stop|conclud)|start|begin|onset)", re.IGNORECASE
)
_BETWEEN = re.compile(r"(?<![a-z])(?:between|from)\W*(?:about|around)?\W*$", re.IGNORECASE)
_MINUS = re.compile(r"(?:^|[\s(\[{<,:=\"'])[-\u2212]$")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})*(?:\.[0-9]+)?")
_COMMA_NUMBER = r"([0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|[0-9]+,[0-9]{1,2})"
_ONE_RANGE_WITH_COMMAS = re.compile(
    r"[^0-9]*"
    + _COMMA_NUMBER
    + r"(\s*(?:s|secs?|seconds?)?\s*(?:to|and|until|[-\u2013\u2014])\s*)"
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


class Time(NamedTuple):
    """One time in the text."""

    seconds: float
    unit_s: float
    """Seconds per unit (of the last part); 0 when the text names none."""
    start: int
    end: int


Join = Callable[[str, Time, Time], Span | None]

NOTHING = Reading((), (), reversed=False)


def read_default(text: str) -> Reading:
    """Spans of an answer by the default grammar."""
    answer = find_answer(text)
    found = pairs(answer.text)
    spans = tuple((start, end) if start <= end else (end, start) for start, end in found)
    is_reversed = any(start > end for start, end in found)
    return Reading(spans, spans, reversed=is_reversed, tagged=answer.tagged)


def pairs(text: str) -> list[Span]:
    """Pairs of times as they are written, a reversed one reversed; see the module docstring.

    Strong joins are a word or sign of range, start and end labels, and `between … and`. Only when
    there is none do `and`, a comma or a space join two neighbouring times.
    """
    text = _without_commas_in_numbers(text)
    times = _times(text)
    return _greedy(text, times, _strong_join) or _greedy(text, times, _weak_join)


def times_in(text: str) -> list[float]:
    """All times of a text in seconds, in order, at most `MAX_TIMES`."""
    return [time.seconds for time in _times(text)]


def _greedy(text: str, times: list[Time], join: Join) -> list[Span]:
    found: list[Span] = []
    index = 0
    while index + 1 < len(times):
        pair = join(text, times[index], times[index + 1])
        if pair is not None:
            found.append(pair)
        index += 1 if pair is None else 2
    return found


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
    return None


def _weak_join(text: str, left: Time, right: Time) -> Span | None:
    if right.start - left.end > MAX_GAP_CHARS:
        return None
    gap = text[left.end : right.start]
    return _in_seconds(left, right) if _AND.fullmatch(gap) or _COMMA.fullmatch(gap) else None


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


def _times(text: str) -> list[Time]:
    times: list[Time] = []
    for match in islice(_TIME.finditer(text), MAX_TIMES):
        time = _signed(text, _time(match), times[-1].end if times else None)
        if abs(time.seconds) > MAX_TIME_S:
            continue
        last = times[-1] if times else None
        if last and _continues(text, last, time):
            times[-1] = Time(last.seconds + time.seconds, time.unit_s, last.start, time.end)
        else:
            times.append(time)
    return times


def _time(match: re.Match[str]) -> Time:
    clock = match["clock"]
    if clock is None:
        unit_s = _UNIT_S.get(match.lastgroup or "", 0.0)
        return Time(float(match["number"]) * (unit_s or 1.0), unit_s, match.start(), match.end())
    seconds = 0.0
    for part in clock.replace(",", ".").split(":"):
        seconds = seconds * 60 + float(part)
    return Time(seconds, 0.0, match.start(), match.end())


def _signed(text: str, time: Time, last_end: int | None) -> Time:
    """A minus sign belongs to the number unless it is all that stands between two times."""
    start = time.start
    if not _MINUS.search(text[max(0, start - 2) : start]):
        return time
    if last_end is not None and not text[last_end : start - 1].strip():
        return time
    return Time(-time.seconds, time.unit_s, start - 1, time.end)


def _continues(text: str, last: Time, time: Time) -> bool:
    """Whether `time` is the rest of `last`, as the seconds in `1 min 5 s`."""
    return (
        last.unit_s >= 60
        and 0 < time.unit_s < last.unit_s
        and 0 <= time.seconds < last.unit_s
        and time.start - last.end <= MAX_GAP_CHARS
        and _COMPOUND.fullmatch(text[last.end : time.start]) is not None
    )


def _without_commas_in_numbers(text: str) -> str:
    """`1,000.0 to 1,200.0` and `12,5 to 17,8` → plain numbers, when the text is one such range.

    Anywhere else a comma separates: `105 to 110,200 to 210` is two spans.
    """
    if "," not in text or len(text) > MAX_COMMA_CHARS:
        return text
    match = _ONE_RANGE_WITH_COMMAS.fullmatch(text)
    if match is None or not ("," in match[1] or "," in match[3]):
        return text
    return f"{_plain(match[1])}{match[2]}{_plain(match[3])}"


def _plain(number: str) -> str:
    return number.replace(",", "" if _GROUPED.fullmatch(number) else ".")
