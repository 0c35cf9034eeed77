"""Torn lines, and files that are on the disk before they are named."""

import json
import logging
import os
from pathlib import Path

import pytest

from common.config import EarlyStop
from common.queue.ledger import read_ledger
from services.learner import metrics
from services.learner.curriculum.plateau import Plateau
from services.learner.state.best import METRIC, VALIDATIONS, Best, best_so_far
from services.learner.state.durable import cut_torn_line, replace_text, sync_tree
from services.learner.state.ledger import Ledger
from tests.fixtures.learner.checkpoint_rank import run_state

WHOLE = b'{"step": 1}\n{"step": 2}\n'


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths in the order in which they were synced."""
    paths: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


@pytest.mark.parametrize(
    "torn", [b'{"step": 3, "los', b"\0\0\0\0", b'{"step": 3, \0\0\0\n', b"\xff", b'{"step": 3}']
)
def test_a_torn_last_line_is_cut_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, torn: bytes
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(WHOLE + torn)
    cut_torn_line(path)
    assert path.read_bytes() == WHOLE
    (said,) = [record for record in caplog.records if record.message == "torn last line cut"]
    assert said.__dict__["path"] == str(path)
    assert said.levelno == logging.WARNING


@pytest.mark.parametrize("content", [b"", WHOLE, None])
def test_whole_lines_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_bytes(content)
    cut_torn_line(path)
    assert path.read_bytes() == content if content is not None else not path.exists()
    assert not caplog.records


def test_a_torn_line_of_metrics_does_not_keep_a_run_from_resuming(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(WHOLE + b'{"step": 3, "reward')
    metrics.keep_until(path, step=1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}]


def test_a_tree_is_synced_files_first_and_its_top_last(tmp_path: Path, synced: list[str]) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/deep").write_text("x")
    (tmp_path / "top").write_text("x")
    sync_tree(tmp_path)
    assert synced[-1] == str(tmp_path)
    assert synced.index(str(tmp_path / "a/b/deep")) < synced.index(str(tmp_path / "a/b"))
    assert {str(tmp_path / "top"), str(tmp_path / "a")} < set(synced)


def test_replaced_text_is_synced_before_its_name_is(tmp_path: Path, synced: list[str]) -> None:
    path = tmp_path / "x"
    path.write_text("before")
    replace_text(path, "after")
    assert path.read_text() == "after"
    assert synced == [str(tmp_path / f".x.{os.getpid()}.partial"), str(tmp_path)]
    assert list(tmp_path.iterdir()) == [path]


def test_a_ledger_that_lacks_its_end_is_said_and_its_torn_line_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Or the next line would stand in the torn one, and nobody could read the ledger any more."""
    path, feed = tmp_path / "ledger.jsonl", run_state(1).feed
    ledger = Ledger(path, size=0)
    ledger.begin(run_id="r", rows=tmp_path, feed=feed)
    size = ledger.seal(1, feed)
    path.write_bytes(path.read_bytes()[:-5])
    Ledger(path, size=size).seal(2, feed)
    assert [line.kind for line in read_ledger(path)] == ["run", "checkpoint"]
    said = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.message.partition(":")[0] for record in said] == [
        "the ledger lacks lines that the checkpoint contains"
    ]


def test_damaged_figures_do_not_keep_a_run_from_its_best_and_its_plateau(tmp_path: Path) -> None:
    path = tmp_path / VALIDATIONS
    lines = [{"step": step, "policy_version": step, METRIC: step / 10} for step in (1, 2, 3)]
    path.write_text("\n".join(map(json.dumps, lines)).replace('"policy_version": 2', '"pol\0'))
    assert best_so_far(tmp_path) == Best(step=3, value=0.3)
    plateau = Plateau(path, EarlyStop())
    assert not plateau.reached(since=0, before=9, patience=1)
    metrics.keep_until(path, step=1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:1]
