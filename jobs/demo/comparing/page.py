"""Every record of a comparison → docs/compare.md. Pure.

One page for all regimes. A cell without a run says so; nothing is filled in.
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

from jobs.demo.comparing import rules
from jobs.demo.comparing.paired import (
    Difference,
    Spread,
    When,
    difference,
    figure_of,
    refuse_unequal,
    spread,
    start_of,
)
from jobs.demo.comparing.records import FIGURES, MECHANISM, RunRecord
from jobs.demo.comparing.verdicts import ByRegime, verdicts

NOT_RUN = "not run yet"
NOT_MEASURED = "not measured"
WIDTH = 120


def page(records: Iterable[RunRecord]) -> str:
    """The text of docs/compare.md.

    Raises:
        ValueError: runs of one regime that cannot be compared.
    """
    by_regime: dict[str, list[RunRecord]] = {regime: [] for regime in rules.METHODS}
    for record in records:
        by_regime[record.regime].append(record)
    for found in by_regime.values():
        refuse_unequal(found)
    parts = [
        "# Methods compared",
        _filled(
            "Which of the methods learns most, in five regimes of the demo's task, by rules "
            "written before any result. Made by `make compare REGIME=<name>` of the records in "
            "[bench/compare](bench/compare), one a run; what has no record is not run yet."
        ),
        "![Greedy mIoU of every run](images/compare.svg)",
        "## Regimes and methods",
        "Greedy mIoU on held-out queries, last step / early-stopped; mean ± standard deviation of "
        "seeds.",
        _overview(by_regime),
        "## What came out",
        _filled(
            "The questions of the regimes' rules (below), answered as written there: by greedy "
            "mIoU of the last step, once every run is there."
        ),
        _table(
            ["regime", "question", "answer"],
            ([one.regime, one.question, one.answer] for one in verdicts(by_regime)),
            left=3,
        ),
        "## What the paper claims, and what is seen",
        _filled(
            "The paper's figures: Charades-STA, G = 4, R1@.7 in percent, Qwen2.5-VL-7B. Ours: "
            "greedy mIoU of the last step, paired by seed, with 95 % intervals; an interval that "
            "holds zero is a tie."
        ),
        _claims(by_regime),
        "## What is not resolved",
        "\n".join(f"- {line}" for line in _open_questions(by_regime)),
        "## The rule",
        rules.rule("all"),
    ]
    for regime, found in by_regime.items():
        parts += _regime(regime, found)
    return "\n\n".join(part for part in parts if part) + "\n"


def _overview(by_regime: ByRegime) -> str:
    methods = list(dict.fromkeys(name for names in rules.METHODS.values() for name in names))
    rows = []
    for regime, found in by_regime.items():
        start = spread(start_of(record, "miou") for record in found)
        cells = [
            _both(found, method) if method in rules.METHODS[regime] else "" for method in methods
        ]
        rows.append([regime, NOT_RUN if not found else _mean(start), *cells])
    return _table(["", "start", *methods], rows)


def _both(found: Sequence[RunRecord], method: str) -> str:
    """Last step / early-stopped, and how many runs are still missing."""
    runs = [record for record in found if record.method == method]
    if not runs:
        return NOT_RUN
    last, early = (spread(figure_of(run, "miou", when=when) for run in runs) for when in WHENS)
    said = f"{_spread(last)} / {_spread(early)}"
    missing = len(rules.DEFAULT_SEEDS) - len(runs)
    return said if missing <= 0 else f"{said} ({len(runs)} of {len(rules.DEFAULT_SEEDS)} runs)"


WHENS: tuple[When, When] = ("last", "early")


def _claims(by_regime: ByRegime) -> str:
    rows = []
    for claim in rules.CLAIMS:
        cells = []
        for regime, found in by_regime.items():
            if not {claim.method, claim.against} <= set(rules.METHODS[regime]):
                cells.append("")
                continue
            cells.append(_difference(_of(found, claim, "miou")))
        rows.append([f"{claim.method} - {claim.against}", claim.paper, *cells])
    return _table(["", "paper", *by_regime], rows, left=2)


def _of(
    found: Sequence[RunRecord], claim: rules.Claim, key: str, when: When = "last"
) -> Difference | None:
    return difference(found, key, method=claim.method, against=claim.against, when=when)


def _open_questions(by_regime: ByRegime) -> Iterator[str]:
    for regime, found in by_regime.items():
        missing = [
            f"{method} {len(rules.DEFAULT_SEEDS) - count} of {len(rules.DEFAULT_SEEDS)}"
            for method in rules.METHODS[regime]
            if (count := sum(record.method == method for record in found))
            < len(rules.DEFAULT_SEEDS)
        ]
        if missing:
            yield f"**{regime}**: runs that are missing: {', '.join(missing)}."
        ties = [
            f"{claim.method} and {claim.against}"
            for claim in rules.CLAIMS
            if (seen := _of(found, claim, "miou")) is not None and seen.verdict == "tie"
        ]
        if ties:
            yield f"**{regime}**: ties in greedy mIoU: {', '.join(ties)}."
        starts = {record.start_sha256 for record in found}
        if len(starts) > 1:
            yield f"**{regime}**: runs began with {len(starts)} different starts of one recipe."
        if any(record.early is None for record in found):
            yield f"**{regime}**: runs without early-stopped figures, which were not measured."
    yield (
        "Everywhere: the toy has one kind of query and one size of model; nothing here says how a "
        "7B model on real footage behaves."
    )


def _regime(regime: str, found: Sequence[RunRecord]) -> list[str]:
    parts = [f"## Regime {regime}", rules.rule(regime)]
    if not found:
        return [*parts, f"{NOT_RUN.capitalize()}: `make compare REGIME={regime}`."]
    methods = [name for name in rules.METHODS[regime] if any(one.method == name for one in found)]
    claims = [claim for claim in rules.CLAIMS if _of(found, claim, "miou") is not None]
    parts += [
        _filled(_facts(found)),
        _table(["last step", "start", *methods], _figure_rows(found, methods, "last")),
    ]
    if any(record.early for record in found):
        parts.append(
            _table(["early-stopped", "start", *methods], _figure_rows(found, methods, "early"))
        )
    parts.append(_table(["training groups", *methods], _mechanism_rows(found, methods)))
    if claims:
        header = ["last step", *(f"{claim.method} - {claim.against}" for claim in claims)]
        rows = (
            [name, *(_difference(_of(found, claim, key), none=NOT_MEASURED) for claim in claims)]
            for key, name in FIGURES.items()
        )
        parts.append(_table(header, rows))
    header = ["run", "step", *FIGURES.values(), "minutes", "load"]
    folded = f"<details>\n<summary>Every run of {regime}</summary>"
    return [*parts, folded, _table(header, _run_rows(found, methods)), "</details>"]


def _facts(found: Sequence[RunRecord]) -> str:
    first = found[0]
    minutes = fmean(record.train_minutes for record in found)
    machines = " and ".join(sorted({record.machine for record in found}))
    facts = [
        f"{len(found)} runs, {first.steps} steps, {first.split} split, {first.queries} queries, "
        f"G = {first.num_samples}, on {machines}; "
        f"training took {minutes:.1f} minutes a run. "
        f"The best constant span has mIoU {first.best_constant_miou:.3f}, a random span "
        f"{first.random_span_miou:.3f}."
    ]
    if failed := sum(record.failed_queries for record in found):
        facts.append(f"{failed} requests got no answer and are in none of the figures.")
    return " ".join(facts)


def _figure_rows(
    found: Sequence[RunRecord], methods: Sequence[str], when: When
) -> Iterator[list[str]]:
    for key, name in FIGURES.items():
        start = spread(start_of(record, key) for record in found)
        cells = [
            _spread(spread(figure_of(run, key, when=when) for run in found if run.method == method))
            for method in methods
        ]
        yield [name, _mean(start), *cells]
    if when == "early":
        cells = [
            ", ".join(str(run.early.step) for run in found if run.method == method and run.early)
            for method in methods
        ]
        yield ["at step", "", *cells]


def _mechanism_rows(found: Sequence[RunRecord], methods: Sequence[str]) -> Iterator[list[str]]:
    for key, name in MECHANISM.items():
        values = [
            spread(run.mechanism.get(key) for run in found if run.method == method)
            for method in methods
        ]
        yield [name, *map(_spread, values)]


def _run_rows(found: Sequence[RunRecord], methods: Sequence[str]) -> Iterator[list[str]]:
    for method in methods:
        for run in sorted((one for one in found if one.method == method), key=lambda one: one.seed):
            name = f"{method} {run.seed}"
            took = [f"{run.train_minutes:.1f}", "" if run.load is None else f"{run.load:.1f}"]
            yield [name, str(run.steps), *(_number(figure_of(run, key)) for key in FIGURES), *took]
            if run.early is not None and run.early.step != run.steps:
                values = (_number(figure_of(run, key, when="early")) for key in FIGURES)
                yield [name, f"{run.early.step}, early", *values, "", ""]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _mean(found: Spread | None) -> str:
    return NOT_MEASURED if found is None else f"{found.mean:.3f}"


def _spread(found: Spread | None) -> str:
    if found is None:
        return NOT_MEASURED
    return f"{found.mean:.3f}" + (" (one run)" if found.std is None else f" ± {found.std:.3f}")


def _difference(found: Difference | None, *, none: str = NOT_RUN) -> str:
    return none if found is None else found.words


def _filled(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, break_on_hyphens=False, break_long_words=False))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    aligned = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, aligned, *rows))
