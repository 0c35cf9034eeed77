"""Timelines of the report: answers before and after → bars over a strip of frames, clip by clip.

Places and strips come from `jobs.evaluation.showing.timelines`.
Neighbour: `jobs.demo.report` puts `timelines` into its template.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.demo.figures import Answer, Evaluation
from jobs.evaluation.showing.timelines import frame_strip, place, ticks
from jobs.toy.clips import COLORS

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
