"""Files of JSON lines, as a crash may have left them: `read_lines` of records, `read_figures`.

A crash, a full disk or a power cut tears the end of such a file and nothing else: what is no JSON
there, with or without a line end (zeros are what some file systems leave), was never finished and
is left out with a log line. A bad line before it is damage of another kind. Where lines are what a
run is judged by (ledger, answers) it is refused; figures that are only shown go on without it.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from common.errors import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")
SHOWN_CHARS = 80


def read_lines(
    path: Path, parse: Callable[[str], T], *, wanted: str, remedy: str = ""
) -> Iterator[T]:
    """Records of one file.

    Args:
        path: of the file.
        parse: a line → its record; raises pydantic's ValidationError.
        wanted: what a line is, in words.
        remedy: what can be done about a line that is none.

    Raises:
        ConfigError: the file cannot be read, or a line is no `wanted`; names file and line.
    """
    lines = _lines_of(path, wanted=wanted)
    for number, line in enumerate(lines, 1):
        try:
            yield parse(line)
        except ValidationError as error:
            if number == len(lines) and not _is_json(line):
                logger.warning(
                    "torn last line left out", extra={"path": str(path), "chars": len(line)}
                )
                return
            first = error.errors(include_url=False)[0]
            raise ConfigError(
                f"{path}: line {number}: found {line[:SHOWN_CHARS]!r}, wanted {wanted}: "
                f"{first['msg']}{remedy and '; '}{remedy}"
            ) from error


def read_figures(path: Path, *, by: str = "step") -> list[dict[str, Any]]:
    """Objects of a metrics file with the number `by`, in its order; empty where there is no file.

    Lines that are none are left out, with a log line that counts them.
    """
    if not path.exists():
        return []
    figures, bad = [], []
    for number, line in enumerate(_lines_of(path, wanted="lines of figures"), 1):
        found = _figures_of(line, by)
        if found is None:
            bad.append(number)
        else:
            figures.append(found)
    if bad:
        logger.warning(
            "damaged lines left out",
            extra={"path": str(path), "lines": len(bad), "first_line": bad[0]},
        )
    return figures


def _lines_of(path: Path, *, wanted: str) -> list[str]:
    """Without the empty piece after the last line end."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}, wanted {wanted}") from error
    return lines if lines[-1] else lines[:-1]


def _figures_of(line: str, by: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    is_ours = isinstance(found, dict) and isinstance(found.get(by), int | float)
    return found if is_ours else None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
