"""A run folder as it grows: `RunFolder(path)` → columns of figures, settings, what else is there.

    metrics.jsonl, validation.jsonl -> Columns, read on from where the last look ended
    config.json, or a checkpoint's  -> settings

A run that is resumed cuts or replaces its files; a file that did is read from its start again.
Everything here may be called from several threads.
"""

import asyncio
import json
import math
import os
import threading
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

from common import config
from common.errors import ConfigError
from common.queue.kept_groups import FOLDER as GROUPS
from common.queue.ledger import FILE as LEDGER
from common.queue.runs import runs_of
from jobs.demo.summary import METRICS_FILE as METRICS
from jobs.demo.summary import VALIDATION_FILE as VALIDATION

CONFIG = "config.json"
SIGNS = (METRICS, CONFIG, LEDGER, GROUPS)
"""What makes a folder that of a run."""
NOWHERE = Path(os.devnull)
"""Below it nothing can be."""
REDIS_OPTION = "--redis"
REDIS_OUTAGE_S = 3.0
DEEPEST = 3
"""Folders below the given one in which runs are looked for."""

Floats = npt.NDArray[np.float64]


class Columns:
    """A file of JSON lines with a step each, as a column a key; NaN where a line has none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._inode = -1
        self.steps = array("d")
        self._values: dict[str, array[float]] = {}
        self.unreadable = 0
        """Lines that were none of ours."""

    def read_on(self) -> None:
        """Take what was appended since the last look; a line without its end is left for later."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._inode or found.st_size < self._at:
                    self._begin(found.st_ino)
                file.seek(self._at)
                content = file.read()
        except OSError:
            self._begin(-1)
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            self._add(line)

    @property
    def names(self) -> list[str]:
        """Keys of all lines, in the order in which they came up."""
        return list(self._values)

    def of(self, key: str) -> Floats:
        """[len(steps)]; all NaN for a key that no line has."""
        column = self._values.get(key)
        if column is None:
            return np.full(len(self.steps), math.nan)
        return np.array(column, dtype=np.float64)

    def last(self, key: str, default: float = math.nan) -> float:
        """The newest value of a key."""
        column = self._values.get(key, ())
        return next((value for value in reversed(column) if not math.isnan(value)), default)

    def tail(self, key: str, count: int) -> Floats:
        """The values of the last `count` lines that have the key."""
        values = self.of(key)[-count:]
        present: Floats = values[~np.isnan(values)]
        return present

    def copied(self) -> "Columns":
        """As they are now: who computes with them must not see them grow meanwhile."""
        made = Columns(self._path)
        made.steps, made.unreadable = self.steps[:], self.unreadable
        made._values = {name: column[:] for name, column in self._values.items()}
        return made

    def _begin(self, inode: int) -> None:
        self._inode, self._at, self.unreadable = inode, 0, 0
        self.steps, self._values = array("d"), {}

    def _add(self, line: bytes) -> None:
        try:
            found = from_json(line)
            step = float(found.pop("step"))
            numbers = ((key, one) for key, one in found.items() if isinstance(one, int | float))
            figures = [(key, float(one)) for key, one in numbers]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            self.unreadable += 1
            return
        for key, value in figures:
            if (column := self._values.get(key)) is None:
                self._values[key] = column = array("d", [math.nan] * len(self.steps))
            column.append(value)
        self.steps.append(step)
        if len(figures) < len(self._values):
            for column in self._values.values():
                if len(column) < len(self.steps):
                    column.append(math.nan)


@dataclass
class RunFolder:
    """One run on disk."""

    path: Path
    name: str
    """As pages and addresses call it."""
    redis_url: str | None = None
    """Where its Redis is, if not where its settings say."""
    given: config.Run | None = None
    """Settings of a run that is known from a Redis alone, without a folder."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._metrics = Columns(self.path / METRICS)
        self._validation = Columns(self.path / VALIDATION)

    def metrics(self) -> Columns:
        """A line a step."""
        return self._read(self._metrics)

    def validation(self) -> Columns:
        """A line a validation."""
        return self._read(self._validation)

    def settings(self) -> Mapping[str, Any]:
        """The resolved config as it stands there, secrets masked; empty where there is none."""
        for path in self._configs():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(found, dict):
                return found
        return {}

    def setting(self, key: str, default: Any = None) -> Any:
        """One of them by its dotted name."""
        found: Any = self.settings()
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                return default
            found = found[part]
        return found

    def run(self) -> config.Run | None:
        """The settings as services read them, secrets from this process's environment; None where
        there are none, or they are of another version."""
        if self.given is not None:
            return self.given
        document = {key: dict(value or {}) for key, value in self.settings().items()}
        if "shared" not in document:
            return None
        for secret in config.SECRETS:
            document["shared"].pop(secret, None)
        if self.redis_url is not None:
            document["shared"]["redis_url"] = self.redis_url
        try:
            return config.parse(document, source=str(self.path / CONFIG))
        except ConfigError:
            return None

    def quiet_s(self) -> float | None:
        """Seconds since the last step's line; None without one."""
        try:
            return max(0.0, time.time() - (self.path / METRICS).stat().st_mtime)
        except OSError:
            return None

    def marks(self) -> tuple[tuple[int, int], ...]:
        """What changes whenever something in the folder did that pages show."""
        return tuple(_mark(self.path / name) for name in (METRICS, VALIDATION, GROUPS, CONFIG))

    def _read(self, columns: Columns) -> Columns:
        with self._lock:
            columns.read_on()
            return columns.copied()

    def _configs(self) -> Iterator[Path]:
        yield self.path / CONFIG
        yield from sorted(self.path.glob(f"checkpoints/step-*/{CONFIG}"), reverse=True)


def find_runs(root: Path, *, redis_url: str | None = None) -> dict[str, RunFolder]:
    """The runs in a folder by name, newest first; the folder may be one itself.

    Raises:
        ConfigError: there is no such folder.
    """
    if not root.is_dir():
        raise ConfigError(f"RUN: found no folder {root}, wanted that of a run, or of runs")
    root = root.resolve()
    if _is_run(root):
        return {root.name: RunFolder(root, root.name, redis_url)}
    paths = sorted(_runs_below(root, depth=DEEPEST), key=_mark_of_run, reverse=True)
    return {
        name: RunFolder(path, name, redis_url)
        for path in paths
        for name in (str(path.relative_to(root)),)
    }


def registered_runs(redis_url: str) -> dict[str, RunFolder]:
    """The runs that a Redis knows, without their folders.

    Raises:
        QueueError: it does not answer.
        ConfigError: it must not be used like this.
    """
    shared = _run_of(redis_url, "-").shared
    found = asyncio.run(runs_of(shared, outage_s=REDIS_OUTAGE_S, knob=REDIS_OPTION))
    return {
        name: RunFolder(NOWHERE / name, name, redis_url, _run_of(redis_url, name)) for name in found
    }


def _run_of(redis_url: str, run_id: str) -> config.Run:
    """A run of which nothing but its name is known."""
    shared = {"run_id": run_id, "model": "-", "redis_url": redis_url}
    return config.parse(
        {"shared": shared, "learner": {"rows": "-", "run_dir": "-", "steps": 1}},
        source=REDIS_OPTION,
    )


def _runs_below(folder: Path, *, depth: int) -> Iterator[Path]:
    if depth == 0:
        return
    try:
        children = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    except OSError:
        return
    for child in children:
        if _is_run(child):
            yield child
        else:
            yield from _runs_below(child, depth=depth - 1)


def _is_run(folder: Path) -> bool:
    """A lone config.json is also that of a model."""
    return any((folder / name).exists() for name in (METRICS, LEDGER)) or (
        (folder / CONFIG).exists() and (folder / GROUPS).exists()
    )


def _mark_of_run(folder: Path) -> tuple[int, int]:
    return _mark(folder / METRICS)


def _mark(path: Path) -> tuple[int, int]:
    """When it changed, and its size."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
