"""The whole ring beside TRL's GRPOTrainer: the same step, in turn.

Ours: redis-server, the reward service over HTTP, one vLLM replica, the learner, weights published
every step; clips lie decoded in the clip cache, as TRL's pictures do in memory. TRL: one process
that samples with the model it trains. Both get a fresh clip for every prompt and draw rewards
without meaning; tokens and patches are counted in the models' own calls (`counting.py`), in
training only: what our replica encodes is not in ours, what TRL encodes to sample is not in TRL's.
"""

import json
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from jobs.local.processes import Children
from jobs.local.redis import free_port, keep_redis
from tests.bench.learner.work import (
    ANSWER_TOKENS,
    GROUP_SIZE,
    IMAGES,
    LEARNING_RATE,
    PROMPTS,
    QUESTION,
    SIDE_PX,
    THREADS,
)
from tests.bench.spread import Spread
from tests.fixtures.learner.tiny_models import write_tiny_model

ROOT = Path(__file__).resolve().parents[3]
TRL_STEPS, RING_STEPS = 5, 40
WARM_UP_STEPS = 8
"""Of ours, left out: the first ones wait for the first answers."""
ROWS = (RING_STEPS + 2) * PROMPTS
"""The last steps' successors are asked too."""
FPS = 2.0
FACTOR_PX = 28
TIMEOUT_S = 240.0
CHECKPOINT_EVERY, DEFAULT_CHECKPOINT_EVERY = 5, 50


@dataclass(frozen=True)
class BesideTrl:
    """Theirs over ours; all a step."""

    vision_ratio: Spread
    token_ratio: Spread
    wall_ratio: Spread
    ours: list[dict[str, float]]
    theirs: list[dict[str, float]]

    @property
    def checkpoint_stall(self) -> Spread:
        """Seconds that a save holds the steps, over those of the steps between two
        (`learner.checkpoint_every`). A save whose predecessor is still written holds them longer.
        """
        shares = [one["save_s"] / (DEFAULT_CHECKPOINT_EVERY * one["wall_s"]) for one in self.ours]
        return Spread.of(shares)

    def report(self) -> dict[str, Any]:
        """For the JSON file: medians, spreads, and what they are made of."""
        ratios = {name: getattr(self, name) for name in RATIOS}
        return {
            **{name: ratio.median for name, ratio in ratios.items()},
            "spreads": {name: asdict(ratio) for name, ratio in ratios.items()},
            "ours": self.ours,
            "theirs": self.theirs,
        }


RATIOS = {
    "vision_ratio": "vision_patches",
    "token_ratio": "llm_token_forwards",
    "wall_ratio": "wall_s",
}


def measure(folder: Path, *, trl_python: Path, repeats: int) -> BesideTrl:
    """Both sides, `repeats` times in turn."""
    model = write_tiny_model(folder / "model", "qwen2_5_vl")
    rows = write_rows(folder)
    cache = decode_once(folder / "cache", rows=rows)
    ours, theirs = [], []
    for number in range(repeats):
        theirs.append(trl_step(model, trl_python))
        ours.append(ring_step(folder / f"run-{number}", model=model, rows=rows, cache=cache))
    return BesideTrl(
        **{name: ratio_of(theirs, ours, key) for name, key in RATIOS.items()},
        ours=ours,
        theirs=theirs,
    )


def ratio_of(
    theirs: Sequence[dict[str, float]], ours: Sequence[dict[str, float]], key: str
) -> Spread:
    """Theirs over ours, pair by pair."""
    pairs = zip(theirs, ours, strict=True)
    return Spread.of([their[key] / our[key] for their, our in pairs])


def trl_step(model: Path, python: Path) -> dict[str, float]:
    """What TRL takes for a step."""
    done = subprocess.run(
        [python, "-m", "tests.bench.learner.trl_side", model, str(TRL_STEPS)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"TRL ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def write_rows(folder: Path) -> Path:
    """Clips of 2 · IMAGES frames of noise, and a row for each."""
    frames = np.random.default_rng(0)
    lines = []
    for number in range(ROWS):
        name = f"{number}.mp4"
        with av.open(folder / name, "w") as container:
            stream = container.add_stream("libx264", rate=int(FPS))
            stream.width, stream.height, stream.pix_fmt = SIDE_PX, SIDE_PX, "yuv420p"
            for _ in range(2 * IMAGES):
                noise = frames.integers(0, 255, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
            container.mux(stream.encode())
        row = {
            "problem": f"<video>{QUESTION}",
            "answer": "<answer> 1.0 to 5.0 </answer>",
            "problem_type": "temporal grounding",
            "data_type": "video",
            "videos": [name],
        }
        lines.append(json.dumps(row) + "\n")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(lines))
    return rows


def decode_once(cache: Path, *, rows: Path) -> Path:
    """As before a training: TRL's pictures need no decoding either."""
    options = {
        "input": rows,
        "cache": cache,
        "video-root": rows.parent,
        "fps": FPS,
        "min-pixels": SIDE_PX**2,
        "max-pixels": SIDE_PX**2,
        "factor": FACTOR_PX,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "tempsamp", "data", "preprocess", *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=TIMEOUT_S)
    return cache


def ring_step(run_dir: Path, *, model: Path, rows: Path, cache: Path) -> dict[str, float]:
    """What the ring takes for a step, and how long a save holds the learner's steps."""
    logs = run_dir.with_suffix(".logs")
    counts = logs / "counts.json"
    environ = {
        "TEMPSAMP_REDIS_PASSWORD": secrets.token_hex(16),
        "TEMPSAMP_TOKEN": secrets.token_hex(16),
        "OMP_NUM_THREADS": str(THREADS - 1),
        "PYTHONPATH": str(ROOT),
    }
    with Children(logs) as children:
        redis_url = keep_redis(children, logs / "redis", environ["TEMPSAMP_REDIS_PASSWORD"])
        settings = ring_settings(run_dir, model=model, rows=rows, cache=cache, redis_url=redis_url)
        for service in ("reward", "rollout"):
            command = [sys.executable, "-m", "tempsamp", service, "serve", *settings]
            children.start(service, command, environ=environ)
        watched = [sys.executable, "-m", "tests.bench.learner.counted_learner", counts]
        learner = children.start("learner", [*watched, *settings], environ=environ, ends=True)
        deadline = time.monotonic() + TIMEOUT_S
        while not learner.is_done:
            children.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"the ring took longer than {TIMEOUT_S:.0f} s: {learner.tail}")
            time.sleep(0.2)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    laps = ("learner/wait_s", "learner/step_s", "learner/publish_s")
    walls_s = [sum(line[lap] for lap in laps) for line in lines[WARM_UP_STEPS:]]
    # The last one holds no step, and no line has it.
    num_saves = (RING_STEPS - 1) // CHECKPOINT_EVERY
    held_s = sum(line["learner/checkpoint_stall_s"] for line in lines)
    return {
        # Not the median: a step that waits for answers makes up for one that did not.
        "wall_s": statistics.mean(walls_s),
        "save_s": held_s / num_saves,
        **json.loads(counts.read_text()),
    }


def ring_settings(
    run_dir: Path, *, model: Path, rows: Path, cache: Path, redis_url: str
) -> list[str]:
    """Arguments of all three services."""
    port = free_port()
    changes = {
        "shared.run_id": "bench",
        "shared.model": str(model),
        "shared.redis_url": redis_url,
        "shared.reward_url": f"http://127.0.0.1:{port}",
        "shared.strategy": "none",
        "shared.group_size": GROUP_SIZE,
        "shared.video.fps": FPS,
        "shared.video.min_pixels": SIDE_PX**2,
        "shared.video.max_pixels": SIDE_PX**2,
        "shared.video.factor": FACTOR_PX,
        "shared.video.roots": [str(rows.parent)],
        "shared.video.cache": str(cache),
        "shared.video.cache_mode": "strict",
        "shared.sampling.max_tokens": ANSWER_TOKENS,
        "reward.port": port,
        "learner.rows": str(rows),
        "learner.run_dir": str(run_dir),
        "learner.steps": RING_STEPS,
        "learner.groups_per_step": PROMPTS,
        "learner.optimizer.lr": LEARNING_RATE,
        "learner.checkpoint_every": CHECKPOINT_EVERY,
        "learner.probe_every": 0,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    settings = ["--config", str(ROOT / "deploy/configs/demo.toml")]
    return settings + [word for item in overrides for word in ("--set", item)]
