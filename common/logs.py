"""Log lines: one JSON object each. `configure(service, run_id=…)`, then stdlib logging everywhere.

Every line has ts, level, service, run_id, logger and event (the message); what a call passes in
`extra=` (prompt_id, policy_version, step, …) follows under its own name. A service that ends by
itself says so in a critical line: `with critical_end("learner failed"): …`, or `say_failed`.
Whoever waits says for what, and again now and then: `speaking`, or a `NowAndThen` in a loop.
"""

import contextlib
import datetime
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from common.errors import ConfigError, TempSampError

logger = logging.getLogger(__name__)

_BUILT_IN = {
    *logging.makeLogRecord({}).__dict__,
    *("message", "asctime", "taskName", "color_message"),
}
"""Attributes that are not a caller's extras; color_message is uvicorn's copy of the message."""
SAY_EVERY_S = 10.0
"""Between two words about the same wait."""
LONGEST_CHARS = 500
"""Of what is remembered of a problem."""
_OURS = ("common", "services", "jobs")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, **constants: str) -> None:
        """`constants` are written on every line."""
        super().__init__()
        self._constants = constants

    def format(self, record: logging.LogRecord) -> str:
        """Values JSON does not know are written as their `str`."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "ts": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **self._constants,
            "logger": record.name,
            "event": record.getMessage(),
        }
        extras = {key: item for key, item in vars(record).items() if key not in _BUILT_IN}
        line |= {key: item for key, item in extras.items() if key not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class LastProblem(logging.Handler):
    """Remembers the last warning or error of this process, for who asks a service how it is."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.event = ""
        self.error: str | None = None
        self.at_s: float | None = None
        """On the monotonic clock; None before the first."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        said = vars(record).get("error")
        if said is None and record.exc_info and record.exc_info[1] is not None:
            said = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        self.event = record.getMessage()[:LONGEST_CHARS]
        self.error = None if said is None else str(said)[:LONGEST_CHARS]
        self.at_s = time.monotonic()


LAST_PROBLEM = LastProblem()
"""Of this process, from `configure` on."""


def configure(
    service: str,
    *,
    run_id: str,
    level: int = logging.INFO,
    stream: TextIO | None = None,
    **constants: str,
) -> None:
    """Send this process's log to `stream` (standard error by default). Calling again replaces that.

    Our own loggers speak from `level` on, libraries from WARNING on; `constants` (a replica's name)
    are written on every line.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(service=service, run_id=run_id, **constants))
    logging.basicConfig(handlers=[handler, LAST_PROBLEM], level=logging.WARNING, force=True)
    for package in _OURS:
        logging.getLogger(package).setLevel(level)


def say_failed(event: str, error: BaseException) -> None:
    """The critical line of a service that ends by itself; a traceback of what nobody foresaw."""
    is_foreseen = isinstance(error, TempSampError | ConfigError)
    text = str(error) if is_foreseen else f"{type(error).__name__}: {error}"
    logger.critical(event, extra={"error": text}, exc_info=None if is_foreseen else error)


@contextlib.contextmanager
def critical_end(event: str) -> Iterator[None]:
    """What ends a service here leaves as it came, after its critical line.

    A setting that is wrong is no failure of the service: its one line is the command's.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        say_failed(event, error)
        raise


class NowAndThen:
    """Whether it is time for a word, in a loop that waits: at once, then every `every_s`."""

    def __init__(self, every_s: float = SAY_EVERY_S, *, first_s: float = 0.0) -> None:
        """`first_s`: how long to wait in silence."""
        self._every_s = every_s
        self._next_s = time.monotonic() + first_s

    def is_due(self) -> bool:
        """True once; then not for `every_s`."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._every_s
        return True


@contextlib.contextmanager
def speaking(say: Callable[[float], None], *, every_s: float = SAY_EVERY_S) -> Iterator[None]:
    """Call `say(seconds since the begin)` every `every_s` until what is inside has ended.

    From a thread of its own: what is inside may be a call that does not return to Python for long.
    """
    over, began_s = threading.Event(), time.monotonic()

    def run() -> None:
        while not over.wait(every_s):
            say(time.monotonic() - began_s)

    thread = threading.Thread(target=run, daemon=True, name="speaking")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
