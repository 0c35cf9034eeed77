"""`jobs.evaluate` against a real rollout replica: vLLM, the shipped checkpoint, HTTP, a token."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from common.errors import EngineError
from common.messages import GeneratedAnswer, GenerateResponse, Sample, VersionSpan
from jobs import clips
from jobs.evaluate import Plan, evaluate, evaluate_rows
from jobs.grounding import Evaluation, Row, read_rows
from jobs.processes import Children
from jobs.replicas import Replicas, one_version
from tests.fixtures.redis_server import RedisServer

ROOT = Path(__file__).resolve().parents[2]
TOKEN = SecretStr("evaluation-secret")
PLAN = Plan(max_tokens=18, num_samples=4, sample_clips=2, concurrency=8)
NUM_CLIPS = 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def video_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    clips.write_split(folder, "validation", num_clips=NUM_CLIPS, num_processes=1)
    return folder


@pytest.fixture(scope="module")
def replica_url(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A replica that has only been started: nothing is answered until the engine is loaded."""
    port = free_port()
    settings = {
        "shared.model": ROOT / "deploy/tiny-qwen3vl",
        "shared.redis_url": redis_server.url,
        "shared.run_id": "evaluate-client",
        "shared.video.roots": json.dumps([str(tmp_path_factory.getbasetemp())]),
        "rollout.port": port,
    }
    arguments = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    with Children(tmp_path_factory.mktemp("logs")) as children:
        children.start(
            "rollout",
            [
                *(sys.executable, "-m", "tempsamp", "rollout", "serve"),
                *("--config", str(ROOT / "deploy/configs/demo.toml"), *arguments),
            ],
            environ={
                "TEMPSAMP_TOKEN": TOKEN.get_secret_value(),
                "TEMPSAMP_REDIS_PASSWORD": redis_server.password,
                "OMP_NUM_THREADS": "1",
            },
        )
        yield f"http://127.0.0.1:{port}"
        children.check()


def evaluated(url: str, video_root: Path, *, plan: Plan = PLAN) -> Evaluation:
    return evaluate_rows(
        video_root / "validation" / "rows.jsonl",
        endpoints=[url],
        sampling_video=clips.SAMPLING,
        plan=plan,
        video_root=video_root,
        token=TOKEN,
    )


async def evaluated_rows(
    rows: list[Row], *, urls: list[str], token: SecretStr, video_root: Path, retry_s: float = 60.0
) -> Evaluation:
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"}
    clients = [httpx.AsyncClient(base_url=url, headers=headers, timeout=60.0) for url in urls]
    try:
        return await evaluate(
            rows,
            replicas=Replicas(clients, concurrency=4, retry_s=retry_s),
            sampling_video=clips.SAMPLING,
            plan=PLAN,
            video_root=video_root,
        )
    finally:
        for client in clients:
            await client.aclose()


def test_a_loading_replica_is_waited_for_and_every_row_answered(
    replica_url: str, video_root: Path
) -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate_rows(
        video_root / "validation" / "rows.jsonl",
        endpoints=[replica_url],
        sampling_video=clips.SAMPLING,
        plan=PLAN,
        video_root=video_root,
        token=TOKEN,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert [answer.row_id for answer in result.answers] == [
        f"validation/rows:{number}" for number in range(1, 3 * NUM_CLIPS + 1)
    ]
    assert result.failures == ()
    assert result.policy_version == 0
    assert result.greedy.parse_rate > 0.8  # the shipped checkpoint knows the format
    assert all(len(answer.other_ious) == 2 for answer in result.answers)
    assert result.sampled is not None
    assert (result.sampled.num_queries, result.sampled.num_samples) == (2, 4)
    assert 0.05 < result.sampled.entropy_nats < 5
    assert [sampled.row_id for sampled in result.sampled_answers] == [
        "validation/rows:1",
        "validation/rows:4",
    ]
    assert seen == [(k, 3 * NUM_CLIPS + 2) for k in range(1, 3 * NUM_CLIPS + 3)]
    assert Evaluation.model_validate_json(result.model_dump_json()) == result


def test_the_same_weights_give_the_same_evaluation(replica_url: str, video_root: Path) -> None:
    first, second = (evaluated(replica_url, video_root) for _ in range(2))
    assert first.answers == second.answers
    assert [a.texts for a in first.sampled_answers] == [a.texts for a in second.sampled_answers]
    assert len({text for answer in first.sampled_answers for text in answer.texts}) > 2


def test_answers_of_other_weights_than_wanted_are_refused(
    replica_url: str, video_root: Path
) -> None:
    plan = Plan(max_tokens=18, num_samples=0, policy_version=7)
    with pytest.raises(EngineError, match=r"weight versions \[0\], wanted 7"):
        evaluated(replica_url, video_root, plan=plan)


async def test_a_missing_clip_and_an_overlong_prompt_are_listed_and_the_rest_is_scored(
    replica_url: str, video_root: Path
) -> None:
    rows = read_rows(video_root / "validation" / "rows.jsonl")
    missing = Row(**rows[0].model_dump() | {"row_id": "missing", "clip": "validation/none.mp4"})
    overlong = Row(
        **rows[1].model_dump() | {"row_id": "overlong", "problem": "<video>" + "when? " * 2000}
    )
    result = await evaluated_rows(
        [*rows[3:6], missing, overlong], urls=[replica_url], token=TOKEN, video_root=video_root
    )
    assert result.greedy.num_answers == len(result.answers) == 3
    listed = {(failure.row_id, failure.asked_for): failure.error for failure in result.failures}
    assert set(listed) == {
        ("missing", "greedy"),
        ("overlong", "greedy"),
        ("missing", "sampled"),
    }
    assert "none.mp4" in listed["missing", "greedy"]
    assert "422" in listed["overlong", "greedy"]


async def test_when_nothing_is_answered_the_first_reason_is_given(
    replica_url: str, video_root: Path
) -> None:
    (row, *_) = read_rows(video_root / "validation" / "rows.jsonl")
    broken = Row(**row.model_dump() | {"clip": "validation/none.mp4"})
    with pytest.raises(EngineError, match=r"none of 1 queries was answered.*none\.mp4"):
        await evaluated_rows([broken], urls=[replica_url], token=TOKEN, video_root=video_root)


async def test_a_wrong_token_ends_the_evaluation_and_names_the_variable(
    replica_url: str, video_root: Path
) -> None:
    rows = read_rows(video_root / "validation" / "rows.jsonl")
    with pytest.raises(EngineError, match=r"401.*TEMPSAMP_TOKEN"):
        await evaluated_rows(
            rows, urls=[replica_url], token=SecretStr("other"), video_root=video_root
        )


async def test_a_dead_replica_beside_a_live_one_costs_nothing_but_time(
    replica_url: str, video_root: Path
) -> None:
    rows = read_rows(video_root / "validation" / "rows.jsonl")
    dead = f"http://127.0.0.1:{free_port()}"
    result = await evaluated_rows(
        rows, urls=[dead, replica_url], token=TOKEN, video_root=video_root
    )
    assert (len(result.answers), result.failures) == (len(rows), ())


async def test_when_nobody_can_be_reached_the_evaluation_ends_in_bounded_time(
    video_root: Path,
) -> None:
    rows = read_rows(video_root / "validation" / "rows.jsonl")
    dead = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(EngineError, match=r"no replica answered within 1 s.*ConnectError"):
        await evaluated_rows(rows, urls=[dead], token=TOKEN, video_root=video_root, retry_s=1.0)


def test_video_paths_start_at_the_folder_of_the_rows_unless_a_root_is_given(
    replica_url: str, video_root: Path, tmp_path: Path
) -> None:
    source = video_root / "validation" / "rows.jsonl"
    os.symlink(video_root / "validation", tmp_path / "validation")
    (tmp_path / "rows.jsonl").write_text(source.read_text())
    result = evaluate_rows(
        tmp_path / "rows.jsonl",
        endpoints=[replica_url],
        sampling_video=clips.SAMPLING,
        plan=Plan(max_tokens=18, num_samples=0),
        token=TOKEN,
    )
    assert (len(result.answers), result.sampled) == (3 * NUM_CLIPS, None)


def reply(*versions: int) -> GenerateResponse:
    """One answer whose tokens were written by these versions in turn."""
    spans = tuple(VersionSpan(version=v, start=k, end=k + 1) for k, v in enumerate(versions))
    count = len(versions)
    sample = Sample(
        token_ids=(5,) * count,
        logprobs=(-0.5,) * count,
        version_spans=spans,
        finish_reason="stop",
        provenance="policy",
    )
    answer = GeneratedAnswer(sample=sample, text="")
    return GenerateResponse(
        prompt_token_ids=(1,), num_visual_tokens=0, grid_thw=(1, 1, 1), answers=(answer,)
    )


def test_answers_of_two_weight_versions_are_not_one_evaluation() -> None:
    assert one_version([reply(3, 3), reply(3)]) == 3
    for mixed in ([reply(3), reply(0)], [reply(3, 4)]):
        with pytest.raises(EngineError, match="wanted one"):
            one_version(mixed)
