"""`tempsamp doctor` beside a ring that runs: its own engine and learner agree, the fleet is met."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.clips import make_clip
from tests.fixtures.rows import event_row, write_rows
from tests.ring.conftest import ROOT, Ring


@pytest.mark.timeout(700)
def test_a_run_that_works_is_found_to_work(ring: Ring, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", num_frames=48)
    write_rows(tmp_path / "rows.jsonl", (event_row(number) for number in range(4)))
    arguments = ring.arguments(
        shared__video__roots=[str(tmp_path)],
        learner__rows=str(tmp_path / "rows.jsonl"),
        learner__run_dir=str(tmp_path / "run"),
        shared__max_prompt_tokens=1000,
    )
    done = subprocess.run(
        [sys.executable, "-m", "tempsamp", "doctor", "--fleet", "--json", *arguments],
        cwd=ROOT,
        env={**os.environ, **ring.environ},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    found = {(one["area"], one["name"]): one for one in json.loads(done.stdout)["findings"]}
    bad = {key: one["found"] for key, one in found.items() if one["level"] == "fail"}
    assert bad == {}, done.stderr
    assert found["engine", "token ids, visual tokens, grid"]["level"] == "ok"
    assert found["engine", "log-probabilities"]["level"] == "ok"
    assert found["engine", "caches after an update"]["level"] == "ok"
    (replica,) = ring.replicas()
    assert found["fleet", replica.replica]["level"] == "ok"
    assert found["fleet", f"{replica.replica} software"]["level"] == "ok"
    assert found["fleet", f"{replica.replica} weight path"]["found"].startswith("met over gloo")
    # Nothing of the run was touched.
    assert not (tmp_path / "run").exists()
