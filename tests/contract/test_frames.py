"""Both sides of the ring take byte-equal frames of a clip, whatever they come from."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common import config
from common.messages import ClipRef
from common.video.loader import ClipLoader
from tests.fixtures.clips import make_clip

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "deploy/configs/demo.toml"
REPLICA = """
from services.rollout.replica import Replica
frames = Replica(run, url="").loader.load(clip)
"""
LEARNER = """
from common.video.loader import ClipLoader
from services.learner.model.policy import load_policy
policy = load_policy(run.shared.model, load_frames=ClipLoader.of(run.shared.video).load)
frames = policy.clips._load_frames(clip)
"""
SIDE = """
import hashlib, json, sys
from common import config
from common.messages import ClipRef
run = config.load({config!r}, overrides=json.loads(sys.argv[1]))
clip = ClipRef.model_validate_json(sys.argv[2])
{take}
print(hashlib.sha256(frames.tobytes()).hexdigest(), *frames.shape)
"""


def taken_by(side: str, overrides: list[str], clip: ClipRef) -> str:
    """Digest and shape of the frames that a process of its own takes."""
    code = SIDE.format(config=str(CONFIG), take=side)
    arguments = [json.dumps(overrides), clip.model_dump_json()]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
    )
    return done.stdout.strip()


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
    wanted = " ".join(map(str, [hashlib.sha256(frames.tobytes()).hexdigest(), *frames.shape]))
    assert taken_by(REPLICA, overrides, clip) == wanted
    assert taken_by(LEARNER, overrides, clip) == wanted


def preprocess(folder: Path, *, overrides: list[str]) -> None:
    """Fill the cache as a user does."""
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"query": "it", "videos": ["a.mp4"], "spans": [[0, 1]]}) + "\n")
    cache = json.loads(overrides[1].split("=", 1)[1])
    places = ["--cache", cache, "--video-root", folder, "--input", rows, "--config", CONFIG]
    subprocess.run(
        [sys.executable, "-m", "tempsamp", "data", "preprocess", *map(str, places)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=200,
    )
