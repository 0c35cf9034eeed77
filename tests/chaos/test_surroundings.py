"""The demo's short form where nothing is as at home: `tests/fixtures/servers/surroundings.py`.

A copy of the repository in a folder with spaces and letters that are no ASCII; a user without name,
home and passwd entry; a C locale; packages that are mounted read-only; files for the user alone.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.servers.surroundings import reason, strangely

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "runs", "tests", "__pycache__", ".*_cache")
WHY = reason()

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


@pytest.mark.skipif(WHY is not None, reason=WHY or "")
def test_the_demo_trains_and_reports(tmp_path: Path) -> None:
    house = tmp_path / "odd ünï dir"
    shutil.copytree(ROOT, house, ignore=LEFT_OUT)
    before = {path.name for path in house.iterdir()}
    demo = ["demo", "--run", "odd", "--steps", "2", "--eval-split", "validation"]
    command = [sys.executable, "-m", "tempsamp", *demo, "--eval-queries", "3"]
    environ = {"PYTHONPATH": str(house), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    line = strangely(command, folder=house, **environ)
    done = subprocess.run(line, capture_output=True, encoding="utf-8", timeout=1100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run_dir = house / "runs" / "odd"
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    assert (summary["steps"], summary["groups_trained"]) == (2, 16)
    assert summary["failed_queries_end"] == 0
    assert (run_dir / "report.html").stat().st_mode & 0o777 == 0o600
    # No folder called ~, above all.
    assert {path.name for path in house.iterdir()} == before | {"runs"}
