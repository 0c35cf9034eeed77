"""Settings of a demo: over its run file, and said to be wrong before anything starts."""

from pathlib import Path

import pytest

from common import config
from common.errors import ConfigError
from jobs.demo import run
from jobs.demo.run import CONFIG, NO_REDIS, Demo, run_demo


def demo(*settings: str) -> Demo:
    return Demo(
        method="tempsamp",
        steps=None,
        seed=0,
        name="never-started",
        resume=False,
        split="test",
        eval_queries=None,
        settings=settings,
    )


def test_a_setting_stands_over_the_demo_s_run_file() -> None:
    asked = demo("learner.checkpoint_every=7")
    run = config.load(CONFIG, overrides=asked.overrides(NO_REDIS), environ=asked.environ)
    assert run.learner.checkpoint_every == 7
    assert run.learner.run_dir == asked.run_dir


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("learner.checkpoint_evry=7", "checkpoint_evry"),
        ("shared.run_id=other", "the demo sets shared.run_id itself"),
        ("shared.seed=3", "the demo sets shared.seed itself"),
    ],
)
def test_a_wrong_one_is_said_before_anything_is_started(setting: str, words: str) -> None:
    refused = demo(setting)
    with pytest.raises(ConfigError, match=words):
        run_demo(refused, write_report=False)
    assert not refused.run_dir.exists()


def test_a_place_that_cannot_be_written_is_said_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "runs").write_text("in the way")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    demo = Demo("grpo", 1, 0, "x", resume=False, split="test", eval_queries=None)
    with pytest.raises(ConfigError, match=r"runs: found .*/runs: Not a directory"):
        run_demo(demo, write_report=False)
