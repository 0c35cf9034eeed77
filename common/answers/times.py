"""Times in a text, one by one: `times(text) -> [Time, …]`, for the default reading.

12.5, .5, 1e1, 12.5s, 2 min, 1m05s, 1'05", mm:ss, h:mm:ss, 12-second, 第12秒, and units of a few
other languages. `common.answers.grammar` says which two belong together.

Linear time: at most `MAX_TIMES` are looked at, and no pattern can backtrack over an unbounded
stretch twice.
"""

import re
from itertools import islice
from typing import NamedTuple

MAX_TIMES = 512
MAX_GAP_CHARS = 48
"""Two times with more than this between them have nothing to do with each other."""
MAX_TIME_S = 1e9
"""Thirty years: a longer time is no time in a video, and no sum of allowed ones overflows."""

_UNIT = r"""
  (?:(?:\s*+|-)(?:
    (?P<h>h|hrs?|hours?|Stunden?|heures?|horas?|ore|小时|時間|시간)
  | (?P<m>m|mins?|minutes?|Minuten?|minutos?|minut[ioe]|分钟?|分鐘|분|мин(?:ут[аы]?)?)
  | (?P<ms>ms|msecs?|milliseconds?)
  | (?P<s>s|secs?|seconds?|Sek(?:unden?)?|secondes?|segundos?|second[ioe]|секунд[аыу]?|сек
      |秒鐘?|秒钟?|초)
  | (?:st|nd|rd|th|er?)(?:\s+(?:seconds?|secs?|s))?
  )(?![a-z\u0430-\u044f]))?
"""
_TIME = re.compile(
    r"""(?:(?<![0-9A-Za-z_.])|(?<=to)|(?<=and)|(?<=[0-9][hm])|(?<=[0-9]min)|(?<=\.\.))
    (?<![0-9][.:])
    (?:(?P<clock>[0-9]{1,3}(?::[0-9]{2}){1,2}(?:\.[0-9]++|,[0-9]{3}(?![0-9:]))?)(?![0-9:])
       (?:\s*+(?:s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?)(?![a-z]))?
    |(?P<primed>[0-9]{1,3}'\s?[0-9]{1,2}(?:\.[0-9]{1,9})?\s?(?:"|''))
    |(?P<number>(?:[0-9]++(?:\.[0-9]++)?|(?<!\.)\.[0-9]++)(?:e[-+]?[0-9]{1,2}(?![0-9a-z.]))?)
       (?!:[0-9])"""
    + _UNIT
    + ")",
    re.VERBOSE | re.IGNORECASE,
)
_COMPOUND = re.compile(r"[\s,]*(?:and|&)?\s*", re.IGNORECASE)
_MINUS = re.compile(r"(?:^|[\s(\[{<,:=\"'])[-\u2212]$")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class Time(NamedTuple):
    """One time in the text."""

    seconds: float
    unit_s: float
    """Seconds per unit (of the last part); 0 when the text names none."""
    start: int
    end: int


def times(text: str) -> list[Time]:
    """In the order of the text, at most `MAX_TIMES`; `1 min 5 s` is one."""
    found: list[Time] = []
    for match in islice(_TIME.finditer(text), MAX_TIMES):
        time = _signed(text, _time(match), found[-1].end if found else None)
        if abs(time.seconds) > MAX_TIME_S:
            continue
        last = found[-1] if found else None
        if last and _continues(text, last, time):
            found[-1] = Time(last.seconds + time.seconds, time.unit_s, last.start, time.end)
        else:
            found.append(time)
    return found


def _time(match: re.Match[str]) -> Time:
    clock = match["clock"]
    if primed := match["primed"]:
        minutes, _, seconds = primed.rstrip("\"' ").partition("'")
        return Time(60 * float(minutes) + float(seconds), 0.0, match.start(), match.end())
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
