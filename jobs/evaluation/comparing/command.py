"""`tempsamp compare RUN_A RUN_B`: the same queries answered twice → is one run better?

    predictions of both -> judged by one protocol -> differences query by query -> tables, JSON

Pairing takes the difficulty of the queries out of the comparison: an interval of the difference is
far narrower than those of the two figures. Runs over different questions are refused. (`make
compare` is another thing: `jobs.demo.compare_methods` trains methods over seeds.) Neighbours:
`jobs.evaluation.comparing.runs` reads, `jobs.evaluation.comparing.differences` computes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from common.answers.spans import Span
from common.errors import ConfigError
from common.queue.disk import check_file, write_file
from jobs.evaluation.comparing.differences import Differences, Record, differences
from jobs.evaluation.comparing.runs import Answers, Run, files_of, read_run
from jobs.evaluation.scoring.matching import Pair, Question, match, own_questions
from jobs.evaluation.scoring.modes import label_of
from jobs.evaluation.scoring.predictions import AnswerMode
from jobs.evaluation.scoring.protocols import PROTOCOLS
from jobs.evaluation.scoring.score import read_questions
from jobs.evaluation.showing.grids import Cell, Grid, rich_table

SHOWN = 5
"""Ids in a message."""


class LeftOut(Record):
    """Queries in no figure."""

    only_a: int
    only_b: int
    asked_differently: int
    """The same id with another query or truth."""
    failed: int
    """In both runs, but not scored in one."""
    cut_lines: int
    """Of either run, while they were written."""


class PairedComparison(Record):
    """One benchmark in two runs."""

    bench: str
    protocol: str
    mode_a: AnswerMode | None
    mode_b: AnswerMode | None
    left_out: LeftOut
    differences: Differences


class Comparisons(Record):
    """What `--json` writes."""

    a: str
    b: str
    benches: tuple[PairedComparison, ...]


def command(
    run_a: Annotated[
        Path, typer.Argument(help="Folder of `tempsamp eval` or of one benchmark, or predictions.")
    ],
    run_b: Annotated[Path, typer.Argument(help="The run to compare with it.")],
    protocol: Annotated[str, typer.Option(help=f"One of {', '.join(PROTOCOLS)}.")] = "exact",
    gt: Annotated[
        Path | None,
        typer.Option(help="Annotation file; default: the truth that the predictions repeat."),
    ] = None,
    common: Annotated[
        bool, typer.Option("--common", help="Compare what both have; count the rest.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--json", help="Also write it here.")] = None,
) -> None:
    """Compare two runs query by query: differences with intervals, answers that flipped."""
    from jobs.local import terminal

    if output is not None:
        inputs = [*files_of(run_a), *files_of(run_b), gt]
        check_file(output, knob="--json", inputs=inputs)
    try:
        found = compare_runs(run_a, run_b, protocol=protocol, gt=gt, common=common)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    console = terminal.console()
    for grid in grids_of(found):
        console.print(rich_table(grid))
    if output is not None:
        write_file(output, found.model_dump_json(indent=1) + "\n", knob="--json")


def compare_runs(
    path_a: Path,
    path_b: Path,
    *,
    protocol: str = "exact",
    gt: Path | None = None,
    common: bool = False,
) -> Comparisons:
    """Compare two runs.

    Args:
        path_a: as `jobs.evaluation.comparing.runs.read_run` takes it.
        path_b: the same.
        protocol: key of `jobs.evaluation.scoring.protocols.PROTOCOLS`.
        gt: annotations, for files that repeat no truth.
        common: compare the benchmarks and queries that both have.

    Raises:
        ValueError: an unknown protocol, a file that cannot be used, or the runs asked different
            questions (unless `common`) or share none; names the difference and the knob.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"--protocol: found {protocol!r}, wanted one of {', '.join(PROTOCOLS)}")
    run_a, run_b = read_run(path_a), read_run(path_b)
    questions = None if gt is None else read_questions(gt)[0]
    benches = []
    for name, one, other in _shared_benches(run_a, run_b, common=common):
        sides = tuple(
            _Side(where, answers, _pairs(answers, questions, where=where, common=common))
            for where, answers in ((run_a.name, one), (run_b.name, other))
        )
        benches.append(_compare(*sides, bench=name, protocol=protocol, common=common))
    return Comparisons(a=run_a.name, b=run_b.name, benches=tuple(benches))


def grids_of(found: Comparisons) -> Iterator[Grid]:
    """The tables of a comparison."""
    yield _runs_grid(found)
    for bench in found.benches:
        yield _differences_grid(bench)
        yield _flips_grid(bench)
        if bench.differences.most_changed:
            yield _changes_grid(bench)


@dataclass(frozen=True, slots=True)
class _Side:
    where: str
    answers: Answers
    pairs: Mapping[str, Pair]
    """By id of the question."""


def _shared_benches(
    run_a: Run, run_b: Run, *, common: bool
) -> Iterator[tuple[str, Answers, Answers]]:
    """Benchmarks by name; two lone ones are compared whatever they are called."""
    names_a, names_b = list(run_a.benches), list(run_b.benches)
    if len(names_a) == len(names_b) == 1:
        yield names_a[0], run_a.benches[names_a[0]], run_b.benches[names_b[0]]
        return
    shared = [name for name in names_a if name in run_b.benches]
    if not shared or (set(names_a) != set(names_b) and not common):
        raise ValueError(
            f"found the benchmarks {', '.join(names_a)} in {run_a.name} and {', '.join(names_b)} "
            f"in {run_b.name}, wanted the same: name one benchmark's folder"
            + ("; --common compares those of both" if shared else "")
        )
    for name in shared:
        yield name, run_a.benches[name], run_b.benches[name]


def _pairs(
    answers: Answers, questions: Sequence[Question] | None, *, where: str, common: bool
) -> dict[str, Pair]:
    try:
        truths = own_questions(answers.predictions) if questions is None else questions
        matched = match(answers.predictions, questions=truths, partial=True)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if any(prediction.ratings is not None for prediction in answers.predictions):
        raise ValueError(
            f"{where}: found answers about highlights, wanted moments: spans are compared; "
            "`tempsamp eval score` gives the figures of each run"
        )
    if matched.unknown and not common:
        raise ValueError(
            f"{where}: found {matched.unknown} predictions without an annotation in --gt, wanted "
            "none; --common leaves them out"
        )
    return {question.id: (prediction, question) for prediction, question in matched.pairs}


def _compare(
    side_a: _Side, side_b: _Side, *, bench: str, protocol: str, common: bool
) -> PairedComparison:
    shared = [key for key in side_a.pairs if key in side_b.pairs]
    same = [key for key in shared if _asks_same(side_a.pairs[key][1], side_b.pairs[key][1])]
    if len(same) < max(len(side_a.pairs), len(side_b.pairs)) and not common:
        raise ValueError(_difference_text(side_a, side_b, shared=shared, same=same))
    if not same:
        raise ValueError(
            f"{side_a.where} and {side_b.where}: found no question in both, wanted at least one: "
            "are both of one benchmark, and of one format? --gt finds the annotation of each"
        )
    pairs_a, pairs_b = ([side.pairs[key] for key in same] for side in (side_a, side_b))
    try:
        found = differences(pairs_a, pairs_b=pairs_b, protocol=protocol)
    except ValueError as error:
        raise ValueError(f"{side_a.where} and {side_b.where}: {error}") from error
    return PairedComparison(
        bench=bench,
        protocol=protocol,
        mode_a=side_a.answers.mode,
        mode_b=side_b.answers.mode,
        left_out=LeftOut(
            only_a=len(side_a.pairs) - len(shared),
            only_b=len(side_b.pairs) - len(shared),
            asked_differently=len(shared) - len(same),
            failed=found.failed,
            cut_lines=side_a.answers.truncated_lines + side_b.answers.truncated_lines,
        ),
        differences=found,
    )


def _asks_same(one: Question, other: Question) -> bool:
    return (one.query, one.spans) == (other.query, other.spans)


def _difference_text(
    side_a: _Side, side_b: _Side, *, shared: Sequence[str], same: Sequence[str]
) -> str:
    """What the runs were asked that is not the same."""
    parts = []
    for side, other_side in ((side_a, side_b), (side_b, side_a)):
        if only := [key for key in side.pairs if key not in other_side.pairs]:
            parts.append(f"{len(only)} only in {side.where} ({_some(only)})")
    unchanged = set(same)
    if changed := [key for key in shared if key not in unchanged]:
        one, other = side_a.pairs[changed[0]][1], side_b.pairs[changed[0]][1]
        parts.append(
            f"{len(changed)} with another query or truth ({changed[0]!r}: {one.query!r} at "
            f"{one.spans} and {other.query!r} at {other.spans})"
        )
    for side in (side_a, side_b):
        if side.answers.truncated_lines:
            parts.append(f"the last line of {side.where} was cut: finish that run")
    return (
        f"found different questions, wanted the same: {'; '.join(parts)}; --common compares what "
        "both have and counts the rest"
    )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(repr(key) for key in ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")


def _runs_grid(found: Comparisons) -> Grid:
    modes_a = {bench.mode_a for bench in found.benches}
    modes_b = {bench.mode_b for bench in found.benches}
    return Grid(
        title="the runs",
        headings=("run", "answers", "mode"),
        rows=(("A", found.a, _modes_text(modes_a)), ("B", found.b, _modes_text(modes_b))),
    )


def _modes_text(modes: Iterable[AnswerMode | None]) -> str:
    return ", ".join(sorted("not said" if mode is None else label_of(mode) for mode in modes))


def _differences_grid(bench: PairedComparison) -> Grid:
    found = bench.differences
    return Grid(
        title=f"{bench.bench} ({bench.protocol}): {found.queries} queries, % with 95 % intervals",
        headings=("figure", "A", "B", "B - A", "verdict"),
        rows=tuple((d.figure, d.a, d.b, d.b_minus_a, d.verdict) for d in found.figures),
        note=_left_out_text(bench.left_out),
    )


def _left_out_text(left_out: LeftOut) -> str:
    counts = {
        "only in A": left_out.only_a,
        "only in B": left_out.only_b,
        "asked differently": left_out.asked_differently,
        "failed in one": left_out.failed,
        "lines cut": left_out.cut_lines,
    }
    said = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
    return f"left out: {said or 'nothing'}"


def _flips_grid(bench: PairedComparison) -> Grid:
    return Grid(
        title="queries that flipped",
        headings=("IoU", "only A reaches it", "only B reaches it"),
        rows=tuple(
            (str(f.threshold), len(f.only_a), len(f.only_b)) for f in bench.differences.flips
        ),
    )


def _changes_grid(bench: PairedComparison) -> Grid:
    rows: list[tuple[Cell, ...]] = [
        (
            f"{change.video}: {change.query}",
            *(_spans(spans) for spans in (change.truth, change.answer_a, change.answer_b)),
            *(change.iou_a, change.iou_b),
        )
        for change in bench.differences.most_changed
    ]
    return Grid(
        title="most changed",
        headings=("query", "truth, s", "A, s", "B, s", "IoU A", "IoU B"),
        rows=tuple(rows),
    )


def _spans(spans: Sequence[Span]) -> str:
    shown = ", ".join(f"{start:.1f} to {end:.1f}" for start, end in spans[:SHOWN])
    return (shown or "not readable") + (", …" if len(spans) > SHOWN else "")
