"""Stage B: trainer rows and their videos → the clip cache (`tempsamp data preprocess`).

Every distinct video, and every window of one, is decoded once, in its own process: a decoder that
crashes or hangs costs that video and no other. Entries that are there are not made again, so a
stopped run goes on where it was. Neighbours: `jobs.data.convert` writes the rows,
`common.video.loader.ensure_entry` makes an entry, rollout and learner read it through
`common.video.loader.ClipLoader`.

A video that cannot be used is one line of the failure file and exit code 1, never a missing entry
that nobody hears of.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from common.config import Video
from common.errors import VideoError
from common.messages import Window
from common.rows import TrainerRow
from common.video.cache import ClipCache, SourceFile
from common.video.frames import file_digest
from common.video.loader import ensure_entry
from common.video.names import as_on_disk, near_files
from common.video.roots import VideoRoots
from common.video.sampling import VideoSampling
from common.video.windows import entry_key, window_in_words
from jobs.data.cache_filling import (
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
    no_entry,
    video_settings,
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every worker needs to know."""

    cache: Path
    """Folder of the clip cache."""
    roots: tuple[Path, ...]
    """Videos are opened below these only; relative paths start at the first."""
    sampling: VideoSampling
    verify: bool = False
    """Check digests of sources and frames that are there, not only headers."""
    downloads: Path | None = None
    """Where http and https addresses are downloaded to; None refuses them."""

    @classmethod
    def of(cls, video: Video, *, verify: bool = False) -> "Plan":
        """The plan for the cache, roots and sampling of `[shared.video]`."""
        assert video.cache is not None
        return cls(
            cache=video.cache,
            roots=video.roots,
            sampling=video.sampling,
            verify=verify,
            downloads=video.downloads if video.allow_urls else None,
        )


@dataclass(frozen=True)
class Part:
    """A video as rows name it, or a window of it."""

    video: str
    window: Window | None = None

    def __str__(self) -> str:
        if self.window is None:
            return self.video
        return f"{self.video} ({window_in_words(self.window)})"


def make_entry(part: Part, plan: Plan) -> Done | Fault:
    """Decode one video, or a window of it, into the cache; what a worker process runs."""
    try:
        return _make_entry(part, plan)
    except FileNotFoundError as error:
        return Fault("missing file", str(error))
    except VideoError as error:
        return Fault("unusable video", str(error))
    except OSError as error:
        return no_entry(error)
    except MemoryError:
        return Fault("out of memory", "too little memory for its frames: use fewer --workers")


def _make_entry(part: Part, plan: Plan) -> Done:
    cache = ClipCache(plan.cache)
    file = find_video(part.video, plan)
    sha256 = content_of(file, cache, verify=plan.verify)
    written = ensure_entry(
        cache,
        file,
        sha256=sha256,
        sampling=plan.sampling,
        window=part.window,
        verify=plan.verify,
        sync=False,
    )
    key = entry_key(plan.sampling.fingerprint, window=part.window)
    return Done.of(cache, sha256=sha256, sampling=key, written=written)


def find_video(video: str, plan: Plan) -> Path:
    """The file a row means; as in the ring, a relative path starts at the first root.

    Raises:
        FileNotFoundError: no root has it.
        VideoError: it lies outside the roots.
    """
    roots = VideoRoots(plan.roots, allow_urls=plan.downloads is not None, downloads=plan.downloads)
    if "://" in video:
        return roots.resolve(video)
    file = as_on_disk(plan.roots[0] / video)
    if not file.exists():
        raise FileNotFoundError(
            f"{video}: found nothing at {file}; the knob is --video-root{near_files(file)}"
        )
    return roots.resolve(os.fspath(file))


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


def part_of(row: TrainerRow) -> Part:
    """What a row asks about.

    Raises:
        UnusableRowError: its window cannot be.
    """
    return Part(row.videos[0], row.window)


def command(
    inputs: InputFiles,
    cache: CacheFolder = None,
    video_root: VideoRootFolders = None,
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
    video = video_settings(
        config,
        cache=cache,
        video_root=video_root,
        fps=fps,
        min_frames=min_frames,
        max_frames=max_frames,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        total_pixels=total_pixels,
        factor=factor,
    )
    plan = Plan.of(video, verify=verify)
    rows = group_rows(inputs, key=part_of)
    fill_in_terminal(
        "preprocess",
        functools.partial(make_entry, plan=plan),
        rows,
        inputs=inputs,
        cache=plan.cache,
        workers=workers,
        timeout_s=timeout_s,
        failures_file=failures,
        reads=[config, *(plan.roots[0] / part.video for part in rows.places)],
    )
