"""What README and the manual promise of a whole ring, run as it stands there."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from jobs.toy import clips
from tests.fixtures.pages.documents import example, run_script
from tests.ring.conftest import ROOT, Ring

STEPS = 2
TIMEOUT_S = 600.0

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def folder(ring: Ring, request: pytest.FixtureRequest) -> Path:
    """Where the ring's replica may open videos."""
    path = ring.folder / request.node.name
    path.mkdir()
    return path


def write_run_file(path: Path, ring: Ring, **changed: object) -> None:
    """A run file that needs no GPU, with this ring's addresses in it, as somebody edits a copy."""
    run = tomllib.loads((ROOT / "deploy/configs/demo.toml").read_text(encoding="utf-8"))
    for override in ring.overrides(**changed):
        key, _, value = override.partition("=")
        *sections, last = key.split(".")
        place: dict[str, Any] = run
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = json.loads(value)
    path.write_text("\n".join(_toml(run)) + "\n", encoding="utf-8")


def _toml(table: dict[str, Any], name: str = "") -> list[str]:
    values = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"[{name}]"] if name and values else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _toml(value, f"{name}.{key}" if name else key)
    return lines


def write_annotations(folder: Path, *, num_clips: int) -> None:
    """The demo's training clips, annotated as TimeLens publishes."""
    rows = clips.write_split(folder / "videos/videos", "train", num_clips=num_clips)
    videos: dict[str, list[dict[str, Any]]] = {}
    for row in map(json.loads, rows.read_text(encoding="utf-8").splitlines()):
        event = {"query": row["query"], "span": row["spans"][0]}
        videos.setdefault(row["videos"][0], []).append(event)
    lines = [
        {"source": "toy", "video_path": video, "duration": clips.DURATION_S, "events": events}
        for video, events in videos.items()
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "annotations.jsonl").write_text(text, encoding="utf-8")


def test_own_videos_are_trained_on_and_evaluated(ring: Ring, folder: Path) -> None:
    write_annotations(folder, num_clips=12)
    test_rows = clips.write_split(folder / "videos", "test", num_clips=2)
    (folder / "test.jsonl").write_bytes(test_rows.read_bytes())
    write_run_file(
        folder / "run.toml",
        ring,
        shared__video__roots=[str(folder / "videos")],
        shared__video__cache="cache",
        learner__rows="train.jsonl",
        learner__run_dir="runs/mine",
        learner__steps=STEPS,
        learner__groups_per_step=4,
    )
    script = example("train-your-own").script.replace("step-000200", f"step-{STEPS:06d}")
    run_script(script, cwd=folder, environ=ring.environ, timeout_s=TIMEOUT_S)

    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 36
    metrics = (folder / "runs/mine/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, STEPS]
    summary = json.loads((folder / "runs/mine/eval/test/summary.json").read_text())
    assert summary["answered"] == summary["queries"] == 6
    assert (folder / "runs/mine/eval/report.html").is_file()


def test_one_video_is_asked_about(ring: Ring, folder: Path) -> None:
    """The manual's `ground`, of the ring's own replica."""
    (folder / "deploy").symlink_to(ROOT / "deploy")
    (video,) = [word for word in example("ground").commands[0] if word.endswith("00014.mp4")]
    clips.write_split(folder / "runs/demo-data", "test", num_clips=15)
    assert (folder / video).is_file()
    (replica,) = ring.wait_for_replicas()
    script = f"{example('ground').script.rstrip()} --endpoint {replica.url}"
    shown = run_script(script, cwd=folder, environ=ring.environ, timeout_s=TIMEOUT_S)
    assert "greedy answer" in shown
    assert (folder / "g.png").is_file()
    assert (folder / "g.mp4").is_file()
