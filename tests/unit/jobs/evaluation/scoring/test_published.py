"""Published rows are complete, in percent, and say where they come from."""

from itertools import pairwise

from jobs.evaluation.scoring.published import PUBLISHED, rows_for
from jobs.evaluation.scoring.score import BENCHES


def test_every_row_is_of_a_known_benchmark_and_has_a_source() -> None:
    assert {row.bench for row in PUBLISHED} <= set(BENCHES)
    assert all(row.source and row.figures for row in PUBLISHED)


def test_figures_are_percentages_and_recall_falls_with_the_threshold() -> None:
    for row in PUBLISHED:
        assert all(0 < value < 100 for value in row.figures.values())
        recalls = [value for name, value in row.figures.items() if name.startswith("R1@")]
        assert all(lower > higher for lower, higher in pairwise(recalls)), row


def test_results_figure_has_eight_models_on_each_of_its_benchmarks() -> None:
    for bench in ("charades-timelens", "activitynet-timelens", "qvhighlights-timelens"):
        assert len(rows_for(bench)) == 8
    ours = next(row for row in rows_for("charades-timelens") if row.model == "TempSamp-R1-4B")
    assert ours.figures == {"R1@0.3": 79.5, "R1@0.5": 65.4, "R1@0.7": 37.3, "mIoU": 57.1}


def test_oracle_rows_say_so() -> None:
    mixed = [row for row in PUBLISHED if "mixed (" in row.model]

    assert len(mixed) == 3
    assert all("oracle" in row.model for row in mixed)


def test_benchmark_without_published_rows_has_none() -> None:
    assert rows_for("tvgbench") == ()
