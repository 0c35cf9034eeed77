"""`HeldOut` against a real replica: vLLM, the shipped checkpoint, HTTP, a token."""

import asyncio
import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from common.errors import EngineError
from jobs.demo.figures import Evaluation, evaluation_of
from jobs.evaluation.held_out import HeldOut
from jobs.evaluation.journal import read_records
from jobs.evaluation.settings import AnswerSampling
from jobs.toy import clips
from tests.ring.conftest import Ring

NUM_CLIPS = 3


@pytest.fixture(scope="module")
def video_root(ring: Ring) -> Path:
    """Clips where the replica may read them."""
    folder = ring.folder / "held-out"
    clips.write_split(folder, "validation", num_clips=NUM_CLIPS, num_processes=1)
    return folder


def held_out(ring: Ring, rows: Path, *, video_root: Path, token: str | None = None) -> HeldOut:
    shared = ring.run(shared__video__roots=[str(video_root)]).shared
    return HeldOut(
        rows,
        video=shared.video,
        sampling=AnswerSampling(max_tokens={"answer": 18}, num_samples=4, sampled="clips", seed=0),
        token=shared.tokens.of("generate") if token is None else SecretStr(token),
    )


def answered(ring: Ring, asked: HeldOut, *, out: Path) -> Evaluation:
    (replica,) = ring.replicas()
    version = replica.version or 0  # as loaded, until a learner of this session brought weights
    asyncio.run(asked.ask(version, endpoints=[replica.url], out=out))
    return evaluation_of(read_records(out))


def test_every_row_is_answered_twice_alike(ring: Ring, video_root: Path, tmp_path: Path) -> None:
    asked = held_out(ring, video_root / "validation" / "rows.jsonl", video_root=video_root)
    first, second = [answered(ring, asked, out=tmp_path / name) for name in ("first", "second")]
    assert [answer.record.id for answer in first.answers] == [
        f"line {number}" for number in range(1, 3 * NUM_CLIPS + 1)
    ]
    assert first.failures == ()
    assert first.greedy.parse_rate > 0.8  # the shipped checkpoint knows the format
    assert all(len(answer.other_ious) == 2 for answer in first.answers)
    assert first.sampled is not None
    assert (first.sampled.num_queries, first.sampled.num_samples) == (NUM_CLIPS, 4)
    assert 0.05 < first.sampled.entropy_nats < 5
    texts = {text for answer in first.answers for text in answer.record.samples}
    assert len(texts) > 2
    assert second.greedy == first.greedy
    assert [answer.record.samples for answer in second.answers] == [
        answer.record.samples for answer in first.answers
    ]


def test_an_overlong_prompt_is_listed_and_the_rest_is_scored(
    ring: Ring, video_root: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    long, *others = (video_root / "validation" / "rows.jsonl").read_text().splitlines()[:3]
    overlong = json.dumps(json.loads(long) | {"problem": "<video>" + "when? " * 2000})
    rows.write_text("\n".join([overlong, *others]) + "\n")
    found = answered(ring, held_out(ring, rows, video_root=video_root), out=tmp_path / "out")
    assert [(failure.id, failure.failure) for failure in found.failures] == [("line 1", "engine")]
    assert "422" in (found.failures[0].error or "")
    assert found.greedy.num_answers == 2


def test_a_wrong_token_ends_it_and_names_the_variable(
    ring: Ring, video_root: Path, tmp_path: Path
) -> None:
    rows = video_root / "validation" / "rows.jsonl"
    asked = held_out(ring, rows, video_root=video_root, token="other")
    with pytest.raises(EngineError, match=r"401.*TEMPSAMP_TOKEN"):
        answered(ring, asked, out=tmp_path)
