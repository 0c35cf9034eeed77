"""What a check found: ok, warn or fail, with the cure.

checks -> Finding -> `command`, which prints them and ends with the code of the worst
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from common.errors import ConfigError, TempSampError
from jobs.local import terminal

Level = Literal["ok", "warn", "fail"]
EXIT_CODES: dict[Level, int] = {"ok": 0, "warn": 1, "fail": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line."""

    area: str
    """What was looked at: machine, redis, model, ..."""
    name: str
    level: Level
    found: str
    cure: str = ""
    """What mends it; names the knob. Empty only where nothing has to be mended."""

    def as_json(self) -> dict[str, str]:
        """For --json."""
        return asdict(self)


Check = Callable[[], Iterable[Finding]]
"""Looks at one thing; what stands in its way it says as a finding, or raises as an error."""


def findings_of(area: str, check: Check) -> Iterator[Finding]:
    """What a check finds; an error of ours is a failure of the area, with its own words."""
    try:
        yield from check()
    except (ConfigError, TempSampError) as error:
        yield Finding(area, area, "fail", one_line(str(error)), "as it says")
    except OSError as error:
        yield Finding(area, area, "fail", one_line(f"{error}"), "make it readable")


def exit_code(findings: Iterable[Finding]) -> int:
    """Of the worst."""
    return max((EXIT_CODES[finding.level] for finding in findings), default=0)


def one_line(text: str, *, most_chars: int = 400) -> str:
    """As in a table, with more room."""
    return terminal.one_line(text, most_chars=most_chars)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()

    def __str__(self) -> str:
        return terminal.took(time.perf_counter() - self._began_s)
