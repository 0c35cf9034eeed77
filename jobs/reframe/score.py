"""`tempsamp reframe score`: our own figures of a submission against known boxes.

    submission + truth, both in the form of a submission -> Score -> table or --json

The task publishes no metric, so these are named ours: they compare versions of this kit with each
other and say nothing about a leader board.

    frame F1     of kept frames, a video's mean; two empty videos agree: 1
    box IoU      over frames that both keep, a video's mean, over videos that share frames
    jitter       how far a box's step differs from its step before, px a frame: 0 at rest and at an
                 even pace; a video's mean over three frames in a row, over videos that have them
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from jobs.reframe.crop import Box, Size
from jobs.reframe.submission import Submitted, read_submission


@dataclass(frozen=True, kw_only=True)
class VideoScore:
    """Of one video."""

    frame_f1: float
    """0 to 1."""
    box_iou: float | None
    """0 to 1; None where no frame is kept by both."""
    jitter_px: float | None
    """None without three frames in a row."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Means over videos."""

    videos: int
    frame_f1: float
    box_iou: float | None
    jitter_px: float | None


def score(
    found: Mapping[str, Submitted], *, truth: Mapping[str, Submitted]
) -> dict[str, VideoScore]:
    """Figures of every video of the truth; one that was not submitted has no frames.

    Raises:
        ConfigError: a video that is not in the truth, or another ratio than there.
    """
    for video_id, one in found.items():
        if video_id not in truth:
            raise ConfigError(f"{video_id}: found it in the submission, wanted it in --truth too")
        if one.ratio != truth[video_id].ratio:
            raise ConfigError(
                f"{video_id}: found targetRatioWH {list(one.ratio)}, "
                f"wanted {list(truth[video_id].ratio)}, as in --truth"
            )
    return {
        video_id: video_score(
            found[video_id].boxes if video_id in found else {},
            truth=wanted.boxes,
            ratio=wanted.ratio,
        )
        for video_id, wanted in truth.items()
    }


def video_score(found: Mapping[int, Box], *, truth: Mapping[int, Box], ratio: Size) -> VideoScore:
    """Figures of one video's boxes by frame."""
    common = found.keys() & truth.keys()
    kept = len(found) + len(truth)
    ious = [iou(found[frame], truth[frame], ratio=ratio) for frame in sorted(common)]
    jerks = [
        _jerk(found[frame - 2], found[frame - 1], box)
        for frame, box in found.items()
        if frame - 1 in found and frame - 2 in found
    ]
    return VideoScore(
        frame_f1=2 * len(common) / kept if kept else 1.0,
        box_iou=_mean(ious),
        jitter_px=_mean(jerks),
    )


def mean(scores: Mapping[str, VideoScore]) -> Score:
    """Over videos; those without a figure are left out of it."""
    ious = [one.box_iou for one in scores.values() if one.box_iou is not None]
    jitters = [one.jitter_px for one in scores.values() if one.jitter_px is not None]
    return Score(
        videos=len(scores),
        frame_f1=math.fsum(one.frame_f1 for one in scores.values()) / len(scores),
        box_iou=_mean(ious),
        jitter_px=_mean(jitters),
    )


def iou(one: Box, other: Box, *, ratio: Size) -> float:
    """Intersection over union of two crops of one ratio."""
    width = min(one.x + one.w, other.x + other.w) - max(one.x, other.x)
    heights = one.height(ratio), other.height(ratio)
    height = min(one.y + heights[0], other.y + heights[1]) - max(one.y, other.y)
    shared = max(0.0, width) * max(0.0, height)
    return shared / (one.w * heights[0] + other.w * heights[1] - shared)


def _jerk(first: Box, second: Box, third: Box) -> float:
    """Pixels by which the second step of a box differs from its first."""
    return math.hypot(
        third.x - 2 * second.x + first.x,
        third.y - 2 * second.y + first.y,
    )


def _mean(numbers: list[float]) -> float | None:
    return math.fsum(numbers) / len(numbers) if numbers else None


def in_words(number: float | None, *, decimals: int = 3) -> str:
    """For a table."""
    return "-" if number is None else f"{number:.{decimals}f}"


def command(
    submission: Annotated[Path, typer.Argument(help="The submission (JSONL).")],
    truth: Annotated[Path, typer.Option(help="Known boxes, in the form of a submission.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Score a submission against known boxes, by figures of our own."""
    from dataclasses import asdict

    from jobs.local import terminal

    wanted = read_submission(truth, knob="--truth")
    if not wanted:
        raise ConfigError(f"--truth: {truth}: found no lines, wanted at least one video")
    scores = score(read_submission(submission, knob="submission"), truth=wanted)
    console = terminal.console()
    total = mean(scores)
    if as_json:
        document = {**asdict(total), "by_video": {k: asdict(v) for k, v in scores.items()}}
        console.print_json(data=document)
        return
    console.print("figures of this kit, no metric of the task is published", style="dim")
    console.print(f"videos    {total.videos}")
    console.print(f"frame F1  {in_words(total.frame_f1)}")
    console.print(f"box IoU   {in_words(total.box_iou)}")
    console.print(f"jitter    {in_words(total.jitter_px)} px/frame")
