"""What a run reads: its rows, the folders of its videos, its clip cache.

Run -> Inputs (rows, and a clip with its frames) -> findings
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.config import Run
from common.errors import VideoError
from common.messages import ClipRef
from common.rows import Row, TrainerRow, UnusableRowError
from common.video.loader import ClipLoader
from jobs.doctor.finding import Finding, Level, Stopwatch, one_line

AREA = "inputs"
TRIED = 3
"""Clips that are decoded."""


@dataclass
class Inputs:
    """What was found; the prompt and the engines are compared on it."""

    lines: list[bytes] = field(default_factory=list)
    """Lines of usable rows, as the file has them: those whose clips could be decoded first."""
    rows: list[Row] = field(default_factory=list)
    clip: ClipRef | None = None
    frames: npt.NDArray[np.uint8] | None = None


def rows(run: Run, inputs: Inputs) -> Iterator[Finding]:
    """Read all rows; `inputs` gets the usable ones."""
    path = run.learner.rows
    reasons: Counter[str] = Counter()
    root = run.shared.video.roots[0]
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = TrainerRow.parse(line).check(row_id=str(number), video_root=root)
                except UnusableRowError as error:
                    reasons[error.reason] += 1
                    continue
                inputs.rows.append(row)
                inputs.lines.append(line)
    except OSError as error:
        cure = "learner.rows: a JSONL file of trainer rows; `tempsamp data convert` writes one"
        yield Finding(AREA, "rows", "fail", f"{path}: {error.strerror}", cure)
        return
    yield rows_finding(path, usable=len(inputs.rows), reasons=reasons)


def rows_finding(path: Path, *, usable: int, reasons: Counter[str]) -> Finding:
    """Judge how many rows can be used."""
    refused = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    if not usable:
        cure = "`tempsamp data inspect` says what is wrong with each"
        return Finding(AREA, "rows", "fail", f"none usable in {path}; {refused or 'empty'}", cure)
    if refused:
        cure = "`tempsamp data inspect` lists them; they are left out and listed by the run too"
        return Finding(AREA, "rows", "warn", f"{usable:,} usable; left out: {refused}", cure)
    return Finding(AREA, "rows", "ok", f"{usable:,} in {path}")


def roots(run: Run) -> Iterator[Finding]:
    """Folders below which videos may be opened."""
    for root in run.shared.video.roots:
        if root.is_dir():
            yield Finding(AREA, "video root", "ok", str(root.resolve()))
        else:
            cure = "shared.video.roots: mount it here, or name the folder that holds the videos"
            yield Finding(AREA, "video root", "fail", f"no folder {root.absolute()}", cure)


def clips(run: Run, inputs: Inputs) -> Iterator[Finding]:
    """Decode the clips of the first rows; `inputs` gets the first that works."""
    loader = ClipLoader.of(run.shared.video)
    wrong = []
    for row in itertools.islice(inputs.rows, TRIED):
        watch = Stopwatch()
        try:
            clip = loader.sample(row.video, row.window)
            row.check_against(clip)
            frames = loader.load(clip)
        except (VideoError, UnusableRowError) as error:
            wrong.append(f"row {row.row_id}: {error}")
            continue
        if inputs.clip is None:
            _put_first(inputs, row)
            inputs.clip, inputs.frames = clip, frames
            height_px, width_px = clip.frame_hw
            made = f"{len(clip.frame_indices)} frames of {width_px}x{height_px} by {clip.decoder}"
            yield Finding(AREA, "a clip", "ok", f"row {row.row_id}: {made} in {watch}")
    if wrong:
        tried = min(TRIED, len(inputs.rows))
        cure = "`tempsamp data inspect --check-videos` looks at all of them"
        level: Level = "warn" if inputs.clip is not None else "fail"
        found = f"{len(wrong)} of the first {tried}: {one_line(wrong[0])}"
        yield Finding(AREA, "clips", level, found, cure)
    if run.shared.video.cache is not None:
        yield cache_finding(run, loader)


def cache_finding(run: Run, loader: ClipLoader) -> Finding:
    """Judge where a loader's clips came from."""
    counts, video = loader.counts, run.shared.video
    loads = counts["hits"] + counts["decoded"]
    found = f"{counts['hits']} of {loads} from {video.cache}"
    if counts["mismatches"]:
        found += "; there are entries of them with other parameters"
    if counts["corrupt"]:
        found += f"; {counts['corrupt']} damaged"
    if counts["hits"] and not counts["decoded"]:
        return Finding(AREA, "clip cache", "ok", found)
    cure = (
        "fill it with this run's [shared.video]: `tempsamp data preprocess --input "
        f"{run.learner.rows} --cache {video.cache} ...`"
    )
    level: Level = "fail" if video.cache_mode == "strict" else "warn"
    return Finding(AREA, "clip cache", level, found, cure)


def _put_first(inputs: Inputs, row: Row) -> None:
    place = inputs.rows.index(row)
    inputs.rows.insert(0, inputs.rows.pop(place))
    inputs.lines.insert(0, inputs.lines.pop(place))
