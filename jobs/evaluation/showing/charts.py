"""Charts of an evaluation's report: IoUs and spans → small inline SVGs that follow the page.

Labels are ours alone: no text of an annotation or an answer enters a drawing. The house look comes
from `jobs.local.drawing`; `jobs.evaluation.showing.report` puts the drawings into its template.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from common.answers.spans import Span
from jobs.local.drawing import MUTED, SERIES, Drawing, draw_cells, svg_of

Floats = npt.NDArray[np.float64]

SIZE_IN = (4.4, 4.1)
IOU_BINS = 20
MAP_CELLS = 40
"""Along each side of an error map."""
FAINTEST_CELL = 0.2
POINT_STEP = 0.02
"""Points of the scatter fall on this grid, so that a page holds at most 2,601 of them."""
POINT_SIZE = 3.0
"""Points across; four times the queries are twice the area."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A true span and the one predicted for it; of several, from the first start to the last end.

    Times are seconds.
    """

    true: Span
    predicted: Span
    duration_s: float | None


def iou_histogram(ious: Floats) -> Drawing:
    """How the scored queries spread over IoU.

    Args:
        ious: [N] in [0, 1].
    """
    title = "IoU of the answers"
    counts, _ = np.histogram(ious, bins=IOU_BINS, range=(0, 1))
    nothing = int((ious == 0).sum())

    def draw(axes: Axes) -> None:
        places = (np.arange(IOU_BINS) + 0.5) / IOU_BINS
        axes.bar(places, counts, width=0.9 / IOU_BINS, color=SERIES[0])
        axes.set_xlim(0, 1)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(visible=False, axis="x")

    return Drawing(
        title=title,
        note=(
            f"{len(ious):,} scored queries; {nothing:,} share no moment with the truth, unreadable "
            "answers among them."
        ),
        svg=svg_of(draw, label=title, size_in=SIZE_IN),
        legend=(),
    )


def error_maps(compared: Sequence[Compared]) -> list[Drawing]:
    """Maps of predicted over true starts and ends; none without a readable answer.

    As shares of the duration when every query knows its own, else in seconds.
    """
    if not compared:
        return []
    return [_error_map(compared, end="start", index=0), _error_map(compared, end="end", index=1)]


def mode_scatter(answer_N: Floats, *, think_N: Floats) -> Drawing:
    """IoU with thought over IoU without it, query by query.

    Args:
        answer_N: [N] in [0, 1], answered at once.
        think_N: [N] the same queries, answered after a thought.
    """
    title = "With thought against without"
    better, worse = int((think_N > answer_N).sum()), int((think_N < answer_N).sum())
    steps = np.round(np.stack([answer_N, think_N], axis=1) / POINT_STEP)
    points, counts = np.unique(steps, axis=0, return_counts=True)

    def draw(axes: Axes) -> None:
        axes.plot((0, 1), (0, 1), color=MUTED, linewidth=0.8)
        doublings = np.floor(np.log2(counts))
        for level in np.unique(doublings):
            answer, think = points[doublings == level].T * POINT_STEP
            size = POINT_SIZE * 2 ** (level / 4)
            style = {"color": SERIES[0], "alpha": 0.5, "markeredgewidth": 0, "markersize": size}
            axes.plot(answer, think, "o", **style)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set(xlabel="IoU without thought", ylabel="IoU with thought")

    return Drawing(
        title=title,
        note=(
            f"{len(answer_N):,} queries scored in both modes: the thought helps {better:,}, hurts "
            f"{worse:,}. Larger points are several queries."
        ),
        svg=svg_of(draw, label=title, size_in=SIZE_IN),
        legend=(),
    )


def _error_map(compared: Sequence[Compared], *, end: str, index: int) -> Drawing:
    times_N2 = np.array([(one.true[index], one.predicted[index]) for one in compared])
    durations_s = [one.duration_s for one in compared]
    known = [duration_s for duration_s in durations_s if duration_s and math.isfinite(duration_s)]
    if len(known) == len(compared):
        times_N2 = times_N2 / np.array(known)[:, None]
        side, unit = 1.0, "share of the duration"
    else:
        side, unit = max(1.0, *(one.true[1] for one in compared)), "s"
    places_N2 = np.clip(times_N2 / side, 0, 1)
    edges = np.linspace(0, 1, MAP_CELLS + 1)
    cells, _, _ = np.histogram2d(places_N2[:, 0], places_N2[:, 1], bins=[edges, edges])
    outside = int((times_N2[:, 1] > side).sum())

    def draw(axes: Axes) -> None:
        draw_cells(axes, cells, faintest=FAINTEST_CELL, side=side)
        axes.set(xlabel=f"true {end}, {unit}", ylabel=f"predicted {end}, {unit}")

    return Drawing(
        title=f"Predicted {end} against true {end}",
        note=(
            f"{len(compared):,} readable answers; on the diagonal the {end} is right, above it too "
            f"late. Darkest cell: {int(cells.max()):,} queries."
            f"{f' {outside:,} lie past the upper edge.' if outside else ''}"
        ),
        svg=svg_of(draw, label=f"Error map of the {end}", size_in=SIZE_IN),
        legend=(),
    )
