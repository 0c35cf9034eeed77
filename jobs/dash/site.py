"""What the dash looks at: the runs below a folder, each with what was read of it so far."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from common.queue.kept_groups import GroupSummary
from jobs.dash.folder import NOWHERE, RunFolder, find_runs, registered_runs
from jobs.dash.frames import Strips
from jobs.dash.groups import GroupIndex
from jobs.dash.state import Phase, state_of
from jobs.dash.watch import Watch

MOST_RUNS = 200
"""In the list of runs, the newest."""
SERVICES_ALONE = "Its services alone are known here: figures stand in its run folder."
MOST_BESIDE = 20
"""Other runs in which the same query is looked for."""


class ListedRun(BaseModel):
    """One run in the list."""

    name: str
    has_folder: bool
    """False: known from its Redis alone."""
    phase: Phase
    sentence: str
    strategy: str | None
    step: int
    steps: int | None
    quiet_s: float | None


@dataclass
class OneRun:
    """A run with its readers."""

    folder: RunFolder
    groups: GroupIndex = field(init=False)
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.groups = GroupIndex(self.folder.path)
        self.watch = Watch(self.folder)
        self._strips: Strips | None = None

    @property
    def strips(self) -> Strips:
        """Frames of its clips."""
        if self._strips is None:
            self._strips = Strips(self.folder.run())
        return self._strips

    def listed(self) -> ListedRun:
        """For the list of runs."""
        settings, quiet_s = self.folder.settings(), self.folder.quiet_s()
        metrics = self.folder.metrics()
        state = state_of(metrics, self.folder.validation(), settings=settings, quiet_s=quiet_s)
        return ListedRun(
            name=self.folder.name,
            has_folder=self.folder.given is None,
            phase=state.phase,
            sentence=state.sentence if self.folder.given is None else SERVICES_ALONE,
            strategy=(settings.get("shared") or {}).get("strategy"),
            step=state.step,
            steps=state.steps,
            quiet_s=quiet_s,
        )


class Site:
    """All runs below a folder; looked for again whenever the list is asked for."""

    def __init__(self, root: Path | None, *, redis_url: str | None = None) -> None:
        """Look for runs.

        Args:
            root: folder of a run, or of runs; None: the runs that `redis_url` knows, or none.
            redis_url: the runs' Redis, if it is not where their settings say.

        Raises:
            ConfigError: there is no such folder.
            QueueError: that Redis does not answer.
        """
        self.root = NOWHERE if root is None else root.resolve()
        self._redis_url = redis_url
        self._runs: dict[str, OneRun] = {}
        self._lock = threading.Lock()
        self.look()

    def look(self) -> Sequence[OneRun]:
        """All of them, newest first; what is known of a run is kept."""
        if self.root == NOWHERE:
            found = {} if self._redis_url is None else registered_runs(self._redis_url)
        else:
            found = find_runs(self.root, redis_url=self._redis_url)
        with self._lock:
            self._runs = {
                name: self._runs.get(name) or OneRun(folder)
                for name, folder in list(found.items())[:MOST_RUNS]
            }
            return list(self._runs.values())

    def run(self, name: str) -> OneRun:
        """One by its name; the newest for an empty one.

        Raises:
            KeyError: there is none of that name.
        """
        with self._lock:
            if not name and self._runs:
                return next(iter(self._runs.values()))
            if name not in self._runs:
                raise KeyError(f"no run {name!r}")
            return self._runs[name]

    def run_if_any(self, name: str) -> OneRun | None:
        """As `run`; None for an empty name where there is no run at all.

        Raises:
            KeyError: there is none of that name.
        """
        try:
            return self.run(name)
        except KeyError:
            if name:
                raise
            return None

    def summaries(self, *, of: OneRun) -> list[tuple[str, list[GroupSummary]]]:
        """The kept groups of a run and of the newest others."""
        with self._lock:
            others = [run for run in self._runs.values() if run is not of][:MOST_BESIDE]
        runs = [(run.folder.name, run) for run in (of, *others)]
        return [(name, run.groups.summaries()) for name, run in runs]
