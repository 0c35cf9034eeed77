"""`tempsamp data inspect --html`: an `Inspection` → one self-contained page.

Nothing is loaded from elsewhere: charts are inline SVG (`jobs.data.inspection.charts`), the look is
`page.html.j2`. Queries and file names come from strangers, so the template escapes everything
but our own SVG. Neighbour: `jobs.data.inspection.command` calls `write_page`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path

import jinja2

from common.queue.disk import write_file
from jobs.data.inspection.charts import density_chart, histogram_chart
from jobs.data.inspection.columns import RELATIVE
from jobs.data.inspection.rows import Example, Inspection
from jobs.data.inspection.videos import Health

MAX_LISTED = 20
"""Videos listed of those that are bad or whose duration is off; the failure file has all."""


@dataclass(frozen=True)
class Bar:
    """A span as a part of its video's track, in percent."""

    left: float
    width: float


def write_page(
    path: Path, *, source: str, inspection: Inspection, health: Health | None = None
) -> None:
    """Write the page.

    Args:
        path: HTML file; its folder is made.
        source: name of the annotation file, for the title.
        inspection: what it holds.
        health: what became of its videos; None when they were not probed.

    Raises:
        OutputError: it cannot be written.
    """
    absolute = [h for h in inspection.histograms if h.unit != RELATIVE]
    relative = [h for h in inspection.histograms if h.unit == RELATIVE]
    template = (
        resources.files("jobs.data.inspection").joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template).render(
        source=source,
        inspection=inspection,
        health=health,
        max_listed=MAX_LISTED,
        charts=[histogram_chart(histogram) for histogram in absolute],
        relative_charts=[histogram_chart(histogram) for histogram in relative],
        density=density_chart(inspection.density) if inspection.density.any() else None,
        examples=_examples(inspection.examples),
    )
    write_file(path, page, knob="--html")


def bars(example: Example) -> list[Bar]:
    """Its spans on a track as long as the video, or as the last end when that is longer."""
    if not example.spans:
        return []
    length_s = max(example.duration_s or 0.0, *(end_s for _, end_s in example.spans))
    return [
        Bar(left=100 * start_s / length_s, width=100 * (end_s - start_s) / length_s)
        for start_s, end_s in example.spans
    ]


def _examples(examples: Sequence[Example]) -> list[tuple[str, list[tuple[Example, list[Bar]]]]]:
    """Kind and its examples, in the order of the file."""
    return [
        (kind, [(example, bars(example)) for example in group])
        for kind, group in groupby(examples, key=lambda example: example.kind)
    ]
