"""Tables of scored predictions: nothing measured is confused with what is published."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from jobs.evaluation.scoring.intervals import Interval
from jobs.evaluation.scoring.modes import ORACLE_LABEL
from jobs.evaluation.scoring.predictions import AnswerMode
from jobs.evaluation.scoring.score import Score, score_file
from jobs.evaluation.showing.grids import (
    Grid,
    latex,
    latex_escaped,
    markdown,
    markdown_escaped,
    rich_table,
)
from jobs.evaluation.showing.tables import (
    CSV_HEADINGS,
    Scored,
    csv_of,
    grids_of,
    overview,
    tables_of,
    write_tables,
)

REFERENCE = Path(__file__).resolve().parents[6] / "shared/reference"

ANSWERS = ("<answer> 2.4 to 6.4 </answer>", "<answer> 0 to 10 </answer>", "no idea", None)
"""IoU 4/4.4, 0.4, none, none; truth is 2 to 6 of 20 s."""


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Four queries: two readable answers, one that is not, one video that failed."""
    path = tmp_path / "predictions.jsonl"
    lines = [
        {
            "id": f"q{number}",
            "video": "a.mp4",
            "query": f"query {number}",
            "gt": [[2, 6]],
            "duration_s": 20,
            "mode": "answer",
            "text": answer,
            "failure": None if answer else "video",
            "error": None if answer else "no such file",
            "fingerprint": "f",
        }
        for number, answer in enumerate(ANSWERS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def score(predictions: Path) -> Score:
    return score_file(predictions, bench="charades-timelens")


def printed(score: Score, mode: AnswerMode | None = None) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    for table in tables_of(score, model="tiny", mode=mode):
        console.print(table)
    return console.export_text()


def csv_lines(run: list[Scored]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_of(run))))


def test_exact_stands_first_and_official_beside_it(score: Score) -> None:
    main = next(iter(grids_of(Scored(score=score, model="tiny", mode="answer"))))
    assert [row[1] for row in main.rows[:2]] == ["exact", "timelens (official)"]
    exact = dict(zip(main.headings, main.rows[0], strict=True))
    assert exact["model"] == "tiny, answer"
    assert exact["n"] == 3
    miou = exact["mIoU"]
    assert isinstance(miou, Interval)
    assert miou.mean == pytest.approx(100 * (3.6 / 4.4 + 0.4) / 3)
    assert miou.low <= miou.mean <= miou.high


def test_failures_are_shown_by_kind_and_the_parse_rate_is_of_answers(score: Score) -> None:
    main = next(iter(grids_of(Scored(score=score))))
    exact = dict(zip(main.headings, main.rows[0], strict=True))
    assert exact["failures"] == "1 parse, 1 video"
    assert exact["read, %"] == pytest.approx(100 * 2 / 3)


def test_every_published_row_is_marked_and_names_its_source(score: Score) -> None:
    main = next(iter(grids_of(Scored(score=score))))
    rows = {str(row[0]): str(row[1]) for row in main.rows}
    assert len(score.published) == 8
    for published in score.published:
        mark, number = rows[published.model].split()
        assert mark == "published"
        assert f"{number} {published.source}." in main.note
    assert "not measured here" in main.note


def test_an_oracle_is_labelled_in_every_title_and_row(score: Score, tmp_path: Path) -> None:
    oracle = Scored(score=score, model="tiny", mode="mixed_oracle")
    for grid in (overview([oracle]), *grids_of(oracle)):
        assert ORACLE_LABEL in grid.title
    assert {line["model"] for line in csv_lines([oracle]) if line["kind"] == "measured"} == {
        f"tiny, mixed {ORACLE_LABEL}"
    }
    for path in write_tables(tmp_path, run=[oracle]):
        assert ORACLE_LABEL in path.read_text(encoding="utf-8")
    assert ORACLE_LABEL in printed(score, mode="mixed_oracle")
    assert ORACLE_LABEL not in printed(score, mode="mixed_selected")


def test_the_terminal_shows_breakdowns_and_counts(score: Score) -> None:
    text = printed(score)
    for title in ("by span length", "by position", "by duration", "what was counted"):
        assert title in text
    assert "2 to 5 s" in text


def test_csv_holds_unrounded_figures_with_their_intervals(score: Score) -> None:
    lines = csv_lines([Scored(score=score, model="tiny", mode="think")])
    assert list(lines[0]) == list(CSV_HEADINGS)
    (miou,) = [
        line
        for line in lines
        if line["protocol"] == "exact" and line["figure"] == "mIoU" and not line["group"]
    ]
    found = score.protocols["exact"].miou
    assert found is not None
    assert (float(miou["value"]), float(miou["low"]), float(miou["high"])) == (
        found.mean,
        found.low,
        found.high,
    )
    assert sum(line["kind"] == "published" for line in lines) == sum(
        len(row.figures) for row in score.published
    )
    (length,) = [
        line
        for line in lines
        if line["group"] == "span length: 2 to 5 s" and line["figure"] == "mIoU"
    ]
    assert length["n"] == "3"
    assert float(length["value"]) == pytest.approx(found.mean)


def test_several_benchmarks_are_told_apart(score: Score) -> None:
    run = [Scored(score=score), Scored(score=score.model_copy(update={"bench": "rows"}))]
    grid = overview(run)
    assert [row[0] for row in grid.rows] == ["charades-timelens"] * 2 + ["rows"] * 2
    assert grid.sections == {1, 3}


def test_a_run_without_benchmarks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no scored benchmark"):
        write_tables(tmp_path, run=[])


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("50% & more_of #1 $", r"50\% \& more\_of \#1 \$"),
        (r"a\b{c}~^", r"a\textbackslash{}b\{c\}\textasciitilde{}\textasciicircum{}"),
        ("<b>|", r"\textless{}b\textgreater{}\textbar{}"),
        ("[x]", "{[}x{]}"),
        ("two\nlines", "two lines"),
    ],
)
def test_latex_sets_text_as_it_is(text: str, escaped: str) -> None:
    assert latex_escaped(text) == escaped


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("<script>", r"\<script\>"),
        ("[x](y) *z* `c` _d_", r"\[x\](y) \*z\* \`c\` \_d\_"),
        ("a\\|b", r"a\\\|b"),
        ("one\r\ntwo", "one  two"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, escaped: str) -> None:
    assert markdown_escaped(text) == escaped


HOSTILE = "x|y & [red]z[/red] \\input{/etc/passwd} <script>\x1b[31m\n% end"


def hostile_grid() -> Grid:
    return Grid(title=HOSTILE, headings=("a", "b"), rows=((HOSTILE, 1), (HOSTILE, None)))


def test_hostile_cells_do_not_break_a_markdown_table() -> None:
    lines = [line for line in markdown([hostile_grid()]).splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}


def test_hostile_cells_do_not_break_a_latex_table() -> None:
    text = latex([hostile_grid()]).partition("\n")[2]
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(rows) == 3
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {1}
    assert r"\input" not in text
    assert not re.search(r"(?<!\\)%", text)


def test_a_narrow_terminal_breaks_names_and_cuts_nothing() -> None:
    console = Console(width=20, file=io.StringIO(), record=True)
    console.print(rich_table(Grid(title="t", headings=("model", "n"), rows=(("x" * 40, 1),))))
    assert console.export_text().count("x") == 40


def test_a_latex_table_is_no_wider_than_a_line_and_names_its_packages() -> None:
    grid = Grid(title="title", headings=("a",), rows=((1,),), note="50 % said")
    head, *lines = latex([grid]).splitlines()
    assert head.startswith("%")
    assert r"\usepackage{booktabs}" in head
    assert r"\usepackage{adjustbox}" in head
    ends = [
        lines.index(rf"\{side}{{tabular}}" + more) for side, more in (("begin", "{r}"), ("end", ""))
    ]
    assert lines[ends[0] - 1] == r"\begin{adjustbox}{max width=\linewidth}"
    assert lines[ends[1] + 1] == r"\end{adjustbox}"
    assert r"\caption{title}" in lines
    assert lines[-2] == r"\par\medskip\parbox{\linewidth}{\footnotesize 50 \% said}"


def test_hostile_cells_reach_the_terminal_as_text() -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(rich_table(hostile_grid()))
    text = console.export_text()
    assert "[red]z[/red]" in text
    assert "\x1b" not in text


@pytest.mark.skipif(not REFERENCE.exists(), reason="../shared/reference is not there")
def test_qvhighlights_shows_moments_and_highlights_beside_the_field() -> None:
    score = score_file(
        REFERENCE / "qvh60_momentdetr_preds.jsonl",
        bench="qvhighlights",
        gt=REFERENCE / "qvh60_gt.jsonl",
    )
    golden = json.loads((REFERENCE / "qvh60_momentdetr.metrics.json").read_text())["brief"]
    main, highlights, *_ = grids_of(Scored(score=score))
    official = {row[0]: row[2] for row in highlights.rows}
    assert official == golden
    field = dict(zip(highlights.headings, highlights.rows[-1], strict=True))
    assert field["published: TimeChat"] == 37.9
    assert "TimeChat: arXiv 2509.18056v2" in highlights.note
    assert main.rows[1][1] == "moment_detr (official)"
    assert main.rows[1][4:6] == (golden["MR-full-R1@0.5"], golden["MR-full-R1@0.7"])
