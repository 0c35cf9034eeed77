"""Records → docs/images/compare.svg: a dot a run, a bar a mean, one column a regime. Pure.

Drawn by hand so that equal records give equal bytes; colours are readable on white and on dark.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from jobs.demo.comparing.paired import figure_of, spread, start_of
from jobs.demo.comparing.records import RunRecord

WIDTH, HEIGHT = 900, 330
TOP, BOTTOM, LEFT, RIGHT = 34, 96, 46, 10
"""Pixels around the axes."""
GRID_MIOU = 0.1
COLORS = {
    "start": "#8a93a3",
    "grpo": "#2456d6",
    "mixed": "#d9730d",
    "tempsamp": "#12908e",
    "sft": "#b3261e",
}
OTHER = "#7a4fbf"
KEY = "miou"


def plot(by_regime: Mapping[str, Sequence[RunRecord]], methods: Mapping[str, Sequence[str]]) -> str:
    """Greedy mIoU of the last step as an SVG document.

    Args:
        by_regime: records; a regime without any has an empty column.
        methods: of each regime, in the order of its column.
    """
    columns = [
        (regime, method) for regime, names in methods.items() for method in ("start", *names)
    ]
    step_px = (WIDTH - LEFT - RIGHT) / len(columns)
    values = {column: list(_values(by_regime.get(column[0], ()), column[1])) for column in columns}
    top = _ceiling(value for found in values.values() for value in found)
    body = [*_grid(top)]
    for number, column in enumerate(columns):
        x = LEFT + (number + 0.5) * step_px
        body += _column(column[1], values[column], x=x, top=top, width_px=step_px)
    body += _titles(methods, step_px)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#667080" role="img" '
        'aria-label="Greedy mIoU of every run, by regime and method">\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _values(records: Sequence[RunRecord], method: str) -> Iterator[float]:
    """Of the runs of a method; of its start: the mean over all runs, which have the same."""
    if method == "start":
        found = spread(start_of(record, KEY) for record in records)
        if found is not None:
            yield found.mean
        return
    for record in records:
        value = figure_of(record, KEY)
        if record.method == method and value is not None:
            yield value


def _ceiling(values: Iterator[float]) -> float:
    highest = max(values, default=GRID_MIOU)
    return GRID_MIOU * (int(highest / GRID_MIOU - 1e-9) + 1)


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - TOP)


def _grid(top: float) -> Iterator[str]:
    for line in range(round(top / GRID_MIOU) + 1):
        y = _y(line * GRID_MIOU, top)
        yield (
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#8a93a3" '
            'stroke-opacity=".35"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{line * GRID_MIOU:.1f}</text>'
        )


def _column(
    method: str, values: Sequence[float], *, x: float, top: float, width_px: float
) -> Iterator[str]:
    colour, base = COLORS.get(method, OTHER), HEIGHT - BOTTOM
    if found := spread(values):
        y, half = _y(found.mean, top), width_px * 0.32
        yield (
            f'<rect x="{x - half:.1f}" y="{y:.1f}" width="{2 * half:.1f}" height="{base - y:.1f}" '
            f'fill="{colour}" fill-opacity=".3"/>'
        )
    else:
        yield f'<text x="{x:.1f}" y="{base - 4}" text-anchor="middle">none</text>'
    if len(values) > 1:
        for value in values:
            yield f'<circle cx="{x:.1f}" cy="{_y(value, top):.1f}" r="2.6" fill="{colour}"/>'
    yield (
        f'<text transform="translate({x + 4:.1f} {base + 8}) rotate(-50)" text-anchor="end" '
        f'font-size="11">{escape(method)}</text>'
    )


def _titles(methods: Mapping[str, Sequence[str]], step_px: float) -> Iterator[str]:
    at = float(LEFT)
    for regime, names in methods.items():
        width = (len(names) + 1) * step_px
        yield (
            f'<text x="{at + width / 2:.1f}" y="18" text-anchor="middle" font-size="13" '
            f'font-weight="600">{escape(regime)}</text>'
        )
        if at > LEFT:
            yield (
                f'<line x1="{at:.1f}" y1="{TOP - 8}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}" '
                'stroke="#8a93a3" stroke-dasharray="2 3"/>'
            )
        at += width
