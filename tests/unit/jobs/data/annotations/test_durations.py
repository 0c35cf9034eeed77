"""Side files of durations: formats, headings, contradictions."""

import json
from pathlib import Path

import pytest

from common.errors import ConfigError
from jobs.data.annotations.durations import read_durations


def test_csv_heading_and_broken_rows_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "durations.csv"
    path.write_text("id,length_seconds,split\nAAAAA,30.62,train\nBBBBB,,train\nCCCCC,0\n")
    assert read_durations(path) == {"AAAAA": 30.62}


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
    assert read_durations(path) == {"AAAAA": 30.0, "BBBBB": 12.5}


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
