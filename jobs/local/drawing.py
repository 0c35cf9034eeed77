"""The drawing style that the pages share: a figure of matplotlib → a small inline SVG.

matplotlib draws lines and axes only; titles, legends and notes are the page's HTML. Colours are
placeholders that become CSS variables, so that one drawing serves the light and the dark theme.
Neighbours: `jobs.demo.charts`, `jobs.evaluation.showing.charts` and `jobs.data.inspection.charts`
draw with it, each for its own page.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

SIZE_IN = (4.4, 2.3)
THEME = {
    "#010101": "var(--muted)",
    "#020202": "var(--line)",
    "#030303": "var(--series-1)",
    "#040404": "var(--series-2)",
    "#050505": "var(--series-3)",
}
"""Colour drawn → colour shown."""
MUTED, LINE, *SERIES = THEME
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
CLEAN_UP = (
    (r' (?:version|xmlns(?::xlink)?)="[^"]*"', ""),
    (r'(<svg[^>]*?) width="[^"]*"', r"\1"),
    (r'(<svg[^>]*?) height="[^"]*"', r"\1"),
    (r' id="(?:figure|axes|patch|line2d|text|xtick|ytick|matplotlib)[^"]*"', ""),
    (r"<style[^>]*>[^<]*</style>", ""),
    (r"font-family: [^;\"]*;? ?", ""),
    (r"fill: #ffffff", "fill: none"),
)
"""What an SVG file needs and an element of a page must not have: fixed size, names that repeat from
chart to chart, rules and fonts of its own, white backgrounds."""


@dataclass(frozen=True)
class Drawing:
    """A chart as the template takes it."""

    title: str
    note: str
    svg: str
    legend: tuple[tuple[str, str], ...]
    """(CSS colour, label) of each series."""


def svg_of(
    draw: Callable[[Axes], None], *, label: str, size_in: tuple[float, float] = SIZE_IN
) -> str:
    """What `draw` puts on axes of the house's look, as an element of a page.

    Args:
        label: read aloud in place of the drawing; equal labels and drawings give equal bytes.
        size_in: width and height in inches; the page scales it.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=size_in, layout="constrained")
        draw(figure.add_subplot())
        return _inline(figure, label=label)


def draw_cells(
    axes: Axes, cells: npt.NDArray[np.int64 | np.float64], *, faintest: float, side: float = 1.0
) -> None:
    """A map of counts with its diagonal; empty cells stay blank.

    Args:
        cells: [N, N] counts by place along x (first axis) and y.
        faintest: opacity of the smallest count, in (0, 1).
        side: length of both axes.
    """
    filled = np.argwhere(cells)
    corners = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])
    # Square roots, so that a few full cells do not hide where the many others are.
    strength = np.sqrt(cells[tuple(filled.T)] / max(1, cells.max()))
    colours = [to_rgba(SERIES[0], faintest + (1 - faintest) * s) for s in strength]
    squares = [(cell + corners) * (side / len(cells)) for cell in filled]
    axes.add_collection(PolyCollection(squares, facecolors=colours, edgecolors="none"))
    axes.plot((0, side), (0, side), color=MUTED, linewidth=0.8)
    axes.set(xlim=(0, side), ylim=(0, side), aspect="equal")


def _inline(figure: Figure, *, label: str) -> str:
    """The figure as an element of the page: no prolog, fluid width, colours of the theme."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for pattern, replacement in CLEAN_UP:
        svg = re.sub(pattern, replacement, svg)
    for drawn, shown in THEME.items():
        svg = svg.replace(drawn, shown)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
