"""Places are tried before the work; what is written appears whole or is named with the reason."""

import errno
import os
from pathlib import Path

import pytest

from common.errors import ConfigError, OutputError
from common.queue.disk import (
    check_file,
    check_files,
    check_folder,
    replace_text,
    write_file,
    writing,
)
from tests.fixtures.servers.places import ReadOnly, no_room


def test_folders_that_can_be_made_are_not_made_yet(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b", knob="--out")
    check_file(tmp_path / "a" / "b" / "file", knob="--json")
    check_file(Path("/dev/null"), knob="--json")
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ConfigError, match=rf"--out: found {file}: Not a directory, wanted"):
        check_folder(file / "out", knob="--out")
    with pytest.raises(ConfigError, match=rf"--json: found {tmp_path}, a folder, wanted a file"):
        check_file(tmp_path, knob="--json")


def test_two_outputs_are_not_one(tmp_path: Path) -> None:
    new, same = tmp_path / "new", tmp_path / "x/../new"
    check_files({"--html": Path("/dev/null"), "--json": Path("/dev/null"), "--cut": None})
    with pytest.raises(ConfigError, match=rf"^--json: found {same}, which is --html; wanted an"):
        check_files({"--html": new, "--json": same})


def test_a_folder_without_permission_is_refused(read_only: ReadOnly) -> None:
    folder = read_only.folder
    with read_only.user():
        for check in (check_folder, check_file):
            with pytest.raises(ConfigError, match=rf"--o: found {folder}: Permission denied \(us"):
                check(folder / "new" / "er", knob="--o")
        with pytest.raises(ConfigError, match=rf"--o: found {read_only.file}: Permission denied"):
            check_file(read_only.file, knob="--o")


def test_a_full_disk_is_seen_before_the_work_and_after(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("before")
    with no_room(0), pytest.raises(ConfigError, match=r"--out: found .*\(found [\d,]+ MB free\)"):
        check_folder(tmp_path, knob="--out")
    with no_room(100), pytest.raises(OutputError, match=r"--out: .*/x: .* MB free\); half of it"):
        write_file(path, "after" * 100, knob="--out", kept="half of it is there")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match="/dev/full: No space left on device"):
        write_file(Path("/dev/full"), "x", knob="--json")


def test_only_the_disk_is_blamed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), writing(tmp_path, knob="--out"):
        raise KeyError("other")
    with pytest.raises(OutputError) as failed, writing(tmp_path, knob="--out"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    assert str(failed.value) == f"--out: {tmp_path}: Read-only file system"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    file, link = tmp_path / "real" / "file", tmp_path / "link"
    file.write_text("before")
    link.symlink_to(file)
    replace_text(link, "after")
    assert link.is_symlink()
    assert file.read_text() == "after"
