"""Demo clips: `write_split(folder, "train") -> folder/train/rows.jsonl`, and one mp4 per clip.

A clip shows three shapes of different colours, visible at different, partly overlapping times, over
a drifting noisy texture. Every clip gives three trainer rows (SPEC A1.1), one per shape, so only
the query tells which span is asked for. A clip depends on its split's seed and its index alone.
`jobs.demo.run` writes train, validation and test, and so does `python -m jobs.toy.clips FOLDER`;
`jobs.toy.make_model` also writes `warm`, which no RL run reads. Pixels are read back through
`common.video.frames` only, with `SAMPLING`.

Shapes: F frames, H W pixels, C = 3 channels (RGB).
"""

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import av
import numpy as np
import numpy.typing as npt
import typer

from common.answers.reading import grounding_answer
from common.answers.spans import Span
from common.video.sampling import VideoSampling

CHUNK_CLIPS = 16
"""Clips that a process writes at a time."""

Split = Literal["warm", "train", "validation", "test"]

SPLIT_SEEDS: dict[Split, int] = {"warm": 11, "train": 12, "validation": 13, "test": 14}
NUM_CLIPS: dict[Split, int] = {"warm": 2000, "train": 512, "validation": 128, "test": 128}
"""Clips of each split in the demo."""

SAMPLING = VideoSampling(fps=1.0, factor=16, min_pixels=1024, max_pixels=1024)
"""16 frames of 32x32: 8 temporal patches of 4 visual tokens with the tiny model."""

PROBLEM = (
    '<video>To accurately pinpoint the event "{query}" in the video, give the start and end times '
    "in seconds with one decimal in <answer> </answer> tags, "
    "for example <answer> 12.5 to 17.8 </answer>."
)
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (230, 210, 40),
    "magenta": (210, 50, 200),
    "cyan": (50, 205, 215),
}
SHAPES = ("circle", "square", "triangle")

DURATION_S = 16.0
SOURCE_FPS = 4
SIDE_PX = 64
SHAPES_PER_CLIP = 3
GRID_S = 0.5
"""Spans start and end on this grid."""
MIN_SPAN_S, MAX_SPAN_S = 1.5, 8.0
NOISE_STD = 12.0
TEXTURE_CELLS = 6
"""Cells per side of the random colour grid that is interpolated into the background."""
TEXTURE_DRIFT = 0.03
"""Standard deviation of the background's speed, cells per frame."""

ENCODER = {"crf": "20", "preset": "veryfast", "x264-params": "mbtree=0"}
"""Without mbtree: on frames this small its choices, and the bytes, differ from run to run."""

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Event:
    """One shape and when it is visible."""

    color: str
    shape: str
    start_s: float
    end_s: float

    @property
    def query(self) -> str:
        """What a row asks for."""
        return f"the {self.color} {self.shape} is visible"

    @property
    def span_s(self) -> Span:
        """Start and end, on the grid of `GRID_S`."""
        return self.start_s, self.end_s

    @property
    def answer(self) -> str:
        """The row's answer, one decimal."""
        return grounding_answer([self.span_s], decimals=1)


@dataclass(frozen=True)
class Mover:
    """Where a shape starts and how it moves; x and y in pixels, velocity in pixels per second."""

    radius_px: float
    position_px: npt.NDArray[np.float64]
    velocity_px_s: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """Everything about a clip but its background and noise."""

    events: tuple[Event, ...]
    movers: tuple[Mover, ...]


def scene_events(split: Split, index: int) -> tuple[Event, ...]:
    """The events of a clip, without rendering it."""
    return _draw_scene(_rng(split, index)).events


def event_centres(split: Split, index: int) -> tuple[npt.NDArray[np.float64], ...]:
    """Where the shape of each event is: [F, 2] x and y of its centre in pixels, seen or not."""
    num_frames = int(DURATION_S * SOURCE_FPS)
    movers = _draw_scene(_rng(split, index)).movers
    return tuple(_path(mover, num_frames=num_frames)[:, ::-1] for mover in movers)


def render_clip(split: Split, index: int) -> Pixels:
    """[F, H, W, C] uint8, F = DURATION_S x SOURCE_FPS, H = W = SIDE_PX."""
    rng = _rng(split, index)
    scene = _draw_scene(rng)
    frames = _background(rng)
    times_s = np.arange(len(frames)) / SOURCE_FPS
    for event, mover in zip(scene.events, scene.movers, strict=True):
        path_F2 = _path(mover, num_frames=len(frames))
        for f in np.flatnonzero((times_s >= event.start_s) & (times_s < event.end_s)):
            mask = _shape_mask(event.shape, center_px=path_F2[f], radius_px=mover.radius_px)
            frames[f][mask] = COLORS[event.color]
    frames += rng.standard_normal(frames.shape, dtype=np.float32) * NOISE_STD
    return np.clip(frames, 0, 255).astype(np.uint8)


def write_split(
    folder: Path, split: Split, *, num_clips: int | None = None, num_processes: int = 2
) -> Path:
    """Write the clips that are not there yet and the rows of all.

    Args:
        folder: video root; row paths are relative to it.
        split: which seed.
        num_clips: default `NUM_CLIPS[split]`.
        num_processes: rendering processes; 1 renders in this one.

    Returns:
        `folder/split/rows.jsonl`, three rows per clip in clip order.
    """
    count = NUM_CLIPS[split] if num_clips is None else num_clips
    (folder / split).mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(count) if not (folder / clip_path(split, i)).exists()]
    _write_clips(folder, split, missing, num_processes)
    rows_path = folder / split / "rows.jsonl"
    lines = [json.dumps(row) + "\n" for i in range(count) for row in clip_rows(split, i)]
    _replace(rows_path, "".join(lines).encode())
    return rows_path


def clip_path(split: Split, index: int) -> str:
    """Path of a clip relative to the video root."""
    return f"{split}/{index:05d}.mp4"


def clip_rows(split: Split, index: int) -> Iterator[dict[str, Any]]:
    """Trainer rows of one clip (SPEC A1.1, plus `query` and `spans`), one per shape."""
    for event in scene_events(split, index):
        yield {
            "problem": PROBLEM.format(query=event.query),
            "answer": event.answer,
            "problem_type": "temporal grounding",
            "data_type": "video",
            "videos": [clip_path(split, index)],
            "duration": DURATION_S,
            "gt_len": event.end_s - event.start_s,
            "query": event.query,
            "spans": [list(event.span_s)],
        }


def _write_clips(folder: Path, split: Split, indices: list[int], num_processes: int) -> None:
    if num_processes == 1 or len(indices) < 2 * num_processes:
        return write_clips(folder, split, indices)
    # spawn: the caller may hold threads (torch, a progress bar) that a fork would lose
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        futures = [
            pool.submit(write_clips, folder, split, indices[start : start + CHUNK_CLIPS])
            for start in range(0, len(indices), CHUNK_CLIPS)
        ]
        try:
            for future in futures:
                future.result()
        finally:  # Ctrl-C waits for the chunks in work only
            pool.shutdown(cancel_futures=True)
    return None


def write_clips(folder: Path, split: Split, indices: list[int]) -> None:
    """Some clips of a split, whose folder is there."""
    for index in indices:
        _write_mp4(folder / clip_path(split, index), render_clip(split, index))


def _write_mp4(path: Path, frames: Pixels) -> None:
    """Encode beside the target and rename, so that a file that exists is complete."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=SOURCE_FPS, options=ENCODER)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial, path)


def _replace(path: Path, content: bytes) -> None:
    # Two runs may write the same folder at once: each has its own partial file, the last one wins.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _rng(split: Split, index: int) -> np.random.Generator:
    return np.random.default_rng([SPLIT_SEEDS[split], index])


def _draw_scene(rng: np.random.Generator) -> Scene:
    colors = rng.permutation(list(COLORS))[:SHAPES_PER_CLIP]
    pairs = [(_draw_event(rng, color=str(color)), _draw_mover(rng)) for color in colors]
    return Scene(events=tuple(e for e, _ in pairs), movers=tuple(m for _, m in pairs))


def _draw_event(rng: np.random.Generator, *, color: str) -> Event:
    cells = int(rng.integers(round(MIN_SPAN_S / GRID_S), round(MAX_SPAN_S / GRID_S) + 1))
    start = int(rng.integers(0, round(DURATION_S / GRID_S) - cells + 1))
    return Event(
        color=color,
        shape=str(rng.choice(SHAPES)),
        start_s=start * GRID_S,
        end_s=(start + cells) * GRID_S,
    )


def _draw_mover(rng: np.random.Generator) -> Mover:
    radius_px = float(rng.uniform(0.16, 0.24)) * SIDE_PX
    return Mover(
        radius_px=radius_px,
        position_px=rng.uniform(radius_px, SIDE_PX - radius_px, 2),
        velocity_px_s=rng.normal(0, 0.04 * SIDE_PX, 2),
    )


def _path(mover: Mover, *, num_frames: int) -> npt.NDArray[np.float64]:
    """[F, 2] y and x of the centre in pixels: straight, reflected at the borders."""
    low, span = mover.radius_px, SIDE_PX - 2 * mover.radius_px
    travelled_F2 = np.arange(1, num_frames + 1)[:, None] / SOURCE_FPS * mover.velocity_px_s
    folded_F2 = np.mod(mover.position_px - low + travelled_F2, 2 * span)
    path_F2: npt.NDArray[np.float64] = low + np.minimum(folded_F2, 2 * span - folded_F2)
    return path_F2


def _shape_mask(
    shape: str, *, center_px: npt.NDArray[np.float64], radius_px: float
) -> npt.NDArray[np.bool_]:
    """[H, W]: which pixels the shape covers."""
    y_px, x_px = np.mgrid[0:SIDE_PX, 0:SIDE_PX]
    dy, dx = y_px - center_px[0], x_px - center_px[1]
    if shape == "circle":
        return np.asarray(dy**2 + dx**2 <= radius_px**2)
    if shape == "square":
        return np.asarray(np.maximum(abs(dy), abs(dx)) <= radius_px * 0.88)
    return np.asarray((dy <= radius_px * 0.8) & (dy >= 2 * abs(dx) - radius_px))


def _background(rng: np.random.Generator) -> Floats:
    """[F, H, W, C]: a coarse random texture, linearly interpolated, drifting."""
    cells = rng.uniform(40, 150, (TEXTURE_CELLS, TEXTURE_CELLS, 3)).astype(np.float32)
    drift = rng.normal(0, TEXTURE_DRIFT, 2)
    frames_F1 = np.arange(int(DURATION_S * SOURCE_FPS))[:, None]
    grid_P = np.arange(SIDE_PX) / SIDE_PX * (TEXTURE_CELLS - 2)
    row_FP, below_FP = _split(grid_P + drift[0] * frames_F1)
    column_FP, right_FP = _split(grid_P + drift[1] * frames_F1)
    below = below_FP[..., None, None]
    stripes_FHcC = cells[row_FP] * (1 - below) + cells[row_FP + 1] * below
    right = right_FP[:, None, :, None]
    frame_F11, column_F1P = frames_F1[..., None], column_FP[:, None]
    height_H1 = np.arange(SIDE_PX)[:, None]
    left_FHWC = stripes_FHcC[frame_F11, height_H1, column_F1P]
    right_FHWC = stripes_FHcC[frame_F11, height_H1, column_F1P + 1]
    texture: Floats = left_FHWC * (1 - right) + right_FHWC * right
    return texture


def _split(at_FP: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], Floats]:
    """Cell index and distance past it, wrapping around before the last cell."""
    wrapped = at_FP % (TEXTURE_CELLS - 1)
    index = wrapped.astype(np.int64)
    return index, (wrapped - index).astype(np.float32)


def main(
    folder: Annotated[Path, typer.Argument(help="Becomes the video root; clips there are kept.")],
) -> None:
    """Write the demo's clips and rows."""
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for split in splits:
        typer.echo(f"{write_split(folder, split)}: {NUM_CLIPS[split]} clips")


if __name__ == "__main__":
    typer.run(main)
