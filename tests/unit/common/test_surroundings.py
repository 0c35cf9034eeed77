"""A user without a home gets one that is his; UTF-8 is spoken, whatever the locale says."""

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from common.surroundings import settle

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of temporary files of a user without home and name."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setenv("HOME", "")  # remembered, and restored when the test ends
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_who_has_no_home_gets_one_and_always_the_same(nobody: Path) -> None:
    assert os.path.expanduser("~") == "~"
    settle()
    home = Path(os.environ.pop("HOME"))
    assert home == nobody / f"tempsamp-{os.getuid()}"
    assert home.stat().st_mode & 0o777 == 0o700
    settle()
    assert Path(os.environ["HOME"]) == home


@pytest.mark.parametrize("kind", ["link", "open", "file"])
def test_a_folder_that_somebody_else_may_have_made_is_not_taken(kind: str, nobody: Path) -> None:
    taken = nobody / f"tempsamp-{os.getuid()}"
    if kind == "link":
        taken.symlink_to("/")
    elif kind == "open":
        taken.mkdir()
        taken.chmod(0o777)
    else:
        taken.write_text("x")
    settle()
    home = Path(os.environ["HOME"])
    assert home != taken
    assert home.parent == nobody
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_home_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    settle()
    assert os.environ["HOME"] == "/nonexistent"


def test_a_command_in_a_c_locale_begins_again_with_the_same_words() -> None:
    """What it does not find is named as it was written."""
    command = [sys.executable, "-m", "tempsamp", "eval", "score", "Kühl schrank", "--bench", "rows"]
    environ = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "tempsamp: Kühl schrank: found no file" in done.stderr.decode("utf-8")
