"""`tempsamp doctor` as a user runs it, without engines: lines, JSON, exit codes."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from jobs.doctor.command import command
from tests.fixtures.pages.documents import ROOT


@pytest.fixture(autouse=True)
def _any_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which lock made it is not what these tests are about."""
    monkeypatch.setattr("jobs.doctor.machine.LOCKS", tmp_path / "none")


app = typer.Typer(pretty_exceptions_enable=False)
app.command()(command)
run = CliRunner().invoke


@pytest.fixture
def options(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run whose Redis and reward service are not there."""
    monkeypatch.setattr("jobs.fleet.services.REDIS_OUTAGE_S", 0.1)
    settings = (
        f"shared.video.roots=['{videos}']",
        f"learner.rows={videos / 'rows.jsonl'}",
        f"learner.run_dir={tmp_path / 'run'}",
        f"shared.model={ROOT / 'deploy/tiny-qwen3vl'}",
        "shared.redis_url=redis://127.0.0.1:1/0",
        "shared.reward_url=http://127.0.0.1:1",
    )
    pairs = [word for setting in settings for word in ("--set", setting)]
    return ["--config", str(ROOT / "deploy/configs/demo.toml"), *pairs]


def test_without_a_run_file_the_machine_is_looked_at() -> None:
    done = run(app, [])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "3 ok, 0 warn, 0 fail"


def test_every_line_that_is_not_ok_has_its_cure(options: list[str]) -> None:
    done = run(app, [*options, "--no-engines"])
    assert done.exit_code == 2, done.output
    lines = done.stdout.splitlines()
    bad = [number for number, line in enumerate(lines) if line.startswith(("warn", "fail"))]
    assert {lines[number].split(":")[0].split()[1] for number in bad} == {
        "redis",
        "reward",
        "model",
    }
    assert all(lines[number + 1].startswith("      → ") for number in bad)


def test_as_json_each_line_is_an_object(options: list[str]) -> None:
    done = run(app, [*options, "--no-engines", "--json"])
    found = json.loads(done.stdout)["findings"]
    assert {tuple(one) for one in found} == {("area", "name", "level", "found", "cure")}
    assert all(one["cure"] for one in found if one["level"] != "ok")
    areas = list(dict.fromkeys(one["area"] for one in found))
    assert areas == ["machine", "redis", "reward", "inputs", "model", "prompt"]


def test_without_a_clip_engines_are_not_started_and_that_is_said(
    options: list[str], videos: Path
) -> None:
    (videos / "clip.mp4").unlink()
    done = run(app, options)
    assert "warn  engine: against learner: not compared: no model or no clip" in done.stdout


def test_a_fleet_needs_a_run_file() -> None:
    from common.errors import ConfigError

    done = run(app, ["--fleet"])
    assert isinstance(done.exception, ConfigError)
    assert "--config" in str(done.exception)
