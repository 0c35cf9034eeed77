"""Timelines of the report: answers before and after → bars over a strip of frames, clip by clip.

Bars are CSS places in percent of the clip's length; strips are JPEGs inside the page. Clips are
read back through `common.video.frames`, so the strip shows what the model could see.
Neighbour: `jobs.demo.report` puts `timelines` into its template.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common.answers.spans import Span
from common.errors import VideoError
from common.video.frames import load_frames, sample_clip
from common.video.sampling import VideoSampling
from jobs.demo.figures import Answer, Evaluation
from jobs.toy.clips import COLORS

NUM_FRAMES = 8
STRIP_SAMPLING = VideoSampling(factor=4, min_pixels=4096, max_pixels=16_384)
"""Size of a strip's frames; their times are the middles of equal cells, chosen here."""
STRIP_HEIGHT_PX = 120
JPEG_QUALITY = 82
TICK_STEPS_S = (0.5, 1, 2, 4, 5, 10, 15, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
MAX_INTERVALS = 5
OTHER_COLORS = ("#d9730d", "#2456d6", "#12908e", "#9b51c7", "#c2347d", "#5f8a1f")
"""For queries that name none of the demo's colours."""


@dataclass(frozen=True)
class Shown:
    """One answer on a timeline."""

    iou_text: str
    bars: Sequence[str] = ()
    """CSS places of its spans."""
    problem: str = ""
    """Why there is no bar."""


@dataclass(frozen=True)
class Lane:
    """One query of a clip."""

    query: str
    colour: str
    true_bars: Sequence[str]
    """CSS places of its true spans."""
    before: Shown
    after: Shown


@dataclass(frozen=True)
class Timeline:
    """One clip with all its queries."""

    name: str
    strip: str | None
    """Data URI of `NUM_FRAMES` frames side by side; None when the clip cannot be read any more."""
    ticks: list[tuple[float, str]]
    """Place in percent, and label."""
    lanes: list[Lane]


def timelines(
    start: Evaluation, *, end: Evaluation, video_root: Path, num_clips: int
) -> list[Timeline]:
    """The first `num_clips` clips in the order of the rows; a clip nobody answered is left out."""
    clips: dict[str, dict[str, Answer]] = {}
    for answer in (*end.answers, *start.answers):
        clips.setdefault(answer.record.video, {}).setdefault(answer.record.id, answer)
    before = {answer.record.id: answer for answer in start.answers}
    after = {answer.record.id: answer for answer in end.answers}
    return [
        Timeline(
            name=clip,
            strip=frame_strip(video_root / clip),
            ticks=ticks(next(iter(answers.values())).duration_s),
            lanes=[
                _lane(answer, number=number, before=before.get(id), after=after.get(id))
                for number, (id, answer) in enumerate(answers.items())
            ],
        )
        for clip, answers in list(clips.items())[:num_clips]
    ]


def ticks(duration_s: float) -> list[tuple[float, str]]:
    """Round times along a clip, at most `MAX_INTERVALS` intervals; clock times from two minutes."""
    fitting = (step for step in TICK_STEPS_S if duration_s / step <= MAX_INTERVALS)
    step_s = next(fitting, TICK_STEPS_S[-1])
    times_s = [k * step_s for k in range(int(duration_s / step_s + 1e-9) + 1)]
    return [(100 * time_s / duration_s, _clock(time_s, duration_s)) for time_s in times_s]


def place(span: Span, *, duration_s: float) -> str:
    """CSS `left` and `width` of a span; what lies outside the clip is cut off."""
    left, right = (100 * min(max(time_s / duration_s, 0.0), 1.0) for time_s in span)
    return f"left:{left:.2f}%;width:{max(right - left, 0.6):.2f}%"


def _lane(answer: Answer, *, number: int, before: Answer | None, after: Answer | None) -> Lane:
    return Lane(
        query=answer.record.query,
        colour=_colour(answer.record.query, number=number),
        true_bars=[place(span, duration_s=answer.duration_s) for span in answer.record.gt],
        before=_shown(before),
        after=_shown(after),
    )


def _shown(answer: Answer | None) -> Shown:
    if answer is None:
        return Shown(iou_text="n/a", problem="not answered")
    bars = [place(span, duration_s=answer.duration_s) for span in answer.spans]
    return Shown(iou_text=f"{answer.iou:.2f}", bars=bars, problem="" if bars else "not readable")


def _colour(query: str, *, number: int) -> str:
    named = next((rgb for name, rgb in COLORS.items() if name in query.split()), None)
    if named is not None:
        return "#{:02x}{:02x}{:02x}".format(*named)
    return OTHER_COLORS[number % len(OTHER_COLORS)]


def _clock(time_s: float, duration_s: float) -> str:
    if duration_s >= 120:
        return f"{int(time_s) // 60}:{int(time_s) % 60:02d}"
    return f"{time_s:g} s" if time_s else "0"


def frame_strip(path: Path) -> str | None:
    try:
        clip = sample_clip(path, sampling=STRIP_SAMPLING)
        middles = (np.arange(NUM_FRAMES) + 0.5) / NUM_FRAMES * clip.total_frames
        indices = tuple(middles.astype(int).tolist())
        frames = load_frames(clip.model_copy(update={"frame_indices": indices}))
    except VideoError:
        return None
    wide = Image.fromarray(np.concatenate(list(frames), axis=1))
    width_px = round(wide.width * STRIP_HEIGHT_PX / wide.height)
    buffer = io.BytesIO()
    wide.resize((width_px, STRIP_HEIGHT_PX), Image.Resampling.LANCZOS).save(
        buffer, "JPEG", quality=JPEG_QUALITY
    )
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
