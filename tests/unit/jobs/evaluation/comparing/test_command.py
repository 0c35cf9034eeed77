"""Two runs over the same queries: what differs, by how much, and when nothing can be said."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from common.errors import ConfigError
from jobs.evaluation.comparing.command import Comparisons, command, compare_runs, grids_of
from jobs.evaluation.comparing.runs import read_run
from jobs.evaluation.scoring.intervals import paired_difference
from jobs.evaluation.showing.grids import rich_table

REFERENCE = Path(__file__).resolve().parents[6] / "shared/reference"


def line(number: int, *, end_s: float | None = 12.0, **changed: Any) -> dict[str, Any]:
    """An answer from 2 to `end_s` where the truth is 2 to 12; None is a failed video."""
    said = None if end_s is None else f"<answer> 2 to {end_s} </answer>"
    return {
        "id": f"q{number}",
        "video": f"{number}.mp4",
        "query": f"query {number}",
        "gt": [[2, 12]],
        "duration_s": 30,
        "mode": "answer",
        "text": said,
        "failure": "video" if said is None else None,
        "fingerprint": "f",
    } | changed


def write(path: Path, lines: Sequence[dict[str, Any]], *, cut: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in lines) + cut, encoding="utf-8")
    return path


def run(folder: Path, ends: Sequence[float | None], **changed: Any) -> Path:
    """A benchmark's folder with one answer for each end."""
    lines = [line(number, end_s=end, **changed) for number, end in enumerate(ends)]
    write(folder / "predictions.jsonl", lines)
    return folder


def printed(found: Comparisons) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    for grid in grids_of(found):
        console.print(rich_table(grid))
    return console.export_text()


def test_answers_about_highlights_are_refused(tmp_path: Path) -> None:
    moments = run(tmp_path / "a", [12.0])
    highlights = run(tmp_path / "b", [12.0], gt_ratings={1: [4, 4, 4]})
    with pytest.raises(ValueError, match=r"b: found answers about highlights, wanted moments"):
        compare_runs(moments, highlights)


def test_differences_are_paired_by_query_not_by_line(tmp_path: Path) -> None:
    ends = [12.0, 8.0, 7.0, 5.0] * 5
    first = run(tmp_path / "a", ends)
    lines = [line(number, end_s=12.0) for number in reversed(range(20))]
    second = write(tmp_path / "b.jsonl", lines)
    (bench,) = compare_runs(first, second).benches
    assert bench.differences.queries == 20
    miou = bench.differences.figures[0]
    assert (miou.figure, miou.b) == ("mIoU", 100.0)
    assert miou.a == pytest.approx(100 * (1 + 0.6 + 0.5 + 0.3) / 4)
    gaps = paired_difference([1.0, 0.6, 0.5, 0.3] * 5, second=[1.0] * 20)
    assert miou.b_minus_a.mean == pytest.approx(100 * gaps.mean)
    assert miou.b_minus_a.low == pytest.approx(100 * gaps.low)
    assert miou.b_minus_a.high == pytest.approx(100 * gaps.high)
    assert miou.verdict == "B is better"


def test_an_interval_that_holds_zero_is_a_tie(tmp_path: Path) -> None:
    first = run(tmp_path / "a", [12.0, 7.0] * 10)
    second = run(tmp_path / "b", [7.0, 12.0] * 10)
    (bench,) = compare_runs(first, second).benches
    assert {difference.verdict for difference in bench.differences.figures} == {"tie"}


def test_the_worse_run_is_named_whichever_comes_first(tmp_path: Path) -> None:
    good, bad = run(tmp_path / "good", [12.0] * 20), run(tmp_path / "bad", [4.0] * 20)
    (bench,) = compare_runs(good, bad).benches
    assert bench.differences.figures[0].verdict == "A is better"
    (bench,) = compare_runs(bad, good).benches
    assert bench.differences.figures[0].verdict == "B is better"


def test_few_queries_prove_nothing(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", [4.0] * 3), run(tmp_path / "b", [12.0] * 3)
    (bench,) = compare_runs(first, second).benches
    assert {difference.verdict for difference in bench.differences.figures} == {"too few queries"}


def test_flips_are_counted_in_each_direction(tmp_path: Path) -> None:
    first = run(tmp_path / "a", [12.0, 12.0, 6.0, 7.0])
    second = run(tmp_path / "b", [12.0, 6.0, 7.0, 12.0])
    (bench,) = compare_runs(first, second).benches
    flips = {one.threshold: (one.only_a, one.only_b) for one in bench.differences.flips}
    assert flips == {
        0.3: ((), ()),
        0.5: (("q1",), ("q2",)),
        0.7: (("q1",), ("q3",)),
    }


def test_the_most_changed_come_first_with_both_answers_and_the_truth(tmp_path: Path) -> None:
    first = run(tmp_path / "a", [12.0, 12.0, 6.0])
    second = run(tmp_path / "b", [11.0, 3.0, 6.0])
    (bench,) = compare_runs(first, second).benches
    assert [change.id for change in bench.differences.most_changed] == ["q1", "q0"]
    change = bench.differences.most_changed[0]
    assert (change.truth, change.answer_a, change.answer_b) == (
        ((2.0, 12.0),),
        ((2.0, 12.0),),
        ((2.0, 3.0),),
    )
    assert change.iou_a == 1.0
    assert change.iou_b == pytest.approx(0.1)


def test_failed_queries_are_left_out_and_counted(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", [12.0, None, 12.0]), run(tmp_path / "b", [12.0, 12.0, None])
    found = compare_runs(first, second)
    assert found.benches[0].differences.queries == 1
    assert found.benches[0].left_out.failed == 2
    assert "2 failed in one" in printed(found)


def test_a_protocol_that_counts_failures_compares_them(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", [12.0, None]), run(tmp_path / "b", [12.0, 12.0])
    (bench,) = compare_runs(first, second, protocol="timelens").benches
    assert bench.differences.queries == 2
    assert bench.differences.figures[0].a == 50.0


def test_different_questions_are_refused_and_named(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [line(0), line(1), line(2)])
    second = write(tmp_path / "b.jsonl", [line(0), line(2, query="another"), line(7)])
    with pytest.raises(ValueError, match="different questions") as caught:
        compare_runs(first, second)
    message = str(caught.value)
    assert f"1 only in {first} ('q1')" in message
    assert f"1 only in {second} ('q7')" in message
    assert "1 with another query or truth ('q2': 'query 2'" in message
    assert "--common" in message


def test_another_truth_is_another_question(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [line(0)])
    second = write(tmp_path / "b.jsonl", [line(0, gt=[[2, 13]])])
    with pytest.raises(ValueError, match=r"1 with another query or truth .*13\.0"):
        compare_runs(first, second)


def test_common_compares_the_intersection_and_counts_the_rest(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [line(0), line(1), line(2)])
    second = write(tmp_path / "b.jsonl", [line(0), line(2, query="another"), line(7), line(8)])
    found = compare_runs(first, second, common=True)
    (bench,) = found.benches
    assert bench.differences.queries == 1
    assert bench.left_out.model_dump() == {
        "only_a": 1,
        "only_b": 2,
        "asked_differently": 1,
        "failed": 0,
        "cut_lines": 0,
    }
    assert "1 only in A, 2 only in B, 1 asked differently" in printed(found)


def test_runs_that_share_nothing_are_refused_even_with_common(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [line(0)])
    second = write(tmp_path / "b.jsonl", [line(1)])
    with pytest.raises(ValueError, match="found no question in both"):
        compare_runs(first, second, common=True)


def test_runs_without_a_query_answered_in_both_are_refused(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", [None, 12.0]), run(tmp_path / "b", [12.0, None])
    with pytest.raises(ValueError, match="found no query that was answered in both"):
        compare_runs(first, second)


def test_a_cut_line_is_said_when_it_makes_the_runs_differ(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [line(0), line(1)])
    second = write(tmp_path / "b.jsonl", [line(0)], cut=json.dumps(line(1))[:40])
    with pytest.raises(ValueError, match=f"last line of {second} was cut"):
        compare_runs(first, second)
    assert "1 lines cut" in printed(compare_runs(first, second, common=True))


def test_duplicate_ids_are_refused_within_a_file_and_across_shards(tmp_path: Path) -> None:
    twice = write(tmp_path / "a.jsonl", [line(0), line(0)])
    with pytest.raises(ValueError, match="found 'q0' twice"):
        read_run(twice)
    folder = tmp_path / "run"
    write(folder / "predictions-1-of-2.jsonl", [line(0)])
    write(folder / "predictions-2-of-2.jsonl", [line(0)])
    with pytest.raises(ValueError, match="answers too"):
        read_run(folder)


def test_empty_runs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"found no predictions\*\.jsonl"):
        read_run(tmp_path / "nothing")
    with pytest.raises(ValueError, match="found no predictions, wanted at least one"):
        read_run(write(tmp_path / "empty/predictions.jsonl", []).parent)
    with pytest.raises(ValueError, match="found no predictions, wanted at least one"):
        read_run(write(tmp_path / "empty.jsonl", []))


def test_shards_are_one_run(tmp_path: Path) -> None:
    write(tmp_path / "a/predictions-1-of-3.jsonl", [line(0)])
    write(tmp_path / "a/predictions-2-of-3.jsonl", [])
    write(tmp_path / "a/predictions-3-of-3.jsonl", [line(1)])
    (bench,) = compare_runs(tmp_path / "a", run(tmp_path / "b", [12.0, 12.0])).benches
    assert bench.differences.queries == 2


def test_whole_runs_are_compared_benchmark_by_benchmark(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for bench in ("charades-sta", "tvgbench"):
            run(tmp_path / name / bench, [12.0, 8.0])
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    assert [bench.bench for bench in found.benches] == ["charades-sta", "tvgbench"]
    (tmp_path / "b/tvgbench/predictions.jsonl").rename(tmp_path / "elsewhere.jsonl")
    run(tmp_path / "b/rows", [12.0])
    with pytest.raises(ValueError, match="--common compares those of both"):
        compare_runs(tmp_path / "a", tmp_path / "b")
    found = compare_runs(tmp_path / "a", tmp_path / "b", common=True)
    assert [bench.bench for bench in found.benches] == ["charades-sta"]


def test_an_oracle_is_labelled(tmp_path: Path) -> None:
    first = run(tmp_path / "a", [12.0, 8.0])
    second = run(tmp_path / "b", [12.0, 12.0], mode="mixed_oracle")
    found = compare_runs(first, second)
    assert found.benches[0].mode_b == "mixed_oracle"
    (row,) = [row for row in next(iter(grids_of(found))).rows if row[0] == "B"]
    assert row == ("B", str(second), "mixed oracle (uses the truth)")
    assert "mixed oracle (uses the truth)" in printed(found)


def test_hostile_queries_are_printed_as_text(tmp_path: Path) -> None:
    hostile = "[red]x[/red] [/nothing] \x1b[2J"
    first = run(tmp_path / "a", [12.0], query=hostile)
    text = printed(compare_runs(first, run(tmp_path / "b", [6.0], query=hostile)))
    assert "[red]x[/red] [/nothing]" in text
    assert "\x1b" not in text


def test_unknown_protocols_are_refused(tmp_path: Path) -> None:
    first = run(tmp_path / "a", [12.0])
    with pytest.raises(ValueError, match="--protocol: found 'nearly', wanted one of exact"):
        compare_runs(first, first, protocol="nearly")


def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(command)
    return made


def test_the_command_prints_and_writes_json(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", [8.0] * 12), run(tmp_path / "b", [12.0] * 12)
    output = tmp_path / "out/compare.json"
    result = CliRunner().invoke(app(), [str(first), str(second), "--json", str(output)])
    assert result.exit_code == 0, result.output
    assert "B is better" in result.output
    found = Comparisons.model_validate_json(output.read_bytes())
    assert found.benches[0].differences.figures[0].b_minus_a.mean == pytest.approx(40)
    assert found.benches[0].differences.flips[2].only_b == tuple(
        f"q{number}" for number in range(12)
    )


def test_a_missing_run_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: found nothing there, wanted the folder"):
        command(tmp_path / "nowhere", tmp_path / "nowhere", protocol="exact")


@pytest.mark.skipif(not REFERENCE.exists(), reason="../shared/reference is not there")
def test_formats_without_truth_are_paired_through_the_annotations() -> None:
    predictions, truth = (
        REFERENCE / name for name in ("qvh60_momentdetr_preds.jsonl", "qvh60_gt.jsonl")
    )
    with pytest.raises(ValueError, match="--gt"):
        compare_runs(predictions, predictions)
    (bench,) = compare_runs(predictions, predictions, gt=truth).benches
    assert bench.differences.queries == 60
    assert {difference.verdict for difference in bench.differences.figures} == {"tie"}
    assert bench.differences.most_changed == ()
