"""Probe every video of an annotation file in worker processes: `Video` → `Check`.

    records -> collect notes their videos -> check -> Health -> cli, page

A broken file may hang or kill a decoder: probes run in `jobs.data.crash_safe_pool`, so such a file
costs one line of the result and not the run.
"""

import functools
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from common.answers.spans import Span
from common.errors import VideoError
from common.video.names import as_on_disk, near_files
from common.video.roots import VideoRoots
from common.video.windows import WINDOW_END_TOLERANCE_S
from jobs.data.annotations.records import Annotation, BadRecord
from jobs.data.crash_safe_pool import Lost, results

MISSING = "missing"
OUTSIDE = "no file below the video root"
TOO_SHORT = "window past the end"
DURATION_TOLERANCE_S = 1.0
"""An annotated duration further off than this is listed."""


@dataclass(frozen=True)
class Named:
    """What records say of one video."""

    duration_s: float | None = None
    """Of the whole file, as its first record with one has it."""
    reach_s: float = 0.0
    """How far windows of its records reach into the file."""

    def with_record(self, record: Annotation) -> "Named":
        """What is known with one more record of the video."""
        if record.window is not None:
            return replace(self, reach_s=max(self.reach_s, _reach_s(record.window)))
        return self if self.duration_s is not None else replace(self, duration_s=record.duration_s)


@dataclass(frozen=True)
class Video:
    """A file that records name."""

    name: str
    """As the records write it."""
    path: Path
    annotated_s: float | None
    """Duration as its first record with one has it."""
    reach_s: float = 0.0
    """How far windows of its records reach into it."""


class Check(BaseModel):
    """What became of one video; a bad one is a line of the failure file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    video: str
    """As the records write it."""
    path: Path
    reason: str | None = None
    """What is counted; None for a video that is fine."""
    detail: str = ""
    annotated_s: float | None
    duration_s: float | None = None
    """As probed."""

    @property
    def cause(self) -> str:
        """The detail without the path."""
        return self.detail.removeprefix(f"{self.path}: ")

    @property
    def error_s(self) -> float:
        """How far the annotated duration is off; 0 when either is unknown."""
        if self.annotated_s is None or self.duration_s is None:
            return 0.0
        return abs(self.annotated_s - self.duration_s)


@dataclass(frozen=True)
class Health:
    """All checks of a file, counted."""

    num_fine: int
    reasons: tuple[tuple[str, int], ...]
    """Bad videos per reason, the most frequent first."""
    failures: tuple[Check, ...]
    off: tuple[Check, ...]
    """Fine videos whose annotated duration is off, the worst first."""


def collect(
    records: Iterable[Annotation | BadRecord], *, into: dict[str, Named]
) -> Iterator[Annotation | BadRecord]:
    """Pass records on; note the name of each video, its annotated duration and its windows."""
    for record in records:
        if isinstance(record, Annotation):
            into[record.video] = into.get(record.video, Named()).with_record(record)
        yield record


def below(root: Path, videos: Mapping[str, Named]) -> list[Video]:
    """The files that the names of `collect` mean; an absolute name stays as it is."""
    return [
        Video(name, root / name, named.duration_s, named.reach_s) for name, named in videos.items()
    ]


def probe_duration_s(path: Path) -> float:
    """Length of a video in seconds, from its packets.

    Raises:
        VideoError: it cannot be opened, or its first frame cannot be decoded.
    """
    from common.video.frames import probe

    return probe(path).duration_s


def check(
    videos: Sequence[Video],
    *,
    root: Path,
    workers: int,
    timeout_s: float,
    probe: Callable[[Path], float] = probe_duration_s,
) -> Iterator[Check]:
    """Probe videos; yields in the order in which they are done.

    Args:
        videos: distinct files.
        root: no file outside of it is opened, wherever a name or a link points.
        workers: number of processes.
        timeout_s: deadline of one video; its process is then killed and another one started.
        probe: path to seconds, runs in the workers. What it raises beside VideoError is a bug of
            ours and ends the check.
    """
    work = functools.partial(_probe, root=root, probe=probe)
    for video, outcome in results(work, videos, workers=workers, timeout_s=timeout_s):
        yield _lost(video, outcome) if isinstance(outcome, Lost) else outcome


def health(checks: Iterable[Check]) -> Health:
    """Count what was found."""
    checks = tuple(checks)
    failures = tuple(check for check in checks if check.reason is not None)
    off = [check for check in checks if check.error_s > DURATION_TOLERANCE_S]
    reasons = Counter(check.reason for check in failures if check.reason is not None)
    return Health(
        num_fine=len(checks) - len(failures),
        reasons=tuple(reasons.most_common()),
        failures=tuple(sorted(failures, key=lambda check: check.video)),
        off=tuple(sorted(off, key=lambda check: -check.error_s)),
    )


def reason_of(message: str, *, path: Path) -> str:
    """What a VideoError has in common with others like it: no path, no consequences, no numbers."""
    cause = message.removeprefix(f"{path}: ")
    return re.split(r"[:,;]\s", cause, maxsplit=1)[0]


def _probe(video: Video, *, root: Path, probe: Callable[[Path], float]) -> Check:
    """Runs in a worker."""
    if not as_on_disk(video.path).exists():
        detail = f"{video.path}: no such file; see --video-root{near_files(video.path)}"
        return _bad(video, reason=MISSING, detail=detail)
    try:
        path = VideoRoots([root]).resolve(os.fspath(video.path))
    except VideoError as error:
        return _bad(video, reason=OUTSIDE, detail=str(error))
    try:
        duration_s = probe(path)
    except VideoError as error:
        return _bad(video, reason=reason_of(str(error), path=path), detail=str(error))
    if video.reach_s > duration_s + WINDOW_END_TOLERANCE_S:
        detail = f"found {duration_s:.2f} s, wanted the {video.reach_s:.2f} s of its windows"
        return _bad(video, reason=TOO_SHORT, detail=f"{video.path}: {detail}")
    return Check(
        video=video.name, path=video.path, annotated_s=video.annotated_s, duration_s=duration_s
    )


def _reach_s(window: Span) -> float:
    """The end of a window, or its start if it has none; NaN and what is no window reach nowhere."""
    start_s, end_s = window
    return end_s if math.isfinite(end_s) else start_s if math.isfinite(start_s) else 0.0


def _lost(video: Video, lost: Lost) -> Check:
    return _bad(video, reason=f"decoder {lost.reason}", detail=f"{video.path}: {lost.detail}")


def _bad(video: Video, *, reason: str, detail: str) -> Check:
    return Check(
        video=video.name,
        path=video.path,
        reason=reason,
        detail=detail,
        annotated_s=video.annotated_s,
    )
