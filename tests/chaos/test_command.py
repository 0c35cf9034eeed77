"""`make chaos` itself, for a minute: a whole demo is struck and proves that it lost nothing."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.pages.documents import ROOT

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
RUN = "pytest-chaos"


@pytest.fixture
def run_dir() -> Iterator[Path]:
    folder = ROOT / "runs" / RUN
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_minute_of_chaos(run_dir: Path) -> None:
    chaos = [sys.executable, "-m", "jobs.chaos", "--run", RUN, "--seed", "2"]
    again = [*chaos, "--minutes", "1", "--eval-queries", "24"]
    ended = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((run_dir / "chaos.json").read_text())
    assert found["kills"] + found["frozen"] >= 3
    assert (found["lost"], found["trained_twice"], found["orphans"]) == (0, 0, 0)
    assert found["recoveries_s"]["max"] > 0
    assert 0 < found["final_miou"] < 1
    refused = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert f"RUN: found runs/{RUN}, wanted a new name" in refused.stderr
