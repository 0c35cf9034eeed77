"""`OUT/report.html`: one file that shows what an evaluation found, for a browser or a phone.

    scored benchmarks + their judged pairs -> tables, charts, cases, failures -> one page

Nothing is loaded from elsewhere: charts are inline SVG (`jobs.evaluation.showing.charts`), frames
are JPEGs in the page (`jobs.evaluation.showing.cases`), figures come from
`jobs.evaluation.showing.tables`. Queries, names and answers come from strangers, so the template
`report.html.j2` escapes everything but our own SVG. Imports matplotlib and decoders: commands
import this when they write the page.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
import numpy.typing as npt

from common.messages import Mode
from common.queue.disk import write_file
from jobs.evaluation.journal import ALL_KEPT
from jobs.evaluation.scoring.matching import Pair, Question
from jobs.evaluation.scoring.modes import ORACLE_LABEL
from jobs.evaluation.scoring.protocols import PROTOCOLS, Judgement, judge, read_answer
from jobs.evaluation.showing.cases import (
    MAX_LISTED,
    CaseGroup,
    FailedQuery,
    case_groups,
    failed_queries,
    hull,
)
from jobs.evaluation.showing.charts import Compared, error_maps, iou_histogram, mode_scatter
from jobs.evaluation.showing.grids import Grid, text_of
from jobs.evaluation.showing.tables import ORACLE, OURS, Scored, grids_of, overview
from jobs.evaluation.showing.timelines import NUM_FRAMES
from jobs.local.drawing import Drawing

Floats = npt.NDArray[np.float64]

REPORT_FILE = "report.html"


def no_video(question: Question) -> Path | None:
    """For predictions without their videos: timelines without frames."""
    return None


@dataclass(frozen=True, kw_only=True)
class Reported:
    """One benchmark of a run as the page needs it."""

    scored: Scored
    pairs: Sequence[Pair]
    """What was scored."""
    by_mode: Mapping[Mode, Sequence[Pair]] = field(default_factory=dict)
    """Answers of both modes to the same queries, for the scatter; empty without both."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """What a failure said, by key of the prediction."""
    video: Callable[[Question], Path | None] = no_video
    """The file of a question, None if it is not there."""
    notes: Sequence[str] = ()
    """Sentences that stand before the figures."""
    grids: Sequence[Grid] = ()
    """Further tables."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A benchmark as the template takes it."""

    name: str
    oracle: str
    """What to call it when the truth was used, else empty."""
    notes: Sequence[str]
    cards: Sequence[tuple[str, str, str]]
    """Label, figure, note."""
    wide: Sequence[Grid]
    narrow: Sequence[Grid]
    charts: Sequence[Drawing]
    groups: Sequence[CaseGroup]
    failed: Sequence[FailedQuery]
    num_failed: int


def write_report(
    path: Path,
    *,
    run: Sequence[Reported],
    title: str,
    facts: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the page.

    Args:
        path: HTML file; its folder is made.
        run: its benchmarks, in the order to show.
        title: of the run, such as the checkpoint's name.
        facts: name and value of what else is said under the title.

    Raises:
        ValueError: there is no benchmark.
        OutputError: it cannot be written.
    """
    if not run:
        raise ValueError("found no scored benchmark, wanted at least one")
    source = resources.files("jobs.evaluation.showing").joinpath("report.html.j2")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["cell"] = lambda cell: text_of(cell, between="\n")
    scored = [one.scored for one in run]
    page = environment.from_string(source.read_text(encoding="utf-8")).render(
        title=title,
        facts=facts,
        oracle=_oracle(scored),
        overview=overview(scored),
        sections=[_section(one) for one in run],
        cell_percent=100 / NUM_FRAMES,
        max_listed=MAX_LISTED,
    )
    write_file(path, page, knob="--out", kept=ALL_KEPT)


def _section(one: Reported) -> Section:
    main, *others = grids_of(one.scored)
    evaluator = [grid for grid in others if "figure" in grid.headings]
    judgement = judge(one.pairs, protocol=OURS)
    return Section(
        name=one.scored.score.bench,
        oracle=_oracle([one.scored]),
        notes=one.notes,
        cards=cards(one.scored),
        wide=[main, *evaluator, *one.grids],
        narrow=[grid for grid in others if grid not in evaluator],
        charts=_charts(one, judgement),
        groups=case_groups(one.pairs, judgement=judgement, video=one.video),
        failed=failed_queries(one.pairs, judgement=judgement, errors=dict(one.errors)),
        num_failed=sum(kind != "answered" for kind in judgement.kinds),
    )


def _oracle(run: Sequence[Scored]) -> str:
    return ORACLE_LABEL if any(scored.mode == ORACLE for scored in run) else ""


def cards(scored: Scored) -> list[tuple[str, str, str]]:
    """Label, figure and note of the headline; by our protocol."""
    found = scored.score.protocols.get(OURS)
    if found is None or found.miou is None:
        return []
    cards = [
        (name, f"{interval.mean:.2f}", f"95 %: {interval.low:.1f} to {interval.high:.1f}")
        for name, interval in (
            ("mIoU", found.miou),
            *((f"R1@{at}", interval) for at, interval in found.recall.items()),
        )
    ]
    left_out = found.failures["video"] + found.failures["engine"]
    rate = 0.0 if found.parse_rate is None else found.parse_rate
    return [
        *cards,
        ("Readable answers", f"{100 * rate:.1f} %", f"{found.failures['parse']:,} were not"),
        ("Queries", f"{found.scored:,}", f"{left_out:,} left out: clip or engine failed"),
    ]


def _charts(one: Reported, judgement: Judgement) -> list[Drawing]:
    charts = []
    if judgement.scored.any():
        charts.append(iou_histogram(judgement.scored_ious))
    charts += error_maps(_compared(one.pairs, judgement))
    if both := _both_modes(one.by_mode):
        charts.append(mode_scatter(both[0], think_N=both[1]))
    return charts


def _compared(pairs: Sequence[Pair], judgement: Judgement) -> list[Compared]:
    rules = PROTOCOLS[judgement.protocol]
    return [
        Compared(
            true=hull(question.spans),
            predicted=hull(read_answer(prediction, rules).used),
            duration_s=question.duration_s,
        )
        for (prediction, question), kind in zip(pairs, judgement.kinds, strict=True)
        if kind == "answered"
    ]


def _both_modes(by_mode: Mapping[Mode, Sequence[Pair]]) -> tuple[Floats, Floats] | None:
    """IoU of the queries that are scored in both modes, in one order."""
    if not (by_mode.get("answer") and by_mode.get("think")):
        return None
    answer, think = (_ious_by_id(by_mode[mode]) for mode in ("answer", "think"))
    shared = [key for key in answer if key in think]
    if not shared:
        return None
    return np.array([answer[key] for key in shared]), np.array([think[key] for key in shared])


def _ious_by_id(pairs: Sequence[Pair]) -> dict[str, float]:
    judgement = judge(pairs, protocol=OURS)
    return {
        question.id: float(iou)
        for (_, question), iou, scored in zip(pairs, judgement.ious, judgement.scored, strict=True)
        if scored
    }
