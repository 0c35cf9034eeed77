"""Conversion end to end: files in, files out, the table, the exit code."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, OutputError
from common.messages import SpansTarget
from common.rows import TrainerRow
from jobs.data.convert import Conversion, RejectedRecordError, convert, rejected_path
from jobs.data.convert_command import command
from tests.fixtures.pages.commands import ended
from tests.fixtures.servers.places import no_room

CASES = Path(__file__).resolve().parents[5] / "shared" / "data" / "cases"

run = functools.partial(ended, command)


def filter_row(number: int, **changed: Any) -> dict[str, Any]:
    row = {
        "video_path": f"datasets/{number}.mp4",
        "duration": 100.0,
        "query": f"query {number}",
        "span": [10.0, 10.0 + number % 37 + 1],
        "iou": (number % 100) / 100,
    }
    return row | changed


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "annotations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[TrainerRow]:
    return [TrainerRow.parse(line) for line in path.read_text().splitlines()]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return written(tmp_path, [filter_row(number) for number in range(400)])


def test_rows_are_written_and_counted(many: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "rows.jsonl"
    result = run("--input", many, "--output", output, "--video-root", "/data")
    assert result.exit_code == 0
    assert "rows out" in result.output
    rows = rows_of(output)
    assert len(rows) == 400
    assert rows[7].videos == ["/data/7.mp4"]
    assert rows[7].target == SpansTarget(spans=((10.0, 18.0),))
    assert rows[7].difficulty == 0.93
    assert not rejected_path(output).exists()


def test_converting_an_output_again_changes_nothing_but_the_root(
    many: Path, tmp_path: Path
) -> None:
    once, twice, moved = (tmp_path / name for name in ("once", "twice", "moved"))
    run("-i", many, "-o", once, "--video-root", "clips")
    run("-i", once, "-o", twice, "--video-root", "clips")
    assert once.read_bytes() == twice.read_bytes()
    run("-i", once, "-o", moved, "--strip-prefix", "clips", "--video-root", "/new")
    assert moved.read_text().replace('"/new/', '"clips/') == once.read_text()


def test_bad_records_are_listed_and_counted_by_reason(tmp_path: Path) -> None:
    source = written(tmp_path, [filter_row(0), filter_row(1, span=[5.0, 1.0]), {"x": 1}])
    output = tmp_path / "rows.jsonl"
    result = run("-i", source, "-o", output)
    assert result.exit_code == 0
    listed = [json.loads(line) for line in rejected_path(output).read_text().splitlines()]
    assert [(row["position"], row["reason"]) for row in listed] == [
        ("line 2", "span reversed"),
        ("line 3", "bad record"),
    ]
    assert listed[0]["query"] == "query 1"
    assert "rejected: span reversed" in result.output


def test_clean_conversion_removes_an_older_list_of_rejections(many: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    rejected_path(output).write_text("old\n")
    run("-i", many, "-o", output)
    assert not rejected_path(output).exists()


def test_strict_ends_at_the_first_bad_record_and_writes_nothing(tmp_path: Path) -> None:
    source = written(tmp_path, [filter_row(0), filter_row(1, span=[5.0, 1.0])])
    output = tmp_path / "rows.jsonl"
    with pytest.raises(RejectedRecordError, match=r"annotations\.jsonl, line 2: span reversed"):
        run("-i", source, "-o", output, "--strict")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations.jsonl"]


def test_nothing_written_is_exit_code_1_and_leaves_an_older_output(
    many: Path, tmp_path: Path
) -> None:
    output = tmp_path / "rows.jsonl"
    output.write_text("old\n")
    assert run("-i", many, "-o", output, "--min-duration", 1000).exit_code == 1
    assert output.read_text() == "old\n"


@pytest.mark.parametrize("name", ["annotations.jsonl", "./x/../annotations.jsonl"])
def test_output_over_the_input_is_refused(many: Path, name: str) -> None:
    (many.parent / "x").mkdir()
    before = many.read_bytes()
    with pytest.raises(ConfigError, match="would overwrite the input"):
        run("-i", many, "-o", many.parent / name)
    assert many.read_bytes() == before


def test_unknown_schema_suggests_the_nearest_name(many: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean timelens-filter"):
        run("-i", many, "-o", tmp_path / "rows.jsonl", "--schema", "timelens_filter")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--min-difficulty", 0.2, "--max-difficulty", 0.4], lambda row: 0.2 <= row[2] <= 0.4),
        (["--min-gt-len", 3, "--max-gt-len", 5], lambda row: 3 <= row[1] <= 5),
        (["--max-coverage", 0.1], lambda row: row[1] / 100 <= 0.1),
        (["--min-duration", 100, "--max-duration", 100], lambda row: True),
    ],
)
def test_bounds_are_inclusive(many: Path, tmp_path: Path, options: Any, expected: Any) -> None:
    output = tmp_path / "rows.jsonl"
    run("-i", many, "-o", output, *options)
    numbers = [(f"{n}.mp4", n % 37 + 1.0, round(1 - (n % 100) / 100, 4)) for n in range(400)]
    wanted = [row[0] for row in numbers if expected(row)]
    assert [row.videos[0] for row in rows_of(output)] == wanted


def test_missing_value_fails_a_set_bound(tmp_path: Path) -> None:
    source = written(
        tmp_path, [filter_row(0, iou=None), filter_row(1, duration=None), filter_row(2)]
    )
    output = tmp_path / "rows.jsonl"
    result = run("-i", source, "-o", output, "--min-difficulty", 0, "--min-coverage", 0)
    assert [row.videos for row in rows_of(output)] == [["2.mp4"]]
    assert "filtered: no difficulty" in result.output
    assert "filtered: no coverage" in result.output


def test_head_takes_the_first_rows(many: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    result = run("-i", many, "-o", output, "--max-samples", 3)
    assert [row.videos[0] for row in rows_of(output)] == ["0.mp4", "1.mp4", "2.mp4"]
    assert "after --max-samples" in result.output


@pytest.mark.parametrize("kind", ["gaussian", "gt_len", "coverage", "joint"])
def test_sampler_writes_whole_rows_and_repeats_with_the_seed(
    many: Path, tmp_path: Path, kind: str
) -> None:
    outputs = [tmp_path / name for name in ("one", "two", "three")]
    for output, seed in zip(outputs, (1, 1, 2), strict=True):
        run("-i", many, "-o", output, "--sampling", kind, "--max-samples", 100, "--seed", seed)
    one, two, three = (output.read_bytes() for output in outputs)
    assert one == two != three
    everything = tmp_path / "all"
    run("-i", many, "-o", everything)
    assert set(one.splitlines()) <= set(everything.read_bytes().splitlines())


def test_stratified_rows_come_with_a_warning_about_evaluation_sets(
    many: Path, tmp_path: Path
) -> None:
    result = run("-i", many, "-o", tmp_path / "rows", "--sampling", "gt_len", "--max-samples", 9)
    assert "targets were measured on evaluation sets" in " ".join(result.output.split())


def test_sampler_needs_a_number_of_rows(many: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no --max-samples"):
        run("-i", many, "-o", tmp_path / "rows", "--sampling", "gaussian")


def test_gaussian_passes_over_rows_without_difficulty(tmp_path: Path) -> None:
    source = written(tmp_path, [filter_row(n, iou=None if n % 2 else 0.5) for n in range(20)])
    output = tmp_path / "rows.jsonl"
    run("-i", source, "-o", output, "--sampling", "gaussian", "--max-samples", 20)
    assert len(rows_of(output)) == 10


def test_durations_come_from_a_side_file(tmp_path: Path) -> None:
    source = tmp_path / "charades.txt"
    source.write_text("AAAAA 1.0 3.0##sits\nBBBBB 1.0 3.0##stands\n")
    side = tmp_path / "durations.csv"
    side.write_text("id,seconds\nAAAAA,2.5\nBBBBB,1.5\n")
    output = tmp_path / "rows.jsonl"
    run("-i", source, "-o", output, "--duration-source", side)
    (row,) = rows_of(output)
    assert (row.duration, row.target) == (2.5, SpansTarget(spans=((1.0, 2.5),)))


def test_json_answers_convert_back_to_the_same_rows(many: Path, tmp_path: Path) -> None:
    plain, as_json, back = (tmp_path / name for name in ("plain", "json", "back"))
    run("-i", many, "-o", plain)
    run("-i", many, "-o", as_json, "--answer-format", "json")
    run("-i", as_json, "-o", back)
    assert json.loads(rows_of(as_json)[0].answer or "") == {"time": [10.0, 11.0]}
    assert back.read_bytes() == plain.read_bytes()


NUMBERS = st.one_of(
    st.floats(), st.integers(-3, 12), st.booleans(), st.none(), st.sampled_from(["1", "", [], {}])
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spans=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20), duration=NUMBERS)
def test_no_invalid_span_is_ever_written(tmp_path: Path, spans: Any, duration: Any) -> None:
    """Whatever stands in the file, each record is a valid row or a rejection."""
    rows = [filter_row(n, span=list(span), duration=duration) for n, span in enumerate(spans)]
    output = tmp_path / "rows.jsonl"
    output.unlink(missing_ok=True)
    report = convert(
        written(tmp_path, rows), output=output, conversion=Conversion(schema="timelens-filter")
    )
    assert report.records_in == report.rows_out + report.rejected.total() == len(rows)
    for row in rows_of(output) if output.exists() else []:
        assert isinstance(row.target, SpansTarget)
        for start, end in row.target.spans:
            assert 0 <= start < end <= (math.inf if row.duration is None else row.duration)


def test_videos_that_the_duration_file_lacks_are_counted_and_the_nearest_named(
    tmp_path: Path,
) -> None:
    source = tmp_path / "charades.txt"
    source.write_text("AAAAA 1.0 5.0##a\nAAAAB 1.0 5.0##b\nAAAAB 2.0 5.0##c\nccccc 1.0 2.0##d\n")
    durations = tmp_path / "durations.csv"
    durations.write_text("AAAAA.mp4,30\nCCCCC,9\n")
    result = run("-i", source, "-o", tmp_path / "out", "--duration-source", durations)
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert "without a duration │ 3" in said
    assert f"nothing in {durations} for 3 of 4 records" in said
    assert "'AAAAB.mp4' (nearest: 'AAAAA'), 'ccccc.mp4' (nearest: 'CCCCC')" in said
    matched = run("-i", source, "-o", tmp_path / "out", "--max-samples", "1")
    assert "--duration-source" not in matched.output


def test_durations_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    source, durations = tmp_path / "charades.txt", tmp_path / "durations.csv"
    source.write_text("AAAAA 1.0 5.0##a\nBBBBB 1.0 5.0##b\n")
    durations.write_text("AAAAA,30\nBBBBB,12 s\n")
    result = run("-i", source, "-o", tmp_path / "out", "--duration-source", durations)
    said = " ".join(result.output.split())
    assert f"found in {durations} no seconds above 0 in line 2: '12 s' for 'BBBBB'" in said


@pytest.mark.skipif(not CASES.is_dir(), reason="the reported files are not here")
def test_ids_with_dots_find_the_durations_that_name_files(tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = run("-i", CASES / "dot.jsonl", "-o", output, "--duration-source", CASES / "dur2.csv")
    assert "nothing in" not in result.output
    assert [row.duration for row in rows_of(output)] == [150.0, 300.0]


def test_a_disk_that_fills_up_leaves_the_older_output(many: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    output.write_text("older\n")
    for sampling in ("head", "gt_len"):
        options = ("-i", many, "-o", output, "--sampling", sampling, "--max-samples", "300")
        said = r"--output: .*rows\.jsonl: .* MB free\); no row is written, an older file stays"
        with no_room(2000), pytest.raises(OutputError, match=said):
            run(*options)
    assert output.read_text() == "older\n"
    assert {path.name for path in tmp_path.iterdir()} == {many.name, output.name}


def test_ids_get_the_suffix_of_their_file_where_a_root_is_given(tmp_path: Path) -> None:
    captions = {
        video: {"duration": 30.0, "timestamps": [[1.0, 4.0]], "sentences": ["It moves."]}
        for video in ("v_one", "v_two", "v_three")
    }
    source, videos = tmp_path / "train.json", tmp_path / "videos"
    source.write_text(json.dumps(captions))
    videos.mkdir()
    for name in ("v_one.mkv", "v_two.mp4"):
        (videos / name).touch()
    output = tmp_path / "rows.jsonl"
    run("-i", source, "-o", output, "--video-root", videos)
    names = ["v_one.mkv", "v_two.mp4", "v_three.mp4"]
    assert [row.videos for row in rows_of(output)] == [[str(videos / name)] for name in names]


def test_a_path_that_is_given_keeps_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "0.mkv").touch()
    output = tmp_path / "rows.jsonl"
    run("-i", written(tmp_path, [filter_row(0)]), "-o", output, "--video-root", tmp_path)
    assert rows_of(output)[0].videos == [str(tmp_path / "0.mp4")]
