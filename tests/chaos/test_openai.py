"""`tempsamp eval --openai` and vLLM's own server, beside a replica of the same checkpoint.

Two engines load for it, which takes a minute or two.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tempsamp
from jobs.toy import clips
from tests.fixtures.servers import vllm_server

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
KEY = "sk-of-the-test"
NUM_CLIPS = 8
QUERIES = 3 * NUM_CLIPS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("openai")
    clips.write_split(root, "test", num_clips=NUM_CLIPS, num_processes=1)
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    with vllm_server.serving(folder / "vllm", "--trust-request-mm-kwargs", key=KEY) as url:
        yield url


def evaluated(folder: Path, name: str, *options: str) -> tuple[float, dict[str, dict[str, Any]]]:
    """mIoU in percent, and records by id."""
    given = ["--bench", f"{folder}/test/rows.jsonl", "--video-root", f"{folder}", "--no-report"]
    given += ["--config", f"{vllm_server.ROOT}/deploy/configs/demo.toml"]
    out = folder / "runs" / name
    ended = CliRunner(env={"TEMPSAMP_OPENAI_KEY": KEY}).invoke(
        tempsamp.app, ["eval", *given, "--out", f"{out}", "--samples", "2", *options]
    )
    assert ended.exit_code == 0, (ended.output, ended.exception)
    score = json.loads((out / "rows" / "summary.json").read_text())["score"]
    lines = (out / "rows" / "predictions.jsonl").read_text().splitlines()
    records = {record["id"]: record for record in map(json.loads, lines)}
    assert len(records) == QUERIES
    return score["protocols"]["exact"]["miou"]["mean"], records


def same_texts(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> int:
    return sum(one[key]["text"] == other[key]["text"] for key in one)


def test_answers_are_those_of_a_replica_of_the_checkpoint(folder: Path, server: str) -> None:
    miou, replica = evaluated(folder, "replica", "--model", str(vllm_server.MODEL))
    openai = ("--openai", server, "--frames-as")
    exact_miou, exact = evaluated(folder, "sequence", *openai, "sequence")
    assert (exact_miou, same_texts(replica, exact)) == (miou, QUERIES)
    for key, record in replica.items():
        assert exact[key]["prompt_tokens"] == record["prompt_tokens"]
        assert exact[key].get("answer_logprob") == pytest.approx(
            record.get("answer_logprob"), abs=1e-5
        )
        assert len(exact[key]["samples"]) == 2
    _, file = evaluated(folder, "video", *openai, "video")
    # The same frames, evenly spaced: some times differ by a tenth of a second.
    assert same_texts(replica, file) >= 0.8 * QUERIES
    assert {key: file[key]["prompt_tokens"] for key in file} == {
        key: replica[key]["prompt_tokens"] for key in replica
    }
    _, pictures = evaluated(folder, "images", *openai, "images")
    assert all("text" in record for record in pictures.values())
