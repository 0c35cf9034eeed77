"""`tempsamp runs`: a line a run, from its folder alone."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from common.errors import ConfigError
from jobs.dash.folder import find_runs
from jobs.dash.listing import command, listed
from tests.fixtures.pages.documents import ROOT
from tests.fixtures.pages.run_folder import write_lines

RECORDED = ROOT / "tests/golden/dash"
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(command)
run = CliRunner().invoke


def test_recorded_runs_are_listed_with_method_steps_and_best_validation() -> None:
    done = run(app, [str(RECORDED), "--json"])
    found = {line["run"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert {name: line["method"] for name, line in found.items()} == {
        "grpo": "grpo",
        "tempsamp": "tempsamp",
    }
    one = found["tempsamp"]
    assert (one["step"], one["phase"], one["model"]) == (60, "finished", "tiny-qwen3vl")
    lines = (RECORDED / "tempsamp/validation.jsonl").read_text().splitlines()
    best = max(map(json.loads, lines), key=lambda line: line["val/miou"])
    assert (one["best"], one["best_step"]) == (best["val/miou"], best["step"])


def test_the_table_has_a_row_a_run() -> None:
    done = run(app, [str(RECORDED)], env={"COLUMNS": "120"})
    (row,) = (line for line in done.stdout.splitlines() if line.split()[:1] == ["grpo"])
    assert "60 of 60" in row
    assert "finished" in row


def test_a_run_without_settings_and_validation_has_gaps(tmp_path: Path) -> None:
    write_lines(tmp_path / "a/metrics.jsonl", [{"step": 3, "reward/iou": 0.5}])
    (found,) = map(listed, find_runs(tmp_path).values())
    assert (found.method, found.steps, found.best, found.step) == (None, None, None, 3)
    done = run(app, [str(tmp_path)], env={"COLUMNS": "120"})
    assert done.exit_code == 0


@pytest.mark.parametrize("name", ["", "gone"])
def test_a_folder_without_runs_is_a_mistake(tmp_path: Path, name: str) -> None:
    done = run(app, [str(tmp_path / name)])
    assert isinstance(done.exception, ConfigError)
