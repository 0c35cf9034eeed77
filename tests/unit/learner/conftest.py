"""Checkpoints and clips that several of the learner's tests read."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from services.learner.parallel import Ranks, start_ranks
from tests.fixtures.learner.groups import write_clip
from tests.fixtures.learner.ranks import RunRanks
from tests.fixtures.learner.tiny_models import Architecture, write_tiny_model
from tests.fixtures.learner.warm import Warm


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Architecture], Path]:
    """Architecture → folder of a tiny random checkpoint."""

    @cache
    def folder(architecture: Architecture) -> Path:
        return write_tiny_model(tmp_path_factory.mktemp(architecture), architecture)

    return folder


@pytest.fixture(scope="session")
def clip_paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two clips of equal length and size."""
    folder = tmp_path_factory.mktemp("clips")
    return tuple(write_clip(folder / f"{seed}.mp4", seed=seed) for seed in range(2))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """A single rank on the CPU: its collectives are real, and it meets nobody."""
    ranks = start_ranks("cpu", timeout_s=30)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def run_ranks(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> RunRanks:
    """Runs several ranks of a module."""
    return RunRanks(warm, tmp_path_factory.mktemp("ranks") / "ranks.log")
