"""`HeldOut` and the dash's playground against a real replica: vLLM, the shipped checkpoint, HTTP, a
token."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from common import config
from common.errors import EngineError
from common.rest.problems import MEDIA_TYPE
from common.secrets import tokens
from jobs.dash.app import create_app
from jobs.dash.playground.routes import Playground
from jobs.dash.site import Site
from jobs.demo.figures import Evaluation, evaluation_of
from jobs.evaluation.held_out import HeldOut
from jobs.evaluation.journal import read_records
from jobs.evaluation.settings import AnswerSampling
from jobs.toy import clips
from tests.fixtures.pages.run_folder import write_run
from tests.ring.conftest import Ring

NUM_CLIPS = 3
HERE = "http://127.0.0.1"


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


async def test_a_run_s_policy_is_asked_about_its_videos(
    ring: Ring, video_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ring.environ.items():
        monkeypatch.setenv(name, value)
    write_run(tmp_path / "run", steps=1, settings=json.loads(config.dump(ring.run())))
    site = Site(tmp_path)
    await site.run("run").watch.fleet()
    token = ring.environ["TEMPSAMP_GENERATE_TOKEN"]
    with Playground() as playground:
        app = create_app(site, tokens=tokens(), live=False, playground=playground)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url=HERE,
            headers={"Authorization": f"Bearer {token}"},
            timeout=120,
        ) as dash:
            (model,) = (await dash.get("/api/playground")).json()["models"]
            video = sorted(video_root.rglob("*.mp4"))[0]  # noqa: ASYNC240 - one folder
            name = {"name": str(video.relative_to(ring.folder))}
            clip = (await dash.post("/api/playground/choose", json=name)).json()
            question = {
                "clip": clip["clip"],
                "query": "the red circle is visible",
                "models": [model["key"]],
                "samples": 4,
                "max_tokens": 18,
            }
            answer = await dash.post("/api/playground/ask", json=question)
            uploaded = await dash.post(
                "/api/playground/upload",
                params={"name": "mine.mp4"},
                content=video.read_bytes(),
            )
            elsewhere = {**question, "clip": uploaded.json()["clip"]}
            refused = await dash.post("/api/playground/ask", json=elsewhere)
    events = answer.text.split("\n\n")
    (found,) = (json.loads(one.split("data: ", 1)[1]) for one in events if "found" in one[:12])
    answers = found["grounding"]["answers"]
    assert [one["is_greedy"] for one in answers] == [True, False, False, False, False]
    for one in answers:
        assert "".join(token["text"] for token in one["tokens"]) == one["text"]
        assert all(token["logprob"] <= 0 for token in one["tokens"])
        assert 0 < one["token_probability"] <= 1
    assert found["asked"]["num_frames"] == 16  # as the run trains: one a second
    assert found["versions"]["weights"] is not None
    assert MEDIA_TYPE not in refused.headers["content-type"]
    assert "opens videos below" in refused.text
