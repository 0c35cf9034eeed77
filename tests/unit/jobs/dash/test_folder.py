"""A run folder is read on from where the last look ended, whatever happened to its files."""

import json
import math
from pathlib import Path

import pytest

from common.errors import ConfigError
from jobs.dash.folder import Columns, RunFolder, find_runs
from tests.fixtures.pages.run_folder import SETTINGS, write_lines, write_run


def test_columns_have_a_place_for_every_step_and_gaps_where_a_line_has_no_figure(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [{"step": 1, "a": 1}, {"step": 2, "a": 2, "b": 5}, {"step": 3, "b": 6}])
    columns = Columns(path)
    columns.read_on()
    assert list(columns.steps) == [1, 2, 3]
    assert [None if math.isnan(v) else v for v in columns.of("a")] == [1, 2, None]
    assert [None if math.isnan(v) else v for v in columns.of("b")] == [None, 5, 6]
    assert (columns.last("a"), columns.last("none", 7.0)) == (2, 7)
    assert columns.tail("a", 2).tolist() == [2]


def test_a_growing_file_is_read_on_and_a_half_written_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [{"step": 1, "a": 1}])
    columns = Columns(path)
    columns.read_on()
    with path.open("a") as file:
        file.write('{"step": 2, "a": 2}\n{"step": 3, ')
        file.flush()
        columns.read_on()
        assert list(columns.steps) == [1, 2]
        file.write('"a": 3}\n')
    columns.read_on()
    assert columns.of("a").tolist() == [1, 2, 3]


def test_a_resumed_run_that_cut_or_replaced_its_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [{"step": n, "a": n} for n in range(1, 9)])
    columns = Columns(path)
    columns.read_on()
    other = tmp_path / "other"
    write_lines(other, [{"step": n, "a": 10 * n} for n in range(1, 12)])
    other.replace(path)
    columns.read_on()
    assert columns.of("a").tolist() == [10 * n for n in range(1, 12)]
    write_lines(path, [{"step": 1, "a": 5}])
    columns.read_on()
    assert columns.of("a").tolist() == [5]
    path.unlink()
    columns.read_on()
    assert list(columns.steps) == []


@pytest.mark.parametrize(
    "line",
    [
        *("no json", "[1]", '{"a": 1}', '{"step": "x"}', "3", "null", "\\ud800"),
        '{"step": 1, "a": 1' + 400 * "0" + "}",
        '{"step": 1' + 400 * "0" + "}",
    ],
)
def test_lines_that_are_none_are_counted_and_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{line}\n{{"step": 1, "a": 1, "word": "x"}}\n')
    columns = Columns(path)
    columns.read_on()
    assert (columns.unreadable, list(columns.steps), columns.names) == (1, [1], ["a"])


def test_figures_that_are_none_are_gaps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": NaN, "b": Infinity}\n{"step": 2, "a": null, "b": true}\n')
    columns = Columns(path)
    columns.read_on()
    assert (columns.unreadable, columns.names) == (0, ["a", "b"])
    assert all(math.isnan(value) for value in columns.of("a"))
    assert columns.of("b").tolist() == [math.inf, 1]


def test_settings_come_from_the_folder_else_from_its_newest_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "a")
    assert folder.settings() == {}
    assert folder.run() is None
    for step in (50, 100):
        path = tmp_path / f"checkpoints/step-{step:06d}/config.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"learner": {"steps": step}}))
    assert folder.settings()["learner"]["steps"] == 100
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    assert folder.settings()["learner"]["steps"] == 200


def test_a_saved_config_is_a_run_again_with_the_secrets_of_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPSAMP_REDIS_PASSWORD", "of here")
    masked = {**SETTINGS["shared"], "redis_password": "**********", "token": "**********"}
    write_run(tmp_path, settings={**SETTINGS, "shared": masked})
    run = RunFolder(tmp_path, "a", "redis://elsewhere:6379/0").run()
    assert run is not None
    assert run.shared.redis_password is not None
    assert run.shared.redis_password.get_secret_value() == "of here"
    assert run.shared.redis_url == "redis://elsewhere:6379/0"


@pytest.mark.parametrize("content", ["{", "[]", '{"shared": null}', '{"shared": {"new": 1}}', "3"])
def test_settings_of_another_version_are_no_run_and_no_crash(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert RunFolder(tmp_path, "a").run() is None


def test_runs_are_found_below_a_folder_newest_first_and_models_are_none(tmp_path: Path) -> None:
    import os

    for number, name in enumerate(("old", "deep/er", "new")):
        path = write_run(tmp_path / name, steps=1) / "metrics.jsonl"
        os.utime(path, (1000 + number, 1000 + number))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert list(find_runs(tmp_path)) == ["new", "deep/er", "old"]
    assert list(find_runs(tmp_path / "new")) == ["new"]
    assert find_runs(model) == {}
    with pytest.raises(ConfigError, match=r"RUN: found no folder .*none, wanted that of a run"):
        find_runs(tmp_path / "none")
