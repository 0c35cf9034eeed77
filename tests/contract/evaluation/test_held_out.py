"""`HeldOut` and `Validation` over real HTTP: folders, resuming, and what is said about trouble.

How questions are carried is `test_eval_client.py`; that a real replica answers them,
`tests/ring/test_held_out_answers.py`.
"""

import json
import re
from pathlib import Path

import pytest

from common import config
from common.config import Video
from common.errors import ConfigError, EngineError
from common.messages import GenerateRequest
from jobs.evaluation.held_out import HeldOut, Validation
from jobs.evaluation.journal import read_records
from jobs.evaluation.settings import AnswerSampling
from tests.fixtures.clips import make_clip
from tests.fixtures.replicas.stand_in_replica import question_of, refuse, serving, unused_url

ROOT = Path(__file__).resolve().parents[3]
CLIPS = ("a.mp4", "b.mp4")
QUERIES = ("query 1", "query 2", "query 3", "query 4")
"""Two about each clip; what is asked for in query n starts after n / 4 s."""
SAMPLING = AnswerSampling(max_tokens={"answer": 16}, num_samples=3, sampled="clips", seed=0)


def span(query: str) -> tuple[float, float]:
    start_s = int(query.rpartition(" ")[2]) / 4
    return start_s, start_s + 1


def truth(request: GenerateRequest) -> str:
    query = re.search(r"query \d", question_of(request))
    assert query
    start_s, end_s = span(query[0])
    return f"<answer> {start_s:.2f} to {end_s:.2f} </answer>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of four seconds, and rows that name them relative to it."""
    root = tmp_path_factory.mktemp("held-out")
    for name in CLIPS:
        make_clip(root / name, num_frames=32)
    lines = [
        json.dumps({"query": query, "videos": [CLIPS[number // 2]], "spans": [span(query)]})
        for number, query in enumerate(QUERIES)
    ]
    (root / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return root


def held_out(folder: Path, *, limit: int | None = None, concurrency: int = 4) -> HeldOut:
    return HeldOut(
        folder / "rows.jsonl",
        video=Video(roots=(folder,), min_pixels=1024, max_pixels=1024, factor=16),
        sampling=SAMPLING,
        limit=limit,
        concurrency=concurrency,
    )


async def test_every_row_is_answered_and_one_query_of_each_clip_sampled(
    folder: Path, tmp_path: Path
) -> None:
    with serving(truth, version=7) as replica:
        summary = await held_out(folder).ask(7, endpoints=[replica.url], out=tmp_path)
    assert summary.score is not None
    assert summary.score.protocols["exact"].miou is not None
    assert summary.score.protocols["exact"].miou.mean == pytest.approx(100)
    records = sorted(read_records(tmp_path), key=lambda record: record.id)
    assert [record.query for record in records] == list(QUERIES)
    assert [len(record.samples) for record in records] == [3, 0, 3, 0]
    num_tokens = 3 * (len(records[0].samples[0]) + 1)
    assert records[0].samples_tokens == num_tokens
    assert records[0].samples_surprise_nats == pytest.approx(0.25 * num_tokens)
    assert records[1].samples_tokens is None


async def test_a_second_time_nobody_is_asked_and_figures_are_equal(
    folder: Path, tmp_path: Path
) -> None:
    with serving(truth) as replica:
        first = await held_out(folder).ask(0, endpoints=[replica.url], out=tmp_path)
    again = await held_out(folder).ask(0, endpoints=[unused_url()], out=tmp_path)
    assert again == first


async def test_more_queries_than_the_first_time_are_asked_alone(
    folder: Path, tmp_path: Path
) -> None:
    with serving(truth) as replica:
        two = held_out(folder, limit=2)
        await two.ask(0, endpoints=[replica.url], out=tmp_path)
        asked = len(replica.questions)
        await held_out(folder).ask(0, endpoints=[replica.url], out=tmp_path)
    assert [question.query for question in two.questions] == list(QUERIES[:2])
    assert not any(query in text for text in replica.questions[:asked] for query in QUERIES[2:])
    assert not any(query in text for text in replica.questions[asked:] for query in QUERIES[:2])


async def test_a_folder_of_another_version_is_refused_with_the_difference(
    folder: Path, tmp_path: Path
) -> None:
    with serving(truth) as replica:
        await held_out(folder).ask(0, endpoints=[replica.url], out=tmp_path)
        with pytest.raises(ConfigError, match=r"model\.version: found 0, wanted 1"):
            await held_out(folder).ask(1, endpoints=[replica.url], out=tmp_path)


async def test_replicas_of_other_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    with (
        serving(truth, version=3) as replica,
        pytest.raises(EngineError, match=r"weight versions \[3\], wanted 2"),
    ):
        await held_out(folder).ask(2, endpoints=[replica.url], out=tmp_path)


async def test_what_came_before_an_evaluation_broke_off_is_kept(
    folder: Path, tmp_path: Path
) -> None:
    def then_locked(_: GenerateRequest) -> str:
        return truth(_) if len(replica.requests) < 4 else refuse(401, "who are you?")

    with (
        serving(then_locked) as replica,
        pytest.raises(EngineError, match=r"401.*TEMPSAMP_TOKEN"),
    ):
        await held_out(folder, concurrency=1).ask(0, endpoints=[replica.url], out=tmp_path)
    kept = [record.query for record in read_records(tmp_path)]
    with serving(truth) as replica:
        await held_out(folder).ask(0, endpoints=[replica.url], out=tmp_path)
    assert len(kept) == 2
    assert len(read_records(tmp_path)) == len(QUERIES)
    assert not any(query in text for text in replica.questions for query in kept)


def test_a_missing_clip_is_named_before_anybody_is_asked(folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    row = {"query": "?", "videos": ["none.mp4"], "spans": [[0.0, 1.0]]}
    rows.write_text((folder / "rows.jsonl").read_text() + json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match=r"no file for 1 videos of 1 queries.*none\.mp4"):
        HeldOut(rows, video=Video(roots=(folder,)), sampling=SAMPLING)


async def test_a_refused_question_is_listed_and_the_rest_is_scored(
    folder: Path, tmp_path: Path
) -> None:
    def answer(request: GenerateRequest) -> str:
        return refuse(422, "too long") if "query 2" in question_of(request) else truth(request)

    with serving(answer) as replica:
        summary = await held_out(folder).ask(0, endpoints=[replica.url], out=tmp_path)
    assert summary.score is not None
    exact = summary.score.protocols["exact"]
    assert (exact.scored, exact.failures["engine"]) == (3, 1)
    assert [record.query for record in read_records(tmp_path) if record.failure] == ["query 2"]


async def test_when_nothing_is_answered_there_are_no_figures(folder: Path, tmp_path: Path) -> None:
    with (
        serving(lambda _: refuse(422, "too long")) as replica,
        pytest.raises(EngineError, match=rf"none of 4 queries was answered; {tmp_path} lists"),
    ):
        await held_out(folder).ask(0, endpoints=[replica.url], out=tmp_path)


async def test_a_dead_replica_beside_a_live_one_costs_nothing_but_time(
    folder: Path, tmp_path: Path
) -> None:
    with serving(truth) as replica:
        await held_out(folder).ask(0, endpoints=[unused_url(), replica.url], out=tmp_path)
    assert {record.failure for record in read_records(tmp_path)} == {None}


async def test_when_nobody_can_be_reached_it_ends_in_bounded_time(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=r"nobody answered within 0 s.*ConnectError"):
        await held_out(folder).ask(0, endpoints=[unused_url()], out=tmp_path, retry_s=0.3)


def validation(folder: Path, rows: str) -> Validation:
    changed = {
        "shared.video.roots": [str(folder)],
        "learner.validation.rows": str(folder / rows),
        "learner.validation.limit": 3,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in changed.items()]
    return Validation(config.load(ROOT / "deploy/configs/demo.toml", overrides=overrides))


async def test_the_learner_is_told_shares_and_counts(folder: Path, tmp_path: Path) -> None:
    def answer(request: GenerateRequest) -> str:
        asked = question_of(request)
        return refuse(422, "too long") if "query 1" in asked else truth(request)

    with serving(answer, version=50) as replica:
        figures = await validation(folder, "rows.jsonl")(50, urls=[replica.url], folder=tmp_path)
    assert figures == {
        "val/miou": pytest.approx(1.0),
        "val/r1_at_0.3": pytest.approx(1.0),
        "val/r1_at_0.5": pytest.approx(1.0),
        "val/r1_at_0.7": pytest.approx(1.0),
        "val/parse_rate": 1.0,
        "val/queries": 2,
        "val/failures": 1,
    }
    assert len(replica.requests) == 3  # greedy ones, of the first three rows


def test_validation_rows_that_are_not_there_name_the_knob(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"learner\.validation\.rows: .*none\.jsonl"):
        validation(folder, "none.jsonl")
