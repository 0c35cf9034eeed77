"""Files that break off, lie about themselves or use rare encodings: nothing is lost silently."""

import gzip
from pathlib import Path

import pytest

from common.errors import ConfigError
from jobs.data.annotations.containers import first_byte, json_members, json_records, text_lines
from jobs.data.annotations.records import BadRecord, Record


def written(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


def test_json_lines_are_numbered_from_1_and_blank_ones_counted(tmp_path: Path) -> None:
    path = written(tmp_path, b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": 2}')
    assert list(json_records(path)) == [Record("line 1", {"a": 1}), Record("line 3", {"a": 2})]


def test_unicode_line_separator_does_not_end_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, '{"a": "x\u2028y"}\n'.encode())
    assert list(json_records(path)) == [Record("line 1", {"a": "x\u2028y"})]


def test_json_array_is_numbered_from_0(tmp_path: Path) -> None:
    path = written(tmp_path, b' [{"a": 1},\n {"a": 2.5}]')
    assert list(json_records(path)) == [Record("[0]", {"a": 1}), Record("[1]", {"a": 2.5})]


def test_repeated_keys_of_an_object_all_come(tmp_path: Path) -> None:
    path = written(tmp_path, b'{"v": {"n": 1}, "v": {"n": 2}}')
    assert list(json_members(path)) == [Record("v", {"n": 1}), Record("v", {"n": 2})]


@pytest.mark.parametrize(
    ("content", "position"),
    [(b'[{"a": 1}, {"a": 2}, {"a"', "after [1]"), (b'[{"a": 1}, {"a": NaN}]', "after [0]")],
)
def test_array_that_stops_being_json_ends_in_a_bad_record(
    tmp_path: Path, content: bytes, position: str
) -> None:
    *good, last = json_records(written(tmp_path, content))
    assert isinstance(last, BadRecord)
    assert (last.position, last.reason) == (position, "broken file")
    assert all(isinstance(record, Record) for record in good)


def test_gzip_that_breaks_off_ends_in_a_bad_record(tmp_path: Path) -> None:
    lines = b"".join(b'{"number": %d}\n' % number for number in range(20_000))
    *good, last = json_records(written(tmp_path, gzip.compress(lines)[:-3000]))
    assert len(good) > 1000
    assert isinstance(last, BadRecord)
    assert last.reason == "broken file"
    assert last.position == f"after line {len(good)}"


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a": "\\ud800"}', b"\xff", b"nonsense"])
def test_hostile_line_is_one_bad_record(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path, b"{}\n" + line + b"\n{}\n")
    first, bad, third = json_records(path)
    assert isinstance(bad, BadRecord)
    assert bad.position == "line 2"
    assert [first, third] == [Record("line 1", {}), Record("line 3", {})]


def test_text_line_that_is_not_utf8_is_one_bad_record(tmp_path: Path) -> None:
    path = written(tmp_path, b"one\n\xff\nthree\n")
    assert [isinstance(record, Record) for record in text_lines(path)] == [True, False, True]


def test_empty_file_has_no_records_and_no_first_byte(tmp_path: Path) -> None:
    path = written(tmp_path, b" \n ")
    assert first_byte(path) == b""
    assert list(json_records(path)) == []


def test_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*gone"):
        list(json_records(tmp_path / "gone"))
