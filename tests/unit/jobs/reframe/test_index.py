"""The task's index."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from jobs.reframe.crop import Size
from jobs.reframe.index import Wanted, read_index


def test_entries_come_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "test_index.json"
    file.write_text(
        '[{"video_id": "b 1", "targetRatioWH": [9, 16], "source": "x"},'
        ' {"video_id": "a", "targetRatioWH": [16, 9]}]'
    )
    assert read_index(file) == [
        Wanted(video_id="b 1", ratio=Size(9, 16)),
        Wanted(video_id="a", ratio=Size(16, 9)),
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"video_id": "a"}, "wanted a list of entries"),
        ([], "wanted a list of entries"),
        (["a"], "entry 1: found video_id None"),
        ([{"video_id": 7, "targetRatioWH": [9, 16]}], "entry 1: found video_id 7"),
        ([{"video_id": "../a", "targetRatioWH": [9, 16]}], "found video_id '../a', wanted a file"),
        ([{"video_id": "a"}], "entry 1: found targetRatioWH None, wanted two whole numbers"),
        ([{"video_id": "a", "targetRatioWH": [0, 16]}], r"found targetRatioWH \[0, 16\]"),
        ([{"video_id": "a", "targetRatioWH": [True, 16]}], r"found targetRatioWH \[True, 16\]"),
        ([{"video_id": "a", "targetRatioWH": [9.0, 16]}], r"found targetRatioWH \[9.0, 16\]"),
        ([{"video_id": "a", "targetRatioWH": [9, 16]}] * 2, "entry 2: found 'a' again"),
    ],
)
def test_what_is_no_index_is_refused(tmp_path: Path, entries: Any, message: str) -> None:
    file = tmp_path / "test_index.json"
    file.write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match=f"--index: .*test_index.json: .*{message}"):
        read_index(file)


def test_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--index: .*none\.json.*wanted a JSON list"):
        read_index(tmp_path / "none.json")
