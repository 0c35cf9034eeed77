"""What the readers make of records: nothing filtered, nothing altered, schemas found by content."""

import json
import math
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.messages import Highlight
from jobs.data.annotations.reading import read, schema_named
from jobs.data.annotations.records import Annotation, clean_query
from jobs.data.annotations.sniff import sniff


def lines(folder: Path, *records: object) -> Path:
    path = folder / "file"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def only(path: Path) -> Annotation:
    (record,) = read(path)
    assert isinstance(record, Annotation)
    return record


def test_impossible_spans_are_read_as_published(tmp_path: Path) -> None:
    events = [{"query": " q. ", "span": [[9.0, 1.0], [-1.0, 1e9]]}]
    record = only(lines(tmp_path, {"video_path": "a/b.mp4", "duration": 5, "events": events}))
    assert record.spans == ((9.0, 1.0), (-1.0, 1e9))
    assert record.query == " q. "
    assert record.duration_s == 5.0
    assert (record.video, record.position) == ("videos/a/b.mp4", "line 1[0]")


def test_qvhighlights_scores_are_the_raters_mean_to_one_decimal(tmp_path: Path) -> None:
    row = {
        "qid": 7,
        "query": "q",
        "vid": "v_0.0_150.0",
        "duration": 150,
        "relevant_clip_ids": [41, 42],
        "saliency_scores": [[1, 1, 2], [4, 4, 3]],
        "relevant_windows": [[82, 86]],
    }
    record = only(lines(tmp_path, row))
    assert record.highlights == (
        Highlight(time_s=82.0, score=1.3),
        Highlight(time_s=84.0, score=3.7),
    )
    assert (record.qid, record.video) == ("7", "v_0.0_150.0.mp4")
    assert record.extras["saliency_scores"] == [[1, 1, 2], [4, 4, 3]]


def test_time_r1_difficulty_is_turned_round_because_it_is_an_iou(tmp_path: Path) -> None:
    row = {"video": "a.mp4", "timestamp": [1.0, 4.0], "sentence": "q", "difficulty": 80.0}
    assert only(lines(tmp_path, row)).difficulty == 0.2


def test_window_into_a_longer_file_is_kept(tmp_path: Path) -> None:
    row = {"path": "a.mp4", "question": "q", "answer": "1-2.5", "start": 39.0, "end": 84.7}
    record = only(lines(tmp_path, row))
    assert record.window == (39.0, 84.7)
    assert record.spans == ((1.0, 2.5),)


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("4jujhM5qhEc_00:00:39:000_00:01:24:700.mp4", None),
        ("4jujhM5qhEc_00:00:39:000_00:01:24:900.mp4", (39.0, 84.7)),
        ("4jujhM5qhEc.mp4", (39.0, 84.7)),
        ("4jujhM5qhEc_39.0_84.7/b.mp4", (39.0, 84.7)),
    ],
)
def test_file_whose_name_states_the_window_is_that_part_already(
    tmp_path: Path, name: str, window: tuple[float, float] | None
) -> None:
    about = {"video_start": 39.0, "video_end": 84.7}
    row = {"video": f"videos/{name}", "timestamp": [1.0, 4.0], "sentence": "q", **about}
    assert only(lines(tmp_path, row)).window == window


@pytest.mark.parametrize(
    ("written", "window"),
    [
        ({}, None),
        ({"start_s": 39.0, "end_s": 84.7}, (39.0, 84.7)),
        ({"start_s": 39}, (39.0, math.inf)),
        ({"end_s": 84.7}, (0.0, 84.7)),
    ],
)
def test_rows_name_windows(
    tmp_path: Path, written: dict[str, float], window: tuple[float, float] | None
) -> None:
    row = {"query": "q", "videos": ["a.mp4"], "spans": [[1, 2]], **written}
    assert only(lines(tmp_path, row)).window == window


def test_bench_folder_is_the_subset_of_the_file_name(tmp_path: Path) -> None:
    path = tmp_path / "qvhighlights-timelens.json.gz"
    path.write_text('{"v": {"duration": 5.0, "spans": [[1, 2]], "queries": ["q"]}}')
    assert only(path).video == "videos/qvhighlights/v.mp4"


def test_first_records_may_be_broken(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('{"qid"\n[]\n{"query": "q", "videos": ["a.mp4"], "spans": [[1, 2]]}\n')
    assert sniff(path) == "rows"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "nothing"),
        ("a, b, c\n", "text such as 'a, b, c'"),
        ('{"id": 1, "text": "x"}\n', "records with the keys id, text"),
        ("[1, 2]", "JSON without objects"),
    ],
)
def test_unknown_content_is_named_beside_the_known_schemas(
    tmp_path: Path, content: str, found: str
) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"found {found}, wanted .*charades-sta.*--schema") as it:
        sniff(path)
    assert "\n" not in str(it.value)


def test_unknown_schema_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean qvhighlights"):
        schema_named("qv-highlight")
    assert schema_named("museg") == "museg"


def test_query_is_cleaned_as_timelens_does() -> None:
    assert clean_query(" . A  dog\n barks... ") == "A dog barks"
