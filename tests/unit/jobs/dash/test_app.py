"""What the page asks for, over HTTP: figures, groups, evaluations, and who is let in."""

import asyncio
import json
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from common.errors import ConfigError
from common.secrets import Tokens
from common.video.sampling import VideoSampling
from jobs.dash.app import POLICY, create_app, page_folder
from jobs.dash.command import refuse_open
from jobs.dash.folder import RunFolder
from jobs.dash.site import Site
from jobs.dash.watch import Ending, Live, Watch, events
from jobs.evaluation.scoring.matching import match, own_questions
from jobs.evaluation.scoring.predictions import read_predictions
from jobs.evaluation.scoring.score import score_matched
from jobs.evaluation.settings import AnswerSampling, Model, OpenAIServer, RunSettings, Served
from jobs.evaluation.summary import Summary
from tests.fixtures.clips import make_clip
from tests.fixtures.pages.run_folder import (
    SETTINGS,
    kept_group,
    validated,
    write_groups,
    write_lines,
    write_run,
)
from tests.fixtures.servers.redis_server import RedisServer
from tests.fixtures.wire import replica_status

ROOT = Path(__file__).resolve().parents[4]
HERE = "http://127.0.0.1"
SERVED = Served(version=50)


def client(
    root: Path, *, tokens: Tokens | None = None, base_url: str = HERE, **headers: str
) -> httpx.AsyncClient:
    app = create_app(Site(root), tokens=tokens or Tokens(), live=False)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base_url, headers=headers)


async def asked(root: Path, path: str, **parameters: Any) -> Any:
    async with client(root) as dash:
        answer = await dash.get(f"/api/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    lines = [validated(0, 0.41), validated(50, 0.52)]
    write_run(tmp_path / "one", validation=lines)
    write_run(tmp_path / "two", steps=3, settings={})
    write_groups(
        tmp_path / "one",
        [kept_group(step=step, prompt_id=f"p{step}") for step in range(1, 100)],
    )
    return tmp_path


async def test_runs_are_listed_with_what_became_of_them(runs: Path) -> None:
    found = {run["name"]: run for run in await asked(runs, "runs")}
    assert set(found) == {"one", "two"}
    assert found["one"]["sentence"].startswith("Step 100 of 200, learning: validation mIoU .41")
    assert found["two"]["steps"] is None


async def test_a_run_that_appears_later_is_listed_and_one_that_is_gone_is_not(runs: Path) -> None:
    async with client(runs) as dash:
        assert (await dash.get("/api/overview", params={"run": "later"})).status_code == 404
        write_run(runs / "later", steps=1)
        names = {run["name"] for run in (await dash.get("/api/runs")).json()}
        assert names == {"one", "two", "later"}
        assert (await dash.get("/api/overview", params={"run": "later"})).status_code == 200


async def test_an_overview_says_where_a_run_stands(runs: Path) -> None:
    found = await asked(runs, "overview", run="one")
    assert found["state"]["step"] == 100
    assert found["advice"] == []
    assert found["live"]["fleet"] is None


async def test_curves_are_of_the_steps_asked_for(runs: Path) -> None:
    panels = await asked(runs, "curves", run="one", low=20, high=29)
    reward = next(panel for panel in panels if panel["name"] == "reward")
    assert reward["lines"][0]["x"] == list(range(20, 30))
    async with client(runs) as dash:
        refused = await dash.get("/api/curves", params={"run": "one", "buckets": 100_000})
    assert refused.status_code == 422


async def test_groups_come_in_parts(runs: Path) -> None:
    first = await asked(runs, "groups", run="one")
    assert (first["total"], first["kept"], len(first["groups"])) == (99, 99, 60)
    assert (first["groups"][0]["step"], first["steps"], first["rewards"]) == (
        99,
        [1, 99],
        [0.1, 0.9],
    )
    rest = await asked(runs, "groups", run="one", offset=60)
    assert [group["step"] for group in rest["groups"]] == list(range(39, 0, -1))
    assert (await asked(runs, "groups", run="one", kind="all_tied"))["total"] == 0
    assert (await asked(runs, "groups", run="two"))["kept"] == 0


async def test_a_group_is_shown_and_found_elsewhere(runs: Path) -> None:
    found = await asked(runs, "groups/one", run="one", step=7, prompt="p7")
    assert (found["run"], found["step"], len(found["answers"])) == ("one", 7, 3)
    same = await asked(runs, "groups/same", run="one", step=7, prompt="p7")
    assert len(same["places"]) == 99


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("groups/one?run=one&step=7&prompt=none", 404, "step 7 has no group 'none'"),
        ("groups/one?run=one&step=700&prompt=p7", 404, "step 700 is not kept"),
        ("overview?run=none", 404, "no run 'none'"),
        ("groups?run=one&kind=odd", 422, ""),
        ("groups?run=one&low=x", 422, ""),
        ("evaluations/one?evaluation=../../etc", 404, "no evaluation"),
        ("evaluations/one?evaluation=/etc", 404, "no evaluation"),
        ("none", 404, ""),
    ],
)
async def test_what_is_not_there_is_a_problem(
    runs: Path, path: str, status: int, said: str
) -> None:
    async with client(runs) as dash:
        answer = await dash.get(f"/api/{path}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]


async def test_frames_come_from_below_the_run_s_roots_alone(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    clip = make_clip(videos / "a.mp4", num_frames=32)
    ref = kept_group().clip.model_copy(update={"uri": str(clip), "sha256": "1" * 64})
    for name, root in (("inside", videos), ("outside", tmp_path / "inside")):
        shared = {**SETTINGS["shared"], "video": {"roots": [str(root)]}}
        write_run(tmp_path / name, steps=1, settings={**SETTINGS, "shared": shared})
        write_groups(tmp_path / name, [kept_group(clip=ref)])
    where = {"step": 4, "prompt": "p1"}
    async with client(tmp_path) as dash:
        strip = await dash.get("/api/groups/strip", params={"run": "inside", **where})
        none = await dash.get("/api/groups/strip", params={"run": "outside", **where})
    assert (strip.status_code, strip.headers["content-type"]) == (200, "image/jpeg")
    assert strip.content[:2] == b"\xff\xd8"
    assert (none.status_code, none.content) == (204, b"")


async def test_the_page_loads_nothing_from_elsewhere_and_runs_no_text(runs: Path) -> None:
    async with client(runs) as dash:
        for path in ("/", "/main.js", "/vendor/uplot.js", "/look/dash.css", "/api/runs", "/none"):
            answer = await dash.get(path)
            assert answer.headers["content-security-policy"] == POLICY, path
            assert answer.headers["x-content-type-options"] == "nosniff"
        page = (await dash.get("/")).text
    assert "unsafe" not in POLICY
    assert "://" not in page


def test_no_script_of_the_page_makes_markup_of_text() -> None:
    for script in page_folder().glob("*.js"):
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in script.read_text(encoding="utf-8"), (script.name, way)


def test_every_file_of_the_page_is_packaged_and_the_library_has_its_licence() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["jobs"]
    packaged = {path for one in patterns for path in (ROOT / "jobs").glob(one) if path.is_file()}
    assert {path for path in page_folder().rglob("*") if path.is_file()} <= packaged
    assert "MIT" in (page_folder() / "vendor/LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("base_url", "status"),
    [
        ("http://127.0.0.1:8400", 200),
        ("http://localhost:8400", 200),
        ("http://[::1]:8400", 200),
        ("http://rebound.example:8400", 421),
        ("http://127.0.0.1.rebound.example", 421),
    ],
)
async def test_without_a_token_only_names_of_this_machine_are_answered(
    runs: Path, base_url: str, status: int
) -> None:
    async with client(runs, base_url=base_url) as dash:
        for path in ("/", "/api/runs"):
            assert (await dash.get(path)).status_code == status


async def test_with_a_token_the_page_is_open_and_what_it_asks_for_is_not(runs: Path) -> None:
    tokens = Tokens(general=SecretStr("right"), generate=SecretStr("also right"))
    async with client(runs, tokens=tokens, base_url="http://node7:8400") as dash:
        assert (await dash.get("/")).status_code == 200
        for path in ("runs", "overview", "groups", "evaluations", "events", "groups/strip"):
            assert (await dash.get(f"/api/{path}")).status_code == 401, path
        for token, status in (("right", 200), ("also right", 200), ("wrong", 401)):
            shown = {"Authorization": f"Bearer {token}"}
            assert (await dash.get("/api/runs", headers=shown)).status_code == status


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "node7"])
def test_off_loopback_a_token_is_needed(host: str) -> None:
    with pytest.raises(ConfigError, match=r"--host: found .* no token.*TEMPSAMP_TOKEN"):
        refuse_open(host, Tokens())
    refuse_open(host, Tokens(general=SecretStr("a")))
    refuse_open("127.0.0.1", Tokens())


async def next_of(stream: AsyncIterator[str]) -> tuple[str, Any]:
    name, data, *_ = (await anext(stream)).splitlines()
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


async def test_a_stream_says_that_a_run_grew(tmp_path: Path) -> None:
    folder = RunFolder(write_run(tmp_path, steps=3), "a")
    stream = events(folder, Watch(folder), poll_s=0.01, live=False)
    assert await next_of(stream) == ("hello", {"run": "a"})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "reward/reward": 1}\n')
    assert await next_of(stream) == ("changed", {"step": 4})
    write_groups(tmp_path, [kept_group(step=4)])
    assert (await next_of(stream))[0] == "changed"


async def test_services_that_do_not_answer_are_asked_ever_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_at: list[float] = []
    now = 0.0
    monkeypatch.setattr("jobs.dash.watch.time.monotonic", lambda: now)
    watch = Watch(RunFolder(write_run(tmp_path), "a"))

    async def silent() -> Live:
        asked_at.append(now)
        return Live(silent="nobody")

    monkeypatch.setattr(watch, "_ask", silent)
    for second in range(200):
        now = float(second)
        assert (await watch.fleet()).silent == "nobody"
    assert asked_at == [0, 10, 30, 70, 130, 190]


async def test_a_registered_replica_is_shown_with_why_it_does_not_answer(
    tmp_path: Path, redis_server: RedisServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPSAMP_REDIS_PASSWORD", redis_server.password)
    shared = {**SETTINGS["shared"], "run_id": run_id}
    write_run(tmp_path, settings={**SETTINGS, "shared": shared})
    broker = redis_server.broker(run_id)
    status = replica_status("replica-a").model_copy(update={"url": "http://127.0.0.1:1"})
    try:
        await broker.announce(status, ttl_s=60)
        live = await Watch(RunFolder(tmp_path, "a", redis_server.url)).fleet()
    finally:
        await broker.close()
    assert live.fleet is not None
    (found,) = live.fleet.replicas
    assert (found.status.replica, found.report) == ("replica-a", None)
    assert "ConnectError" in str(found.unreachable)


async def test_a_stream_ends_with_the_dash_and_what_it_came_from_too() -> None:
    ending, came = Ending(), asyncio.Event()
    ended: list[str] = []

    async def endless() -> AsyncIterator[str]:
        try:
            yield "first"
            came.set()
            await asyncio.sleep(60)
        finally:
            ended.append("the work behind it")

    async def read() -> list[str]:
        return [found async for found in ending.until(endless())]

    reading = asyncio.create_task(read())
    await came.wait()
    ending.now()
    assert await asyncio.wait_for(reading, 5) == ["first"]
    assert ended == ["the work behind it"]
    assert [found async for found in ending.until(endless())] == [], "nor does one begin"


async def test_a_stream_ends_when_it_is_over_or_its_caller_left() -> None:
    ending, came = Ending(), asyncio.Event()

    async def short() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    async def waits() -> AsyncIterator[str]:
        came.set()
        await asyncio.sleep(60)
        yield "never"

    assert [found async for found in ending.until(short())] == ["a", "b"]
    reading = asyncio.create_task(anext(ending.until(waits())))
    await came.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_runs_of_a_redis_need_no_folder(
    redis_server: RedisServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPSAMP_REDIS_PASSWORD", redis_server.password)
    broker = redis_server.broker(run_id)
    status = replica_status("replica-a").model_copy(update={"url": "http://127.0.0.1:1"})
    try:
        await broker.announce(status, ttl_s=60)
        site = await asyncio.to_thread(Site, None, redis_url=redis_server.url)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(site)), base_url=HERE
        ) as dash:
            listed = {run["name"]: run for run in (await dash.get("/api/runs")).json()}
            assert listed[run_id]["has_folder"] is False
            assert "services alone" in listed[run_id]["sentence"]
            for path in ("overview", "curves", "groups", "evaluations"):
                answer = await dash.get(f"/api/{path}", params={"run": run_id})
                assert answer.status_code == 200, answer.text
        live = await site.run(run_id).watch.fleet()
    finally:
        await broker.close()
    assert live.fleet is not None
    assert [one.status.replica for one in live.fleet.replicas] == ["replica-a"]


async def test_a_redis_that_is_away_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.fleet.services.REDIS_OUTAGE_S", 0.1)
    shared = {**SETTINGS["shared"], "redis_url": "redis://127.0.0.1:1/0"}
    folder = RunFolder(write_run(tmp_path, settings={**SETTINGS, "shared": shared}), "a")
    live = await Watch(folder).fleet()
    assert live.fleet is None
    assert live.silent is not None
    assert "127.0.0.1:1" in live.silent
    assert live.silent.endswith("correct shared.redis_url")
    named = RunFolder(folder.path, "a", "redis://127.0.0.1:1/0")
    assert str((await Watch(named).fleet()).silent).endswith("correct --redis")
    nothing = RunFolder(tmp_path / "none", "b")
    assert "no settings" in str((await Watch(nothing).fleet()).silent)


async def test_an_evaluation_is_listed_shown_and_compared(runs: Path) -> None:
    for version, shift in ((0, 3.0), (50, 0.5)):
        write_evaluation(runs / f"one/validation/version-{version:06d}", shift=shift)
    (runs / "one/summary.json").write_text('{"a demo": "has one too"}')
    names = [f"one/validation/version-{version:06d}" for version in (0, 50)]
    found = await asked(runs, "evaluations")
    assert [one["name"] for one in found] == names
    assert found[0]["miou"] < found[1]["miou"]
    page = await asked(runs, "evaluations/one", evaluation=names[1])
    assert sum(page["histogram"]) == 12
    assert {table["title"] for table in page["tables"]}
    assert page["cases"][0]["title"] == "Best"
    assert page["cases"][0]["cases"][0]["query"].startswith("query <b>")
    compared = await asked(runs, "evaluations/compared", a=names[0], b=names[1])
    assert "B is better" in json.dumps(compared["tables"])


async def test_evaluations_open_without_a_run_and_name_who_answered(tmp_path: Path) -> None:
    server = OpenAIServer(url="http://h", served_model="qwen-vl", frames_as="images")
    write_evaluation(tmp_path / "base/rows", shift=1.0)
    write_evaluation(tmp_path / "other/rows", shift=1.0, model=server)
    names = [one["model"] for one in await asked(tmp_path, "evaluations")]
    assert names == ["served weights, version 50", "qwen-vl"]
    page = await asked(tmp_path, "evaluations/one", evaluation="other/rows")
    assert page["evaluation"]["model"] == "qwen-vl"
    assert page["cases"]
    async with client(tmp_path) as dash:
        answer = await dash.get("/api/evaluations/one?evaluation=base/rows&run=none")
    assert (answer.status_code, answer.json()["detail"]) == (404, "no run 'none'")


def write_evaluation(folder: Path, *, shift: float, model: Model = SERVED) -> None:
    """As `tempsamp eval` leaves one benchmark: twelve answers, each too late by `shift`."""
    lines = [
        {
            "id": f"q{n}",
            "video": f"{n}.mp4",
            "query": f"query <b>{n}",
            "gt": [[2.0, 6.0]],
            "duration_s": 16.0,
            "mode": "answer",
            "text": f"<answer> {2 + shift} to {6 + shift + 0.01 * n} </answer>",
            "fingerprint": "f",
        }
        for n in range(12)
    ]
    write_lines(folder / "predictions.jsonl", lines)
    file = read_predictions(folder / "predictions.jsonl")
    matched = match(file.predictions, questions=own_questions(file.predictions))
    summary = Summary(
        label="answer",
        fingerprint="f",
        settings=RunSettings(
            bench="rows",
            annotations_sha256="0",
            model=model,
            task="moments",
            mode="answer",
            prompt="ours",
            templates={"answer": "t"},
            sampling=AnswerSampling(max_tokens={"answer": 18}, num_samples=0, seed=0),
            clip=VideoSampling(),
        ),
        queries=12,
        answered=12,
        missing_videos={},
        unusable_annotations=(),
        score=score_matched(matched, file=file, bench="rows"),
    )
    (folder / "summary.json").write_text(summary.model_dump_json())
