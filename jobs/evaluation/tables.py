"""`Score` → tables for the terminal: protocols side by side, failures, groups, published rows.

Called by `jobs.evaluation.score`; figures are percentages, printed with two decimals.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.evaluation.intervals import Interval
from jobs.evaluation.protocols import PROTOCOLS, THRESHOLDS

if TYPE_CHECKING:
    from rich.table import Table

    from jobs.evaluation.score import Score

MISSING = "-"


def tables_of(score: "Score") -> Iterator["Table"]:
    """The tables that have something to say, the main one first."""
    if score.protocols:
        yield _protocols(score)
    if score.highlights is not None:
        yield _highlights(score)
    yield _counts(score)
    yield from _groups(score)
    if score.published:
        yield _published(score)


def _table(title: str, *headings: str) -> "Table":
    from rich.table import Table

    table = Table(title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    return table


def _protocols(score: "Score") -> "Table":
    names = [f"R1@{threshold}" for threshold in THRESHOLDS]
    table = _table(
        f"{score.bench}, % with 95 % intervals", "protocol", "n", *names, "mIoU", "read", "what"
    )
    for name, found in score.protocols.items():
        table.add_row(
            f"{name} (official)" if name == score.official else name,
            str(found.scored),
            *(_interval(found.recall.get(str(threshold))) for threshold in THRESHOLDS),
            _interval(found.miou),
            MISSING if found.parse_rate is None else f"{100 * found.parse_rate:.1f} %",
            PROTOCOLS[name].what,
        )
    return table


def _highlights(score: "Score") -> "Table":
    assert score.highlights is not None
    official = score.highlights.official["brief"]
    exact = {} if score.highlights.exact is None else score.highlights.exact["brief"]
    table = _table(f"{score.bench}, moment_detr's evaluator, %", "figure", "official", "exact")
    for name, value in official.items():
        other = exact.get(name)
        table.add_row(name, f"{value:.2f}", MISSING if other is None else f"{other:.2f}")
    return table


def _counts(score: "Score") -> "Table":
    table = _table("what was counted", "kind", "number")
    rows = {
        f"predictions ({score.format})": score.predictions,
        "lines cut and dropped": score.truncated_lines,
        "predictions without an annotation": score.unknown,
        "annotations without a prediction": score.unanswered,
        "annotations that cannot be read": score.bad_annotations,
        "annotations without a duration": score.without_duration,
        "annotations that end before they start": score.impossible_truths,
    }
    if exact := score.protocols.get("exact"):
        rows |= {f"failures: {kind}": number for kind, number in exact.failures.items()}
        rows["answers with a reversed span"] = exact.reversed
    for protocol, found in score.protocols.items():
        if found.collapsed:
            rows[f"equal keys collapsed by {protocol}"] = found.collapsed
    if score.highlights is not None:
        rows["answers without window or highlight"] = score.highlights.unreadable
    for kind, number in rows.items():
        table.add_row(kind, str(number))
    for protocol, reason in score.not_computed.items():
        table.add_row(f"{protocol} not computed", reason)
    return table


def _groups(score: "Score") -> Iterator["Table"]:
    for breakdown in score.breakdowns:
        if not any(group.queries for group in breakdown.groups):
            continue
        table = _table(f"by {breakdown.by} (exact)", breakdown.by, "n", "R1@0.5", "mIoU")
        for group in breakdown.groups:
            table.add_row(
                group.name, str(group.queries), _number(group.recall_50), _number(group.miou)
            )
        if breakdown.unknown:
            table.add_row("not annotated", str(breakdown.unknown), MISSING, MISSING)
        yield table


def _published(score: "Score") -> "Table":
    names = list(dict.fromkeys(name for row in score.published for name in row.figures))
    table = _table(f"{score.bench}, published, %", "model", *names, "source")
    for row in score.published:
        table.add_row(row.model, *(_number(row.figures.get(name)) for name in names), row.source)
    return table


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return MISSING
    return f"{interval.mean:.2f} [{interval.low:.1f}, {interval.high:.1f}]"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"
