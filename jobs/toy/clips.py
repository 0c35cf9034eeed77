"""Demo clips: `write_split(folder, "train") -> folder/train/rows.jsonl`, and one mp4 per clip.

A clip shows three shapes of different colours, visible at different, partly overlapping times, over
a drifting noisy texture. Every clip gives three trainer rows (SPEC A1.1), one per shape, so only
the query tells which span is asked for. A clip depends on its split's seed and its index alone.
`jobs.demo.run` writes train, validation and test, and so does `python -m jobs.toy.clips FOLDER`;
`jobs.toy.make_model` also writes `warm`, which no RL run reads. Pixels are read back through
`common.video.frames` only, with `SAMPLING`. `ClipOptions` makes other clips of the same kind
(`jobs.toy.regimes`).

Shapes: F frames, H W pixels, C = 3 channels (RGB).
"""

import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

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
PROBLEM_OF_SEVERAL = PROBLEM.replace(
    "<answer> 12.5 to 17.8 <", "<answer> 1.5 to 4.8, 9.0 to 12.5 <"
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
class ClipOptions:
    """What may differ between sets of clips; the defaults are the demo's."""

    duration_s: float = DURATION_S
    grid_s: float = GRID_S
    """Spans start and end on this grid."""
    min_span_s: float = MIN_SPAN_S
    max_span_s: float = MAX_SPAN_S
    most_spans: int = 1
    """A shape is visible at 1 to so many times, each number equally often, `min_span_s` or more
    apart."""

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return int(self.duration_s * SOURCE_FPS)

    @property
    def problem(self) -> str:
        """A row's instruction, with `{query}` to fill in."""
        return PROBLEM if self.most_spans == 1 else PROBLEM_OF_SEVERAL


DEMO = ClipOptions()


@dataclass(frozen=True)
class Event:
    """One shape and when it is visible."""

    color: str
    shape: str
    start_s: float
    end_s: float
    later_s: tuple[Span, ...] = ()
    """Further times, ascending, none touching another."""

    @property
    def query(self) -> str:
        """What a row asks for."""
        return f"the {self.color} {self.shape} is visible"

    @property
    def span_s(self) -> Span:
        """Start and end of the first time."""
        return self.start_s, self.end_s

    @property
    def spans_s(self) -> tuple[Span, ...]:
        """Every time, ascending."""
        return (self.span_s, *self.later_s)

    @property
    def answer(self) -> str:
        """The row's answer, one decimal."""
        return grounding_answer(self.spans_s, decimals=1)

    @property
    def thought(self) -> str:
        """What a model that thinks writes first: where the middle is, to the second."""
        return f"around {sum(self.span_s) / 2:.0f} seconds"

    def is_visible(self, times_s: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """[F]: at which of these times."""
        seen_F = np.zeros(len(times_s), dtype=np.bool_)
        for start, end in self.spans_s:
            seen_F |= (times_s >= start) & (times_s < end)
        return seen_F


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


def scene_events(split: Split, index: int, *, options: ClipOptions = DEMO) -> tuple[Event, ...]:
    """The events of a clip, without rendering it."""
    return _draw_scene(_rng(split, index), options).events


def event_centres(split: Split, index: int) -> tuple[npt.NDArray[np.float64], ...]:
    """Where the shape of each event is: [F, 2] x and y of its centre in pixels, seen or not."""
    movers = _draw_scene(_rng(split, index), DEMO).movers
    return tuple(_path(mover, num_frames=DEMO.num_frames)[:, ::-1] for mover in movers)


def render_clip(split: Split, index: int, *, options: ClipOptions = DEMO) -> Pixels:
    """[F, H, W, C] uint8, F = duration x SOURCE_FPS, H = W = SIDE_PX."""
    rng = _rng(split, index)
    scene = _draw_scene(rng, options)
    frames = _background(rng, num_frames=options.num_frames)
    times_s = np.arange(len(frames)) / SOURCE_FPS
    for event, mover in zip(scene.events, scene.movers, strict=True):
        path_F2 = _path(mover, num_frames=len(frames))
        for f in np.flatnonzero(event.is_visible(times_s)):
            mask = _shape_mask(event.shape, center_px=path_F2[f], radius_px=mover.radius_px)
            frames[f][mask] = COLORS[event.color]
    frames += rng.standard_normal(frames.shape, dtype=np.float32) * NOISE_STD
    return np.clip(frames, 0, 255).astype(np.uint8)


def write_split(
    folder: Path,
    split: Split,
    *,
    num_clips: int | None = None,
    num_processes: int = 2,
    options: ClipOptions = DEMO,
) -> Path:
    """Write the clips that are not there yet and the rows of all.

    Args:
        folder: video root; row paths are relative to it. Of these options alone.
        split: which seed.
        num_clips: default `NUM_CLIPS[split]`.
        num_processes: rendering processes; 1 renders in this one.
        options: what the clips are like.

    Returns:
        `folder/split/rows.jsonl`, three rows per clip in clip order.
    """
    count = NUM_CLIPS[split] if num_clips is None else num_clips
    write_clips(folder, split, num_clips=count, num_processes=num_processes, options=options)
    rows = [row for i in range(count) for row in clip_rows(split, i, options=options)]
    return write_rows(folder / split / "rows.jsonl", rows)


def write_clips(
    folder: Path,
    split: Split,
    *,
    num_clips: int,
    num_processes: int = 2,
    options: ClipOptions = DEMO,
) -> None:
    """Write the clips that are not there yet; arguments as of `write_split`."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(num_clips) if not (folder / clip_path(split, i)).exists()]
    _write_clips(folder, split, missing, num_processes, options)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Trainer rows as JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two runs may write it at once: each has its own partial file, the last one wins.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, path)
    return path


def clip_path(split: Split, index: int) -> str:
    """Path of a clip relative to the video root."""
    return f"{split}/{index:05d}.mp4"


def clip_rows(split: Split, index: int, *, options: ClipOptions = DEMO) -> Iterator[dict[str, Any]]:
    """Trainer rows of one clip (SPEC A1.1, plus `query` and `spans`), one per shape."""
    for event in scene_events(split, index, options=options):
        yield {
            "problem": options.problem.format(query=event.query),
            "answer": event.answer,
            "problem_type": "temporal grounding",
            "data_type": "video",
            "videos": [clip_path(split, index)],
            "duration": options.duration_s,
            "gt_len": round(sum(end - start for start, end in event.spans_s), 6),
            "query": event.query,
            "spans": [list(span) for span in event.spans_s],
        }


def _write_clips(
    folder: Path, split: Split, indices: list[int], num_processes: int, options: ClipOptions
) -> None:
    if num_processes == 1 or len(indices) < 2 * num_processes:
        return write_some(folder, split, indices, options)
    # spawn: the caller may hold threads (torch, a progress bar) that a fork would lose
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        futures = [
            pool.submit(write_some, folder, split, indices[start : start + CHUNK_CLIPS], options)
            for start in range(0, len(indices), CHUNK_CLIPS)
        ]
        try:
            for future in futures:
                future.result()
        finally:  # Ctrl-C waits for the chunks in work only
            pool.shutdown(cancel_futures=True)
    return None


def write_some(folder: Path, split: Split, indices: list[int], options: ClipOptions = DEMO) -> None:
    """Some clips of a split, whose folder is there."""
    for index in indices:
        frames = render_clip(split, index, options=options)
        _write_mp4(folder / clip_path(split, index), frames)


def _write_mp4(path: Path, frames: Pixels) -> None:
    """Encode beside the target and rename, so that a file that exists is complete."""
    import av

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


def _rng(split: Split, index: int) -> np.random.Generator:
    return np.random.default_rng([SPLIT_SEEDS[split], index])


def _draw_scene(rng: np.random.Generator, options: ClipOptions) -> Scene:
    colors = rng.permutation(list(COLORS))[:SHAPES_PER_CLIP]
    pairs = [(_draw_event(rng, str(color), options), _draw_mover(rng)) for color in colors]
    return Scene(events=tuple(e for e, _ in pairs), movers=tuple(m for _, m in pairs))


def _draw_event(rng: np.random.Generator, color: str, options: ClipOptions) -> Event:
    count = 1 if options.most_spans == 1 else int(rng.integers(1, options.most_spans + 1))
    first, *later = _draw_spans(rng, count, options)
    return Event(color, str(rng.choice(SHAPES)), *first, tuple(later))


def _draw_spans(rng: np.random.Generator, count: int, options: ClipOptions) -> list[Span]:
    """Ascending, `min_span_s` or more apart: lengths first, the rest falls into the gaps."""
    grid_s, total = options.grid_s, round(options.duration_s / options.grid_s)
    least, most = (round(span_s / grid_s) for span_s in (options.min_span_s, options.max_span_s))
    lengths = [int(rng.integers(least, most + 1)) for _ in range(count)]
    free = total - sum(lengths) - (count - 1) * least
    before = sorted(int(cell) for cell in rng.integers(0, free + 1, count))
    starts = [gap + sum(lengths[:k]) + k * least for k, gap in enumerate(before)]
    return [
        (_on_grid(start, grid_s), _on_grid(start + length, grid_s))
        for start, length in zip(starts, lengths, strict=True)
    ]


def _on_grid(cell: int, grid_s: float) -> float:
    return round(cell * grid_s, 6)  # 0.1 is no binary number


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


def _background(rng: np.random.Generator, *, num_frames: int) -> Floats:
    """[F, H, W, C]: a coarse random texture, linearly interpolated, drifting."""
    cells = rng.uniform(40, 150, (TEXTURE_CELLS, TEXTURE_CELLS, 3)).astype(np.float32)
    drift = rng.normal(0, TEXTURE_DRIFT, 2)
    frames_F1 = np.arange(num_frames)[:, None]
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
