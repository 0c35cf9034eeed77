"""A small run whose inputs are all there; tests take one of them away."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common import config
from common.config import Run
from tests.fixtures.clips import make_clip
from tests.fixtures.pages.documents import ROOT
from tests.fixtures.rows import event_row, write_rows

MODEL = ROOT / "deploy/tiny-qwen3vl"


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=48)


@pytest.fixture
def videos(clip_file: Path, tmp_path: Path) -> Path:
    """A root with clip.mp4, and rows.jsonl about it."""
    root = tmp_path / "videos"
    root.mkdir()
    shutil.copy(clip_file, root / "clip.mp4")
    write_rows(root / "rows.jsonl", (event_row(number) for number in range(4)))
    return root


@pytest.fixture
def make_run(videos: Path, tmp_path: Path) -> Callable[..., Run]:
    """The run on those videos, with settings of a test's own."""

    def make(*settings: str) -> Run:
        given = (
            f"shared.video.roots=['{videos}']",
            f"learner.rows={videos / 'rows.jsonl'}",
            f"learner.run_dir={tmp_path / 'run'}",
            f"shared.model={MODEL}",
            "learner.optimizer.warmup_steps=0",
        )
        return config.load(ROOT / "deploy/configs/demo.toml", overrides=[*given, *settings])

    return make


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))
