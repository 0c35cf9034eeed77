"""A run is said in one sentence, whatever it did."""

from pathlib import Path

import pytest

from jobs.dash.folder import RunFolder
from jobs.dash.state import RunState, state_of, wait_share
from tests.fixtures.pages.run_folder import SETTINGS, Figures, validated, write_run


def state(folder: Path, *, quiet_s: float | None = 2.0) -> RunState:
    run = RunFolder(folder, "a")
    return state_of(run.metrics(), run.validation(), settings=run.settings(), quiet_s=quiet_s)


def test_a_run_that_learns_is_said_as_the_issue_says_it(tmp_path: Path) -> None:
    lines = [validated(0, 0.41), validated(50, 0.49), validated(80, 0.52)]
    write_run(tmp_path, steps=83, validation=lines, changed=lambda _n: {"learner/wait_s": 0.079})
    found = state(tmp_path)
    assert found.sentence == (
        "Step 83 of 200, learning: validation mIoU .41 → .52, the learner waits 4 % of its time."
    )
    assert (found.phase, found.step, found.steps) == ("training", 83, 200)


@pytest.mark.parametrize(
    ("mious", "said"),
    [
        ((0.41, 0.42), "no clear change yet: validation mIoU .41 → .42"),
        ((0.41, 0.60, 0.50), "falling below its best: validation mIoU .41 → .50 after .60 at step"),
        ((0.50, 0.40), "falling below its best"),
        ((0.41,), "no clear change yet: validation mIoU .41 → .41"),
    ],
)
def test_change_is_claimed_only_beyond_what_luck_moves(
    tmp_path: Path, mious: tuple[float, ...], said: str
) -> None:
    lines = [validated(10 * n, miou) for n, miou in enumerate(mious)]
    assert said in state(write_run(tmp_path, validation=lines)).sentence


def test_few_queries_prove_little(tmp_path: Path) -> None:
    lines = [validated(n, miou, **{"val/queries": 16}) for n, miou in ((0, 0.41), (50, 0.47))]
    assert "no clear change" in state(write_run(tmp_path, validation=lines)).sentence


def test_without_validation_the_policy_s_own_figures_are_said(tmp_path: Path) -> None:
    found = state(write_run(tmp_path)).sentence
    assert "learning: sampled IoU .32 → .3" in found
    none = {"reward/iou": float("nan")}
    words = state(write_run(tmp_path / "other", changed=lambda _n: none)).sentence
    assert "policy reward" in words


@pytest.mark.parametrize(
    ("steps", "quiet_s", "phase", "start"),
    [
        (200, 9999.0, "finished", "Finished after 200 steps, it learned"),
        (83, 89.0, "training", "Step 83 of 200, learning"),
        (83, 7300.0, "quiet", "Quiet since 2 h at step 83 of 200, learning"),
        (0, None, "empty", "No step yet: the learner loads"),
    ],
)
def test_a_run_is_over_quiet_or_not_begun(
    tmp_path: Path, steps: int, quiet_s: float | None, phase: str, start: str
) -> None:
    found = state(write_run(tmp_path, steps=steps), quiet_s=quiet_s)
    assert found.phase == phase
    assert found.sentence.startswith(start)


def test_slow_steps_are_not_called_quiet(tmp_path: Path) -> None:
    write_run(tmp_path, changed=lambda _n: {"learner/step_s": 100.0})
    assert state(tmp_path, quiet_s=600).phase == "training"
    assert state(tmp_path, quiet_s=1200).phase == "quiet"


def test_a_run_without_settings_has_no_end(tmp_path: Path) -> None:
    found = state(write_run(tmp_path, settings={}))
    assert found.sentence.startswith("Step 100, learning")
    assert found.steps is None


def test_tiles_name_what_they_average(tmp_path: Path) -> None:
    tiles = {tile.label: tile for tile in state(write_run(tmp_path)).tiles}
    assert tiles["time of a step"].value == "2.0 s"
    assert tiles["time of a step"].note == "240 groups a minute"
    assert tiles["policy reward"].note == "the injected truth .900"
    assert tiles["staleness"].value == ".90 versions"


def test_waiting_is_a_share_of_the_last_steps_alone(tmp_path: Path) -> None:
    def waits(step: int) -> Figures:
        return {"learner/wait_s": 50.0 if step < 40 else 0.0}

    assert wait_share(RunFolder(write_run(tmp_path, changed=waits), "a").metrics()) == 0.0
    assert wait_share(RunFolder(tmp_path / "none", "a").metrics()) is None


def test_settings_of_the_fixture_are_those_of_a_run(tmp_path: Path) -> None:
    run = RunFolder(write_run(tmp_path), "a").run()
    assert run is not None
    assert run.learner.steps == SETTINGS["learner"]["steps"]
