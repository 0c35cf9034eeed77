"""Distributions of an annotation file → small inline SVGs that follow the page's theme.

`histogram_chart` draws a `Histogram`, `density_chart` the map of starts and ends; the house look
comes from `jobs.local.drawing`. Neighbour: `jobs.data.inspection.page` puts them into its template.
"""

import math

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jobs.data.inspection.numbers import Histogram
from jobs.local.drawing import SERIES, Drawing, draw_cells, svg_of

DENSITY_SIZE_IN = (4.4, 4.1)
MAX_LABELS = 6
"""Edges of a histogram with a label."""
OPEN_BIN_ALPHA = 0.4
"""The bin of all larger values is no part of the scale: it is drawn lighter."""
FAINTEST_CELL = 0.12


def histogram_chart(histogram: Histogram) -> Drawing:
    """Bars of equal width, labelled at their edges."""
    total = sum(histogram.counts)
    is_open = math.isinf(histogram.edges[-1])
    more = f"; the last bar is {histogram.edges[-2]:g} and more" if is_open else ""
    return Drawing(
        title=histogram.heading,
        note=f"{total:,} {histogram.over}{more}.",
        svg=svg_of(lambda axes: _draw_bars(axes, histogram), label=histogram.title),
        legend=(),
    )


def density_chart(cells: npt.NDArray[np.int64]) -> Drawing:
    """Map of spans by relative start and end.

    Args:
        cells: [N, N] counts by start (row) and end (column), both as shares of the duration.
    """

    def draw(axes: Axes) -> None:
        draw_cells(axes, cells, faintest=FAINTEST_CELL)
        axes.set(xlabel="start", ylabel="end")

    return Drawing(
        title="Start against end",
        note=(
            f"{cells.sum():,} spans, as shares of the duration. The diagonal is length 0, the "
            f"upper left corner the whole video. Darkest cell: {cells.max():,} spans."
        ),
        svg=svg_of(draw, label="Start against end", size_in=DENSITY_SIZE_IN),
        legend=(),
    )


def _draw_bars(axes: Axes, histogram: Histogram) -> None:
    places = np.arange(len(histogram.counts)) + 0.5
    bars = axes.bar(places, histogram.counts, width=0.9, color=SERIES[0])
    edges = [edge for edge in histogram.edges if math.isfinite(edge)]
    if len(edges) < len(histogram.edges):
        bars[-1].set_alpha(OPEN_BIN_ALPHA)
    step = math.ceil(len(edges) / MAX_LABELS)
    axes.set_xticks(range(0, len(edges), step), [f"{edge:g}" for edge in edges[::step]])
    axes.set_xlim(0, len(histogram.counts))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(visible=False, axis="x")
