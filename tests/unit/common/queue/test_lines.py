"""Lines on disk: what a crash tears is left out, what is damaged otherwise is named."""

import logging
from pathlib import Path

import pytest
from pydantic import BaseModel

from common.errors import ConfigError
from common.queue.ledger import FILE, RunLine, read_ledger
from common.queue.lines import read_figures, read_lines


class Number(BaseModel):
    n: int


def numbers(path: Path) -> list[int]:
    parsed = read_lines(path, Number.model_validate_json, wanted="a number", remedy="count again")
    return [one.n for one in parsed]


TORN = [b'{"n": 3', b"\0\0\0\0", b"\0\0\0\0\n", b'{"n": \0\0\n', b"\xff\xfe"]


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_end_is_left_out_and_said(
    torn: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n' + torn)
    assert numbers(path) == [1, 2]
    (said,) = caplog.records
    assert (said.levelno, said.__dict__["path"]) == (logging.WARNING, str(path))


@pytest.mark.parametrize("content", [b"", b'{"n": 1}', b'{"n": 1}\n'])
def test_an_empty_file_and_a_line_without_its_end_are_whole(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lines"
    path.write_bytes(content)
    assert numbers(path) == [1] * bool(content)
    assert not caplog.records


@pytest.mark.parametrize("bad", [b'{"n"\n{"n": 2}\n', b'{"m": 1}\n', b"\n\n", b"\0\0\n{}\n"])
def test_damage_before_the_end_and_other_schemas_are_refused_by_line(
    bad: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"n": 1}\n' + bad)
    with pytest.raises(ConfigError, match=rf"^{path}: line 2: .*wanted a number: .*; count again$"):
        numbers(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone: No such file or directory, wanted a number"):
        numbers(tmp_path / "gone")


def test_a_ledger_is_read_like_any_other_lines(tmp_path: Path) -> None:
    path, first = tmp_path / FILE, RunLine(run_id="r", tag="t", rows="rows", rows_sha256="0")
    path.write_text(first.model_dump_json() + '\n{"kind": "st')
    assert list(read_ledger(path)) == [first]
    path.write_text(first.model_dump_json() + '\n{"kind": "other"}\n')
    with pytest.raises(ConfigError, match=r"line 2: .*other.*; bring back a copy of the file, or"):
        list(read_ledger(path))


@pytest.mark.parametrize("torn", TORN)
def test_figures_go_on_without_damaged_lines(
    torn: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_figures(path) == []
    path.write_bytes(b'{"step": 1}\nnull\n{"other": 1}\n{"step": 2}\n' + torn)
    assert read_figures(path) == [{"step": 1}, {"step": 2}]
    (said,) = caplog.records
    assert (said.__dict__["lines"], said.__dict__["first_line"]) == (3, 2)
