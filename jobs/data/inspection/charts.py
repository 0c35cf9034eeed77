"""Distributions of an annotation file → small inline SVGs that follow the page's theme.

`histogram_chart` draws a `Histogram`, `density_chart` the map of starts and ends; the house look
comes from `jobs.demo.charts`. Neighbour: `jobs.data.inspection.page` puts them into its template.
"""

import math
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jobs.data.inspection.numbers import Histogram
from jobs.demo.charts import MUTED, SERIES, SIZE_IN, STYLE, Drawing, inline_svg

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
        svg=_svg(histogram.title, SIZE_IN, lambda axes: _draw_bars(axes, histogram)),
        legend=(),
    )


def density_chart(cells: npt.NDArray[np.int64]) -> Drawing:
    """Map of spans by relative start and end.

    Args:
        cells: [N, N] counts by start (row) and end (column), both as shares of the duration.
    """
    return Drawing(
        title="Start against end",
        note=(
            f"{cells.sum():,} spans, as shares of the duration. The diagonal is length 0, the "
            f"upper left corner the whole video. Darkest cell: {cells.max():,} spans."
        ),
        svg=_svg("Start against end", DENSITY_SIZE_IN, lambda axes: _draw_cells(axes, cells)),
        legend=(),
    )


def _svg(title: str, size_in: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    with mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=size_in, layout="constrained")
        draw(figure.add_subplot())
        return inline_svg(figure, label=title)


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


def _draw_cells(axes: Axes, cells: npt.NDArray[np.int64]) -> None:
    side = 1 / len(cells)
    filled = np.argwhere(cells)
    corners = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])
    # Square roots, so that a few full cells do not hide where the many others are.
    strength = np.sqrt(cells[tuple(filled.T)] / max(1, cells.max()))
    colours = [to_rgba(SERIES[0], FAINTEST_CELL + (1 - FAINTEST_CELL) * s) for s in strength]
    squares = [(cell + corners) * side for cell in filled]
    axes.add_collection(PolyCollection(squares, facecolors=colours, edgecolors="none"))
    axes.plot((0, 1), (0, 1), color=MUTED, linewidth=0.8)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="start", ylabel="end", aspect="equal")
