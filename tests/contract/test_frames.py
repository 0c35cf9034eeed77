"""Both sides of the ring take byte-equal frames of a clip, whatever they come from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import tempsamp
from common import config
from common.video.loader import ClipLoader
from services.learner.model.policy import load_policy
from services.rollout.replica import Replica
from tests.fixtures.clips import make_clip

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "deploy/configs/demo.toml"


@pytest.mark.parametrize(
    ("cache_mode", "fills"), [(None, False), ("prefer", False), ("strict", True)]
)
def test_replica_and_learner_take_equal_bytes(
    tmp_path: Path, cache_mode: str | None, fills: bool
) -> None:
    video = make_clip(tmp_path / "a.mp4", num_frames=60, height_px=70, width_px=90)
    settings: dict[str, Any] = {"shared.video.roots": [str(tmp_path)]}
    if cache_mode is not None:
        settings |= {
            "shared.video.cache": str(tmp_path / "cache"),
            "shared.video.cache_mode": cache_mode,
        }
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    decoding = ClipLoader.of(config.load(CONFIG, overrides=[overrides[0]], environ={}).shared.video)
    clip = decoding.sample(video)
    frames = decoding.load(clip)
    if fills:
        preprocess(tmp_path, overrides=overrides)
        video.unlink()
    run = config.load(CONFIG, overrides=overrides, environ={})
    replica = Replica(run, url="").loader.load(clip)
    policy = load_policy(run.shared.model, load_frames=ClipLoader.of(run.shared.video).load)
    for taken in (replica, policy.clips._load_frames(clip)):
        assert (taken.shape, taken.dtype) == (frames.shape, frames.dtype)
        assert np.array_equal(taken, frames)


def preprocess(folder: Path, *, overrides: list[str]) -> None:
    """Fill the cache as a user does."""
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"query": "it", "videos": ["a.mp4"], "spans": [[0, 1]]}) + "\n")
    cache = json.loads(overrides[1].split("=", 1)[1])
    places = ["--cache", cache, "--video-root", folder, "--input", rows, "--config", CONFIG]
    words = ["data", "preprocess", "--workers", "1", *map(str, places)]
    done = CliRunner().invoke(tempsamp.app, words)
    assert done.exit_code == 0, done.output
