"""Stage B: trainer rows and their videos → the clip cache (`tempsamp data preprocess`).

Every distinct video is decoded once, in its own process: a decoder that crashes or hangs costs that
video and no other. Entries that are there are not made again, so a stopped run goes on where it
was. Neighbours: `jobs.convert` writes the rows, `common.clip_loader.ensure_entry` makes an entry,
rollout and learner read it through `common.clip_loader.ClipLoader`.

A video that cannot be used is one line of the failure file and exit code 1, never a missing entry
that nobody hears of.
"""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from common.clip_cache import ClipCache, SourceFile
from common.clip_loader import ensure_entry
from common.errors import VideoError
from common.rows import TrainerRow
from common.video import file_digest
from common.video_roots import VideoRoots
from common.video_sampling import VideoSampling
from jobs.cache_filling import (
    CacheFolder,
    Done,
    Factor,
    FailureFile,
    Fault,
    Fps,
    InputFiles,
    MaxFrames,
    MaxPixels,
    MinFrames,
    MinPixels,
    RunFile,
    TimeoutS,
    TotalPixels,
    VideoRootFolders,
    Workers,
    fill_in_terminal,
    group_rows,
    sampling_of,
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every worker needs to know."""

    cache: Path
    """Folder of the clip cache."""
    roots: tuple[Path, ...]
    """Videos are opened below these only; relative paths start there, the first that has it."""
    sampling: VideoSampling
    verify: bool = False
    """Check digests of sources and frames that are there, not only headers."""


def make_entry(video: str, plan: Plan) -> Done | Fault:
    """Decode one video into the cache; what a worker process runs."""
    try:
        return _make_entry(video, plan)
    except FileNotFoundError as error:
        return Fault("missing file", str(error))
    except VideoError as error:
        return Fault("unusable video", str(error))
    except OSError as error:
        return Fault("cannot write", str(error))
    except MemoryError:
        return Fault("out of memory", "too little memory for its frames: use fewer --workers")


def _make_entry(video: str, plan: Plan) -> Done:
    cache, fingerprint = ClipCache(plan.cache), plan.sampling.fingerprint
    file = find_video(video, plan.roots)
    sha256 = content_of(file, cache, verify=plan.verify)
    written = ensure_entry(
        cache, file, sha256=sha256, sampling=plan.sampling, verify=plan.verify, sync=False
    )
    return Done.of(cache, sha256=sha256, sampling=fingerprint, written=written)


def find_video(video: str, roots: Sequence[Path]) -> Path:
    """The file a row means; a relative path starts at the first root that has it.

    Raises:
        FileNotFoundError: no root has it.
        VideoError: it lies outside the roots.
    """
    for root in roots:
        if (root / video).exists():
            return VideoRoots(roots).resolve(os.fspath(root / video))
    tried = ", ".join(os.fspath(root / video) for root in roots)
    raise FileNotFoundError(f"{video}: found nothing at {tried}; the knob is --video-root")


def content_of(file: Path, cache: ClipCache, *, verify: bool = False) -> str:
    """sha256 of a file, remembered in the cache as long as size and mtime stay; `verify` reads it.

    Raises:
        VideoError: it cannot be read.
    """
    known = None if verify else cache.known_digest(file)
    if known is None:
        source = SourceFile.of(file)
        known = file_digest(file)
        cache.remember(source, sha256=known)
    return known


def video_of(row: TrainerRow) -> str:
    """The video of a row, as the row names it."""
    return row.videos[0]


def command(
    inputs: InputFiles,
    cache: CacheFolder,
    video_root: VideoRootFolders,
    config: RunFile = None,
    fps: Fps = None,
    min_frames: MinFrames = None,
    max_frames: MaxFrames = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    total_pixels: TotalPixels = None,
    factor: Factor = None,
    workers: Workers = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every digest again.")] = False,
    failures: FailureFile = None,
    timeout_s: TimeoutS = 600.0,
) -> None:
    """Decode every video of the rows into the clip cache; run it again to go on."""
    sampling = sampling_of(
        config,
        fps=fps,
        min_frames=min_frames,
        max_frames=max_frames,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        total_pixels=total_pixels,
        factor=factor,
    )
    plan = Plan(cache=cache, roots=tuple(video_root), sampling=sampling, verify=verify)
    fill_in_terminal(
        "preprocess",
        functools.partial(make_entry, plan=plan),
        group_rows(inputs, key=video_of),
        inputs=inputs,
        cache=cache,
        workers=workers,
        timeout_s=timeout_s,
        failures_file=failures,
    )
