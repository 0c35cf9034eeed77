"""`tempsamp data inspect`: what it counts and measures, against numbers taken by hand."""

import functools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError
from common.messages import Highlight
from common.rows import UnusableRowError
from jobs.data.annotations.records import Annotation, BadRecord
from jobs.data.annotations.trainer_rows import RowRules, make_row
from jobs.data.inspection.columns import DENSITY_CELLS
from jobs.data.inspection.command import command
from jobs.data.inspection.numbers import MAX_BINS, Histogram, Quantiles, even_edges, histogram
from jobs.data.inspection.page import write_page
from jobs.data.inspection.rows import Inspection, NoRecordError, inspect
from tests.fixtures.pages.commands import invoked

TIMELENS = Path("../shared/data/timelens/timelens100k_over180.derived.jsonl")
ATTACK = "<script>alert(1)</script>"


def asked(
    number: int, video: str, query: str, *spans: tuple[float, float], duration_s: float
) -> Annotation:
    return Annotation(
        position=f"line {number}", video=video, query=query, spans=spans, duration_s=duration_s
    )


RECORDS = (
    asked(1, "a.mp4", "cup", (2, 4), duration_s=10),
    asked(2, "a.mp4", "cup", (2, 4), duration_s=10),
    BadRecord("line 3", "bad JSON", "expected value"),
    asked(4, "a.mp4", "door", (0, 1), (3, 6), duration_s=10),
    asked(5, "b.mp4", "dog", (15, 25), duration_s=20),
    asked(6, "b.mp4", "cat", (10, 20.5), duration_s=20),
    asked(7, "b.mp4", "owl", (5, 5), duration_s=20),
    Annotation(
        position="line 8",
        video="c.mp4",
        query="goal",
        highlights=(Highlight(time_s=2, score=3),),
        difficulty=0.25,
    ),
)


@pytest.fixture(scope="module")
def inspection() -> Inspection:
    return inspect(RECORDS)


def row(inspection: Inspection, name: str) -> Quantiles:
    return next(quantiles for quantiles in inspection.quantiles if quantiles.name == name)


def bins(inspection: Inspection, title: str) -> Histogram:
    return next(one for one in inspection.histograms if one.title == title)


def rows_file(folder: Path, *lines: dict[str, object] | str) -> Path:
    path = folder / "rows.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def trainer_row(query: str, span: tuple[float, float]) -> dict[str, object]:
    return {"query": query, "videos": ["a.mp4"], "spans": [span], "duration": 10.0}


run = functools.partial(invoked, command)


def test_records_videos_spans_and_targets_are_counted(inspection: Inspection) -> None:
    assert inspection.counts == [
        ("records", 7),
        ("unreadable records", 1),
        ("videos", 3),
        ("spans", 7),
        ("records with one span", 5),
        ("records with several spans", 1),
        ("records with highlights without spans", 1),
        ("records with saliency scores", 1),
    ]


def test_every_problem_is_counted_with_its_first_place(inspection: Inspection) -> None:
    found = {problem.reason: problem for problem in inspection.problems}
    assert {(p.reason, p.count, p.total, p.first) for p in found.values()} == {
        ("bad JSON", 1, "8 records", "line 3"),
        ("span past the end", 1, "7 spans", "line 5"),
        ("span up to 1 s past the end", 1, "7 spans", "line 6"),
        ("span empty", 1, "7 spans", "line 7"),
        ("same video and query as an earlier record", 1, "7 records", "record 2"),
    }


def test_quantiles_equal_those_taken_by_hand(inspection: Inspection) -> None:
    lengths = row(inspection, "span length, s")  # 1, 2, 2, 3, 10, 10.5: the empty one has none
    assert (lengths.count, lengths.over) == (6, "spans")
    assert (lengths.low, lengths.p10, lengths.p50) == (1, 1.5, 2.5)
    assert (lengths.p90, lengths.high, lengths.mean) == (10.25, 10.5, 4.75)
    durations = row(inspection, "duration, s")
    assert (durations.count, durations.low, durations.high) == (2, 10, 20)
    coverage = row(inspection, "coverage")  # .2, .2, .4, .5, .525
    assert (coverage.count, coverage.p50) == (5, 0.4)
    middle = row(inspection, "relative middle")
    assert (middle.low, middle.high) == (0.05, 1.0)
    assert row(inspection, "queries per video").mean == pytest.approx(7 / 3)
    assert row(inspection, "difficulty").mean == 0.25


def test_gt_len_and_coverage_fall_into_the_published_buckets(inspection: Inspection) -> None:
    lengths = bins(inspection, "Spans of a record together")  # 2, 2, 4, 10, 10.5
    assert lengths.edges == (0, 2, 5, 10, 20, math.inf)
    assert lengths.counts == (0, 3, 0, 2, 0)
    assert lengths.labels[-2:] == ["10 to 20", "20 and more"]
    coverage = bins(inspection, "Coverage")
    assert coverage.edges == (0, 0.05, 0.1, 0.2, 0.4, math.inf)
    assert coverage.counts == (0, 0, 0, 2, 3)


def test_map_of_starts_and_ends_keeps_every_span_of_a_known_duration(
    inspection: Inspection,
) -> None:
    assert inspection.density.sum() == 6
    assert inspection.density[int(0.2 * DENSITY_CELLS), int(0.4 * DENSITY_CELLS)] == 2
    assert inspection.density[:, -1].sum() == 2, "spans past the end are drawn at the edge"


def test_durations_that_differ_for_one_video_are_a_problem() -> None:
    records = [
        asked(n, "a", f"q{n}", (0, 1), duration_s=duration)
        for n, duration in ((1, 10.0), (2, 10.05), (3, 12.0))
    ]
    assert [p.reason for p in inspect(records).problems] == ["durations of one video differ"]
    assert inspect(records[:2]).problems == ()


def test_questions_about_parts_of_a_file_do_not_contradict_its_duration() -> None:
    part = Annotation(
        position="[0]", video="a", query="q", spans=((0, 1),), duration_s=5, window=(10, 15)
    )
    found = inspect([part, asked(2, "a", "r", (0, 1), duration_s=60)])
    assert found.problems == ()
    assert ("records about a window of their file", 1) in found.counts
    assert row(found, "duration, s").low == 60


def test_the_same_question_about_two_windows_is_no_repeat() -> None:
    parts = [
        Annotation(
            position=str(start), video="a", query="q", spans=((0, 1),), window=(start, start + 5)
        )
        for start in (10.0, 20.0)
    ]
    assert inspect(parts).problems == ()


def test_window_that_cannot_be_is_a_problem() -> None:
    part = Annotation(position="[0]", video="a", query="q", spans=((0, 1),), window=(15, 10))
    assert [p.reason for p in inspect([part]).problems] == ["bad window"]


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        ((math.nan, 2.0), "span not finite"),
        ((-1.0, 2.0), "span negative"),
        ((3.0, 2.0), "span reversed"),
        ((2.0, 2.0), "span empty"),
        ((10.0, 10.5), "span past the end"),
        ((2.0, 11.5), "span past the end"),
    ],
)
def test_faults_of_spans_are_named_as_conversion_names_them(
    span: tuple[float, float], reason: str
) -> None:
    record = asked(1, "a.mp4", "q", span, duration_s=10.0)
    assert [problem.reason for problem in inspect([record]).problems] == [reason]
    with pytest.raises(UnusableRowError) as rejected:
        make_row(record, rules=RowRules())
    assert rejected.value.reason == reason


def test_what_conversion_takes_is_no_problem_and_what_it_cuts_is_named() -> None:
    whole, late = (asked(1, "a.mp4", "q", (2, end), duration_s=10.0) for end in (10.0, 11.0))
    assert inspect([whole]).problems == ()
    assert [p.reason for p in inspect([late]).problems] == ["span up to 1 s past the end"]
    assert make_row(late, rules=RowRules()).clipped


@pytest.mark.parametrize("duration_s", [-3.0, 0.0, math.nan, math.inf])
def test_impossible_duration_is_a_problem_and_measures_nothing(duration_s: float) -> None:
    found = inspect([asked(1, "a", "q", (1, 2), duration_s=duration_s)])
    assert [problem.reason for problem in found.problems] == ["bad duration"]
    assert {quantiles.name for quantiles in found.quantiles} == {
        "queries per video",
        "span length, s",
    }


@pytest.mark.parametrize("difficulty", [-0.1, 50.0, math.nan])
def test_impossible_difficulty_is_a_problem_and_measures_nothing(difficulty: float) -> None:
    record = Annotation(position="line 1", video="a", query="q", difficulty=difficulty)
    found = inspect([record])
    assert [problem.reason for problem in found.problems] == ["bad difficulty"]
    assert not found.histograms


def test_record_without_a_question_is_a_problem() -> None:
    found = inspect([Annotation(position="line 1", video="a", query="")])
    assert [problem.reason for problem in found.problems] == ["no query"]


def test_highlight_after_its_video_is_a_problem() -> None:
    late = Annotation(
        position="line 1",
        video="a",
        query="q",
        duration_s=10,
        highlights=(Highlight(time_s=12, score=1),),
    )
    assert [problem.reason for problem in inspect([late]).problems] == ["highlight past the end"]


def test_file_without_a_usable_record_says_why() -> None:
    with pytest.raises(NoRecordError, match="the file holds none"):
        inspect([])
    with pytest.raises(NoRecordError, match="1 x bad JSON"):
        inspect([BadRecord("line 1", "bad JSON", "")])


@pytest.mark.parametrize("seed", range(5))
def test_no_value_falls_out_of_a_histogram(seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(mean=seed, sigma=2.0, size=300)
    drawn = histogram("t", values, unit="s", over="spans")
    assert sum(drawn.counts) == values.size
    assert math.isinf(drawn.edges[-1]), "the longest tail has a bin of its own"


def test_edges_are_round_and_few() -> None:
    assert even_edges(np.array([0.0, 16.0])) == tuple(range(17))
    assert even_edges(np.array([7.0])) == (7.0, 7.5)
    assert len(even_edges(np.linspace(121.0, 149.9, 50))) <= MAX_BINS + 3


def test_terminal_shows_counts_problems_and_distributions(tmp_path: Path) -> None:
    file = rows_file(
        tmp_path, trainer_row("cup", (2, 4)), trainer_row("dog", (5, 15)), '{"query": "broken'
    )
    result = run(file)
    assert result.exit_code == 0, result.output
    for line in (
        r"records +2\b",
        r"unreadable records +1\b",
        r"span past the end +1 +2 spans +line 2",
        r"span length, s +2 +2 +2\.8 +6 +9\.2 +10\.0 +6",
        r"2 to 5 +1 .* 50\.0%",
    ):
        assert re.search(line, result.output), line


def test_file_of_bad_records_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = rows_file(tmp_path, {"query": "cup", "videos": []}, {"query": "dog", "videos": 3})
    error = run(file, "--schema", "rows").exception
    assert isinstance(error, ConfigError)
    assert str(error).startswith(f"{file}: found no usable record: 2 x")


@pytest.mark.parametrize("content", ["", "a file of something else\n", '{"key": 1}\n'])
def test_file_of_no_known_schema_is_refused_with_what_was_found(
    tmp_path: Path, content: str
) -> None:
    file = tmp_path / "unknown"
    file.write_text(content, encoding="utf-8")
    error = run(file).exception
    assert isinstance(error, ConfigError)
    assert "found" in str(error)
    assert "wanted one of the schemas" in str(error)


class Loaded(HTMLParser):
    """Everything that a page loads or runs."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in self.LOADING]
        assert not any(name.startswith("on") for name, _ in attrs)

    LOADING = frozenset({"src", "srcset", "href", "xlink:href", "data", "action"})


def page_of(inspection: Inspection, folder: Path, *, source: str = "rows.jsonl") -> str:
    path = folder / "deep" / "page.html"
    write_page(path, source=source, inspection=inspection)
    return path.read_text(encoding="utf-8")


def test_page_loads_nothing_and_has_every_table_and_chart(
    inspection: Inspection, tmp_path: Path
) -> None:
    page = page_of(inspection, tmp_path)
    loaded = Loaded()
    loaded.feed(page)
    assert all(address.startswith("#") for address in loaded.addresses)
    assert not {"script", "link", "iframe", "img", "object"} & set(loaded.tags)
    assert not re.search(r"@import|url\((?!#)|https?://", page)
    assert loaded.tags.count("svg") == len(inspection.histograms) + 1
    for text in ("span past the end", "several spans", "line 5", "Start against end", "10.2<"):
        assert text in page


def test_what_a_file_says_cannot_run_in_the_page(tmp_path: Path) -> None:
    hostile = inspect(
        [
            asked(1, f'"{ATTACK}.mp4', ATTACK, (2, 4), (1, 0), duration_s=10),
            BadRecord(f"line {ATTACK}", ATTACK, ATTACK),
        ]
    )
    page = page_of(hostile, tmp_path, source=ATTACK)
    loaded = Loaded()
    loaded.feed(page)
    assert "script" not in loaded.tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_file_without_targets_has_a_page_too(tmp_path: Path) -> None:
    page = page_of(inspect([asked(1, "a.mp4", "cup", duration_s=10)]), tmp_path)
    assert "records with no target" in page
    assert "Start against end" not in page


@pytest.mark.skipif(not TIMELENS.exists(), reason=f"{TIMELENS} is not there")
def test_real_timelens_file_has_no_problem(tmp_path: Path) -> None:
    result = run(TIMELENS, "--html", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert re.search(r"records +5,679\b", result.output)
    assert re.search(r"videos +1,137\b", result.output)
    assert "Problems" not in result.output
