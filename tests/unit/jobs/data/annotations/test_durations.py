"""Side files of durations: formats, headings, contradictions."""

import json
import unicodedata
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.video.names import video_key
from jobs.data.annotations.durations import read_durations


def test_csv_heading_is_passed_over_and_broken_rows_are_told(tmp_path: Path) -> None:
    path = tmp_path / "durations.csv"
    path.write_text("id,length_seconds,split\nAAAAA,30.62,train\nBBBBB,,train\nCCCCC,0\n")
    unreadable: list[str] = []
    assert read_durations(path, unreadable=unreadable) == {"AAAAA": 30.62}
    assert unreadable == ["line 3: '' for 'BBBBB'", "line 4: '0' for 'CCCCC'"]


def test_a_first_line_with_a_number_is_no_heading(tmp_path: Path) -> None:
    path = tmp_path / "durations.csv"
    path.write_text("AAAAA,12 s\nBBBBB,-7\n\n")
    with pytest.raises(ConfigError, match=r"no durations \(line 1: '12 s' for 'AAAAA'\), wanted"):
        read_durations(path)


def test_the_published_file_of_charades_is_read(tmp_path: Path) -> None:
    """Its texts have commas, quotes and line ends."""
    path = tmp_path / "Charades_v1_train.csv"
    path.write_text(
        "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
        '46GP8,HR43,Kitchen,6,7,Yes,"A person cooks, 12\nand eats ""x"".",food;stove,A.,c092 11.90 '
        "21.20;c147 0.00 12.60,24.83\n"
        "N11GT,0KZ7,Stairs,6,7,Yes,A person,doorway,A,c141 2.00 9.50,18.33\n"
        "NONE1,0KZ7,Stairs,6,7,Yes,A person,doorway,A,,\n"
    )
    assert read_durations(path) == {"46GP8": 24.83, "N11GT": 18.33}


@pytest.mark.parametrize(
    ("heading", "row"),
    [
        ("id,split,duration", "a,3,7.5"),
        (" Length ,ID", "7.5,a"),
        ("fps,seconds,id", "25,7.5,a.mp4"),
        ("fps,seconds,id,length", "25,1,a.mp4,7.5"),
        ("video,7.5", "a,7.5"),
    ],
)
def test_a_heading_says_which_column_has_what(tmp_path: Path, heading: str, row: str) -> None:
    path = tmp_path / "durations.csv"
    path.write_text(f"{heading}\n{row}\n")
    assert read_durations(path)["a"] == 7.5


@pytest.mark.parametrize("as_array", [False, True])
def test_json_records_name_their_video_in_two_ways(tmp_path: Path, as_array: bool) -> None:
    records: list[object] = [
        {"video_path": "x/AAAAA.mp4", "duration": 30},
        {"videos": ["/y/BBBBB.webm"], "duration": 12.5},
        {"videos": ["CCCCC.mp4"], "duration": True},
        {"videos": [], "duration": 3.0},
        17,
    ]
    path = tmp_path / "durations.json"
    path.write_text(json.dumps(records) if as_array else "\n".join(map(json.dumps, records)))
    unreadable: list[str] = []
    assert read_durations(path, unreadable=unreadable) == {"AAAAA": 30.0, "BBBBB": 12.5}
    (words,) = unreadable
    assert words.endswith(": True for 'CCCCC.mp4'")


def test_two_durations_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "durations.csv"
    path.write_text("a,1.0\na,1.0\na,2.0\n")
    with pytest.raises(ConfigError, match=r"1\.0 and 2\.0 s for 'a'"):
        read_durations(path)


def test_file_without_durations_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "durations.csv"
    path.write_text("some text\n")
    with pytest.raises(ConfigError, match="found no durations"):
        read_durations(path)


@pytest.mark.parametrize("suffix", ["", ".mp4", ".MKV"])
def test_csv_names_files_with_or_without_a_suffix(tmp_path: Path, suffix: str) -> None:
    """The dots of `..._660.0_810.0` are no suffix: two windows would be one video."""
    path = tmp_path / "durations.csv"
    path.write_text(
        f"id,duration\nbP5KfdFJzC4_660.0_810.0{suffix},150\nbP5KfdFJzC4_660.0_960.0{suffix},300\n"
    )
    found = read_durations(path)
    assert found == {"bP5KfdFJzC4_660.0_810.0": 150.0, "bP5KfdFJzC4_660.0_960.0": 300.0}
    assert found[video_key("videos/bP5KfdFJzC4_660.0_960.0.mp4")] == 300.0


def test_letters_match_however_they_are_composed(tmp_path: Path) -> None:
    path = tmp_path / "durations.csv"
    path.write_text(f"{unicodedata.normalize('NFD', 'Kühlschrank')},12\n", encoding="utf-8")
    assert read_durations(path)[video_key("Kühlschrank.mp4")] == 12.0


def test_rows_about_a_window_say_nothing_of_their_file(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [
        {"videos": ["a.mp4"], "duration": 45.7, "start_s": 39.0, "end_s": 84.7},
        {"videos": ["a.mp4"], "duration": 20.0, "end_s": 20.0},
        {"videos": ["a.mp4"], "duration": 120.0},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    assert read_durations(path) == {"a": 120.0}
