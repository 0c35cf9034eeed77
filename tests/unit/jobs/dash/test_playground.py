"""The playground's routes: videos in, questions out, and every way in which that goes wrong."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
import typer
from pydantic import SecretStr
from typer.testing import CliRunner

from common.errors import ConfigError, EngineError, VideoError
from common.messages import ClipRef, GenerateResponse, ReplicaStatus, Sampling
from common.rest.fleet_api import ReplicaReport
from common.secrets import Tokens
from common.video.sampling import VideoSampling
from jobs.asking.answers import Reply, of_replica
from jobs.asking.openai.endpoint import Endpoint
from jobs.asking.refusals import Refused
from jobs.dash.app import create_app
from jobs.dash.command import command
from jobs.dash.folder import RunFolder
from jobs.dash.playground.clips import MEGABYTE, safe_name
from jobs.dash.playground.models import ListedModel, Local, Tell, endpoint, foreign, of_run
from jobs.dash.playground.questions import Question, answered
from jobs.dash.playground.routes import Playground
from jobs.dash.playground.wording import wording_of
from jobs.dash.site import Site
from jobs.dash.watch import Live
from jobs.fleet.services import Fleet, Replica
from jobs.ground.asking import Settings
from jobs.ground.candidates import Grounding, ground
from jobs.local.processes import ChildError
from tests.fixtures.clips import make_clip
from tests.fixtures.pages.run_folder import SETTINGS, write_run
from tests.fixtures.replicas.stand_in_replica import generated, unused_url
from tests.fixtures.servers import chat_server
from tests.fixtures.wire import replica_status

ROOT = Path(__file__).resolve().parents[4]
TINY = ROOT / "deploy/tiny-qwen3vl"
HERE = "http://127.0.0.1"
FRAMES = VideoSampling(max_pixels=65_536)
SAMPLING = Sampling(max_tokens=64)
GREEDY = "<answer> 1.0 to 2.5 </answer>"


@dataclass
class Stand:
    """A model that answers at once, or fails as it is told."""

    key: str = "a"
    texts: Sequence[str] = (GREEDY,)
    error: Exception | None = None
    may_answer: asyncio.Event | None = None
    asked: list[Settings] = field(default_factory=list)
    clips: list[ClipRef] = field(default_factory=list)
    cancelled: bool = False
    frames: VideoSampling = FRAMES
    sampling: Sampling = SAMPLING
    wording: tuple[str, str] | None = None

    def listed(self) -> ListedModel:
        return ListedModel(key=self.key, name=f"model {self.key}", kind="replica", state="ready")

    def refuse(self, path: Path) -> None: ...

    def versions(self) -> dict[str, Any]:
        return {"url": "http://there"}

    async def ask(self, clip: ClipRef, *, query: str, settings: Settings, tell: Tell) -> Grounding:
        self.asked.append(settings)
        self.clips.append(clip)
        tell("asking")
        tell("asking")
        try:
            if self.may_answer is not None:
                await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        count = max(1, settings.num_samples)
        replies: list[Reply] = [
            of_replica(
                GenerateResponse(
                    prompt_token_ids=(1,),
                    num_visual_tokens=0,
                    grid_thw=(1, 1, 1),
                    answers=tuple(generated(text, version=3) for text in texts),
                )
            )
            for texts in ([self.texts[0]], [*self.texts][:count])[: 2 if count > 1 else 1]
        ]
        return ground(clip, query=query, mode=settings.mode, replies=replies)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """4 s at 8 fps."""
    return make_clip(tmp_path_factory.mktemp("clip") / "a.mp4", num_frames=32).read_bytes()


@pytest.fixture
def playground() -> Iterator[Playground]:
    with Playground(most_upload_mb=1) as made:
        yield made


@contextlib.asynccontextmanager
async def client(
    playground: Playground,
    *,
    root: Path | None = None,
    tokens: Tokens | None = None,
    **headers: str,
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Site(root), tokens=tokens or Tokens(), live=False, playground=playground)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=HERE, headers=headers) as dash:
        yield dash


async def uploaded(dash: httpx.AsyncClient, content: bytes, name: str = "a.mp4") -> dict[str, Any]:
    answer = await dash.post("/api/playground/upload", params={"name": name}, content=content)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def asked(dash: httpx.AsyncClient, **question: Any) -> list[tuple[str, Any]]:
    body = {"query": "a dog", "models": ["a"], **question}
    answer = await dash.post("/api/playground/ask", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [event.split("\n", 1) for event in answer.text.strip().split("\n\n")]
    return [(name[7:], json.loads(data[6:])) for name, data in lines]


async def test_an_upload_is_a_clip_that_players_read_in_parts(
    playground: Playground, content: bytes
) -> None:
    async with client(playground) as dash:
        clip = await uploaded(dash, content, "../../my trip: ünï.mp4")
        assert (clip["name"], clip["duration_s"]) == ("my trip: ünï.mp4", 4.0)
        assert (clip["width_px"], clip["height_px"]) == (64, 48)
        whole = await dash.get(f"/{clip['address']}")
        assert (whole.content, whole.headers["content-type"]) == (content, "video/mp4")
        part = await dash.get(f"/{clip['address']}", headers={"Range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, b"ftyp")
        saved = await dash.get(f"/{clip['address']}", params={"download": "true"})
        assert saved.headers["content-disposition"].startswith("attachment; filename*=UTF-8''my%20")
        strip = await dash.get("/api/playground/strip", params={"clip": clip["clip"]})
        assert strip.content[:2] == b"\xff\xd8"
        assert (await dash.get("/clips/none")).status_code == 404


async def test_players_may_ask_for_the_head_and_not_for_parts_that_are_not_there(
    playground: Playground, content: bytes
) -> None:
    async with client(playground) as dash:
        clip = await uploaded(dash, content)
        head = await dash.head(f"/{clip['address']}")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(content))
        assert (await dash.head("/clips/none")).status_code == 404
        for path in (f"/{clip['address']}", "/main.js"):
            for part, status in (("bytes=5-2", 400), ("lines=1-2", 400), ("bytes=99999999-", 416)):
                answer = await dash.get(path, headers={"Range": part})
                assert answer.status_code == status
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["detail"].startswith(f"Range: found '{part}', wanted bytes=")
                assert ("content-range" in answer.headers) == (status == 416)


async def test_what_a_video_is_called_makes_no_page_of_it(
    playground: Playground, content: bytes
) -> None:
    async with client(playground) as dash:
        for name in ("x.html", "x.js", "x", ".mp4"):
            clip = await uploaded(dash, content, name)
            answer = await dash.get(f"/{clip['address']}")
            assert answer.headers["content-type"] == "application/octet-stream", name


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("/etc/passwd", "passwd"),
        ("C:\\films\\a.mp4", "a.mp4"),
        ("..", "video"),
        ("a\0\n\u202eb.mp4", "ab.mp4"),
        ("ü" * 300 + ".mp4", "ü" * 98 + ".mp4"),
        ("a." + "b" * 300, "video"),
    ],
)
def test_names_of_files_are_plain(name: str, kept: str) -> None:
    assert safe_name(name) == kept


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 422, "notes.mp4: found 0 bytes, wanted a video file"),
        (b"these are notes, no video\n" * 50, 422, "notes.mp4: "),
        (bytes(MEGABYTE + 1), 413, "found 2 MB, wanted at most 1 MB: --max-upload-mb"),
    ],
)
async def test_what_is_no_video_is_refused_and_not_kept(
    playground: Playground, body: bytes, status: int, said: str
) -> None:
    async with client(playground) as dash:
        answer = await dash.post(
            "/api/playground/upload", params={"name": "notes.mp4"}, content=body
        )
    assert (answer.status_code, answer.headers["content-type"]) == (
        status,
        "application/problem+json",
    )
    assert said in answer.json()["detail"]
    assert "tempsamp-dash-" not in answer.json()["detail"]
    assert files_of(playground) == []


async def test_a_size_that_is_not_declared_is_counted(playground: Playground) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65_536)

    async with client(playground) as dash:
        answer = await dash.post(
            "/api/playground/upload", params={"name": "a.mp4"}, content=endless()
        )
    assert answer.status_code == 413
    assert "found more than 1 MB" in answer.json()["detail"]
    assert files_of(playground) == []


async def test_a_disk_that_takes_no_more_is_told(
    playground: Playground, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    playground.clips.room("made")
    monkeypatch.setattr(Path, "open", lambda *_: Full())
    async with client(playground) as dash:
        answer = await dash.post(
            "/api/playground/upload", params={"name": "a.mp4"}, content=content
        )
    assert answer.status_code == 507
    assert answer.json()["detail"].startswith("TMPDIR: ")
    assert "No space left on device" in answer.json()["detail"]


async def test_older_uploads_make_room_and_those_at_work_do_not(
    playground: Playground, content: bytes
) -> None:
    padded = content + bytes(400_000)
    async with client(playground) as dash:
        first, second, third = [await uploaded(dash, padded) for _ in range(3)]
        gone = await dash.get(f"/{first['address']}")
        assert gone.status_code == 404
        assert "made room for others (--max-upload-mb)" in gone.json()["detail"]
        with playground.clips.using(second["clip"]), playground.clips.using(third["clip"]):
            refused = await dash.post(
                "/api/playground/upload", params={"name": "b.mp4"}, content=padded
            )
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
            assert "of others at work" in refused.json()["detail"]
        await uploaded(dash, padded)
        assert (await dash.get(f"/{second['address']}")).status_code == 404


def files_of(playground: Playground) -> list[Path]:
    folder = playground.clips.room("made").parent
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_nothing_is_left_at_the_end(content: bytes) -> None:
    with Playground() as playground:
        async with client(playground) as dash:
            await uploaded(dash, content)
        folder = playground.clips.room("made").parent
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


@pytest.fixture
def runs(tmp_path: Path, content: bytes) -> Path:
    """One run, with a video below its root and one outside."""
    (tmp_path / "videos/deep").mkdir(parents=True)
    (tmp_path / "videos/deep/a.mp4").write_bytes(content)
    (tmp_path / "videos/notes.txt").write_text("no video")
    (tmp_path / "videos/bad.mp4").write_text("no video")
    (tmp_path / "outside.mp4").write_bytes(content)
    (tmp_path / "videos/link.mp4").symlink_to(tmp_path / "outside.mp4")
    shared = {**SETTINGS["shared"], "video": {"roots": [str(tmp_path / "videos")]}}
    write_run(tmp_path / "runs/one", steps=1, settings={**SETTINGS, "shared": shared})
    return tmp_path / "runs"


async def test_videos_of_a_run_are_listed_and_chosen_by_name(
    playground: Playground, runs: Path
) -> None:
    async with client(playground, root=runs) as dash:
        found = (await dash.get("/api/playground/videos")).json()
        assert found == {"names": ["bad.mp4", "link.mp4", "deep/a.mp4"], "is_all": True}
        found = (await dash.get("/api/playground/videos", params={"text": "DEEP"})).json()
        assert found["names"] == ["deep/a.mp4"]
        twice = [
            (await dash.post("/api/playground/choose", json={"name": "deep/a.mp4"})).json()
            for _ in range(2)
        ]
        assert twice[0] == twice[1]
        assert (twice[0]["name"], twice[0]["duration_s"]) == ("deep/a.mp4", 4.0)
    assert files_of(playground) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../outside.mp4", "wanted it below one of the roots"),
        ("/etc/passwd", "wanted it below one of the roots"),
        ("link.mp4", "wanted it below one of the roots"),
        ("none.mp4", "No such file"),
        ("deep", "found a folder or device"),
        ("bad.mp4", "bad.mp4: "),
        ("", "found a folder or device"),
    ],
)
async def test_what_is_not_below_the_roots_is_not_opened(
    playground: Playground, runs: Path, name: str, said: str
) -> None:
    async with client(playground, root=runs) as dash:
        answer = await dash.post("/api/playground/choose", json={"name": name})
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


async def test_without_a_run_there_are_no_videos_to_choose(playground: Playground) -> None:
    async with client(playground) as dash:
        assert (await dash.get("/api/runs")).json() == []
        assert (await dash.get("/api/playground/videos")).json()["names"] == []
        answer = await dash.post("/api/playground/choose", json={"name": "a.mp4"})
    assert "found no video root" in answer.json()["detail"]


async def test_it_says_whether_it_was_started_with_somebody_to_ask(playground: Playground) -> None:
    async with client(playground) as dash:
        assert (await dash.get("/api/home")).json() == {"asks": False}
        playground.add(Stand())
        assert (await dash.get("/api/home")).json() == {"asks": True}


async def test_a_greedy_answer_comes_with_its_tokens_and_versions(
    playground: Playground, content: bytes
) -> None:
    playground.add(Stand())
    async with client(playground) as dash:
        clip = await uploaded(dash, content)
        events = await asked(dash, clip=clip["clip"])
    assert [name for name, _ in events] == ["waits", "waits", "found", "end"]
    assert [content.get("says") for _, content in events[:2]] == ["reading a.mp4", "asking"]
    found = events[2][1]
    assert found["spans"] == [[[1.0, 2.5]]]
    (answer,) = found["grounding"]["answers"]
    assert "".join(token["text"] for token in answer["tokens"]) == GREEDY
    assert {token["logprob"] for token in answer["tokens"]} == {-0.25}
    assert found["grounding"]["candidates"][0]["confidence"] == pytest.approx(0.7788, abs=1e-4)
    assert found["versions"]["weights"] == 3
    assert found["versions"]["url"] == "http://there"
    assert set(found["versions"]) >= {"tempsamp", "served_model"}
    assert found["asked"]["video"] == found["grounding"]["video"] == "a.mp4"
    assert len(found["asked"]["video_sha256"]) == 64
    assert "a dog" in found["asked"]["prompt"]


async def test_samples_thought_and_length_are_those_asked_for(
    playground: Playground, content: bytes
) -> None:
    model = Stand(texts=(GREEDY, "<answer> 3 to 4 </answer>", "no idea"))
    playground.add(model)
    async with client(playground) as dash:
        clip = await uploaded(dash, content)
        question = {"samples": 3, "mode": "think", "seed": 9, "max_tokens": 7}
        events = await asked(dash, clip=clip["clip"], **question)
    (settings,) = model.asked
    assert (settings.mode, settings.num_samples) == ("think", 3)
    assert (settings.sampling.seed, settings.sampling.max_tokens) == (9, 7)
    assert "samples" in events[-2][1]["grounding"]["confidence_is"]
    assert events[-2][1]["grounding"]["num_unreadable"] == 1


async def test_a_part_is_asked_about_and_spans_count_from_the_start_of_the_video(
    playground: Playground, content: bytes
) -> None:
    model = Stand()
    playground.add(model)
    async with client(playground) as dash:
        clip = await uploaded(dash, content)
        events = await asked(dash, clip=clip["clip"], start_s=1.5, end_s=3.5)
        late = await asked(dash, clip=clip["clip"], start_s=30)
    found = events[-2][1]
    assert found["spans"] == [[[2.5, 4.0]]]
    assert found["grounding"]["answers"][0]["spans"] == [[2.5, 4.0]]
    assert (found["asked"]["window_s"], found["asked"]["duration_s"]) == ([1.5, 3.5], 2.0)
    assert model.clips[0].window_s == (1.5, 3.5)
    assert "wanted 30.00 s to the end of it (from and to)" in late[-2][1]["says"]


async def test_two_models_answer_the_same_question_and_one_may_fail(
    playground: Playground, content: bytes
) -> None:
    playground.add(Stand("a"), Stand("b", error=EngineError("nobody answered within 20 s")))
    async with client(playground) as dash:
        clip = await uploaded(dash, content)
        events = await asked(dash, clip=clip["clip"], models=["a", "b"])
    ends = {content["model"]["key"]: name for name, content in events if name == "found"}
    assert ends == {"a": "found"}
    assert ("failed", {"model": "b", "says": "nobody answered within 20 s"}) in events
    assert events[-1] == ("end", {})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refused("found 9000 prompt tokens, wanted at most 900"), "found 9000 prompt tokens"),
        (VideoError("PATH: found 1 frame, wanted 2"), "a.mp4: found 1 frame, wanted 2"),
        (ChildError("replica was killed by SIGKILL; log closes with:\nx"), "killed by SIGKILL"),
        (ConfigError("--model: found no config.json"), "--model: found no config.json"),
        (httpx.ConnectError("refused"), "ConnectError: refused"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("never foreseen"), "RuntimeError: never foreseen"),
    ],
)
async def test_what_goes_wrong_is_the_line_that_ground_ends_with(
    playground: Playground, content: bytes, error: Exception, said: str
) -> None:
    async with client(playground) as dash:
        clip = await uploaded(dash, content)
        path = str(playground.clips.get(clip["clip"]).path)
        if "PATH" in str(error):
            error = type(error)(str(error).replace("PATH", path))
        playground.add(Stand(error=error))
        (*_, (name, content_), _) = await asked(dash, clip=clip["clip"])
    assert name == "failed"
    assert said in content_["says"]
    assert "tempsamp-dash-" not in content_["says"]


@pytest.mark.parametrize(
    ("changed", "field", "said"),
    [
        ({"query": ""}, "query", "query: found no words, wanted what to look for"),
        ({"query": " \n"}, "query", "query: found no words"),
        ({"query": "x" * 2_001}, "query", "found 2,001 characters, wanted at most 2,000"),
        ({"query": "a <video> in it"}, "query", "query: "),
        ({"samples": 0}, "samples", "samples: found 0, wanted 1 to 256"),
        ({"samples": 257}, "samples", "samples: found 257"),
        ({"samples": "3"}, "samples", "valid integer"),
        ({"seed": -1}, "seed", "seed: found -1"),
        ({"max_tokens": 0}, "max_tokens", "longest answer: found 0 tokens"),
        ({"start_s": -1}, "start_s", "from: found -1 s, wanted 0 or more"),
        ({"start_s": 2, "end_s": 2}, "end_s", "to: found 2.0 s, wanted more than from, 2 s"),
        ({"mode": "sing"}, "mode", "'answer' or 'think'"),
        ({"models": []}, "models", "models: found 0, wanted 1 or 2"),
        ({"models": ["a", "a"]}, "models", "models: found 2"),
        ({"models": ["a", "b", "c"]}, "models", "models: found 3"),
        ({"models": ["gone"]}, None, "model: found none called 'gone'"),
        ({"clip": "gone"}, "clip", "choose it again"),
        ({"odd": 1}, "odd", "Extra inputs"),
    ],
)
async def test_what_cannot_be_asked_names_its_field(
    playground: Playground, content: bytes, changed: dict[str, Any], field: str | None, said: str
) -> None:
    model = Stand()
    playground.add(model)
    async with client(playground) as dash:
        clip = await uploaded(dash, content)
        body = {"clip": clip["clip"], "query": "a dog", "models": ["a"], **changed}
        answer = await dash.post("/api/playground/ask", json=body)
    assert answer.status_code in (404, 422)
    assert said in answer.json()["detail"]
    assert [error["field"] for error in answer.json()["errors"]][:1] == [field] * (
        field is not None
    )
    assert model.asked == []


async def test_who_no_longer_listens_is_no_longer_answered(
    playground: Playground, content: bytes
) -> None:
    model = Stand(may_answer=asyncio.Event())
    playground.add(model)
    async with client(playground) as dash:
        handle = (await uploaded(dash, content))["clip"]
    question = Question(clip=handle, query="a dog", models=["a"])
    events = answered(question, clip=playground.clips.get(handle), models=[model])
    async for _, said in events:
        if said["says"] == "asking":
            break
    await events.aclose()  # type: ignore[attr-defined]
    assert model.cancelled


async def test_a_closed_tab_ends_the_question_and_frees_its_video(
    playground: Playground, content: bytes
) -> None:
    model = Stand(may_answer=asyncio.Event())
    playground.add(model)
    app = create_app(Site(None), live=False, playground=playground)
    async with client(playground) as dash:
        handle = (await uploaded(dash, content))["clip"]
    body = json.dumps({"clip": handle, "query": "a dog", "models": ["a"]}).encode()
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": body})
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/playground/ask",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
    }

    async def send(message: Any) -> None:
        if b"asking" in message.get("body", b""):
            assert playground.clips.get(handle).uses == 1
            messages.put_nowait({"type": "http.disconnect"})

    await asyncio.wait_for(app(scope, messages.get, send), 20)
    assert model.cancelled
    assert playground.clips.get(handle).uses == 0


async def test_a_part_is_cut_out_and_says_how_it_differs(
    playground: Playground, content: bytes
) -> None:
    async with client(playground) as dash:
        clip = await uploaded(dash, content, "my.trip.mp4")
        body = {"clip": clip["clip"], "start_s": 1.0, "end_s": 9.0}
        made = (await dash.post("/api/playground/cut", json=body)).json()
        assert made["name"] == "my.trip-1.00-9.00.mp4"
        assert made["says"].startswith("0.00 to 4.00 s of the video; starts 1.00 s early")
        assert "5.00 s of the answer are not in the video" in made["says"]
        part = await dash.get(f"/{made['address']}")
    assert "attachment" in part.headers["content-disposition"]
    with av.open(io.BytesIO(part.content)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 32


@pytest.mark.parametrize(
    ("span", "said"),
    [
        ((2, 2), "found span 2.00 to 2.00 s, wanted a start before its end"),
        ((30, 40), "found span 30.00 to 40.00 s"),
    ],
)
async def test_a_part_that_is_not_there_is_refused(
    playground: Playground, content: bytes, span: tuple[float, float], said: str
) -> None:
    async with client(playground) as dash:
        clip = await uploaded(dash, content)
        body = {"clip": clip["clip"], "start_s": span[0], "end_s": span[1]}
        answer = await dash.post("/api/playground/cut", json=body)
        nan = await dash.post(
            "/api/playground/cut", content=json.dumps({**body, "start_s": float("nan")})
        )
    assert (answer.status_code, nan.status_code) == (422, 422)
    assert answer.json()["detail"].startswith("a.mp4: ")
    assert said in answer.json()["detail"]
    assert [path.name for path in files_of(playground)] == ["a.mp4"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 404),
        ("http://127.0.0.1", 404),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1:1", 403),
    ],
)
async def test_pages_of_other_origins_change_nothing(
    playground: Playground, origin: str | None, status: int
) -> None:
    body = {"clip": "none", "start_s": 0, "end_s": 1}
    headers = {} if origin is None else {"Origin": origin}
    async with client(playground) as dash:
        answer = await dash.post("/api/playground/cut", json=body, headers=headers)
        assert answer.status_code == status
        assert (await dash.get("/api/playground", headers=headers)).status_code == 200


async def test_the_playground_wants_the_token_that_answers_want(
    playground: Playground, content: bytes
) -> None:
    tokens = Tokens(generate=SecretStr("right"), score=SecretStr("of scores"))
    upload = "/api/playground/upload?name=a.mp4"
    async with client(playground, tokens=tokens) as dash:
        for token, status in (("right", 200), ("of scores", 403), ("wrong", 401)):
            shown = {"Authorization": f"Bearer {token}"}
            answer = await dash.post(upload, content=content, headers=shown)
            assert answer.status_code == status, token
            assert (await dash.get("/api/playground", headers=shown)).status_code == status
            if status == 200:
                address = answer.json()["address"]
        assert (await dash.get(f"/{address}")).status_code == 200, "a player sends no token"


async def test_somebody_else_s_server_is_asked_with_pictures_and_says_what_it_can(
    playground: Playground, content: bytes
) -> None:
    with chat_server.serving(lambda _: GREEDY) as server:
        opened = Endpoint(server.url, model="a/b", frames_as="images", wants_logprobs=True)
        playground.add(foreign(opened, key="a", frames_as="images"))
        async with client(playground) as dash:
            clip = await uploaded(dash, content)
            found = (await asked(dash, clip=clip["clip"], samples=2))[-2][1]
            server.answer = lambda _: chat_server.problem(400, "at most 4 images are taken")
            refused = (await asked(dash, clip=clip["clip"]))[-2]
    assert found["model"]["name"] == f"a/b at {server.url}"
    assert found["versions"]["served_model"] == "a/b"
    assert found["versions"]["weights"] is None
    assert [one["tokens"][0]["logprob"] for one in found["grounding"]["answers"]] == [-0.25] * 3
    assert refused[0] == "failed"
    assert "at most 4 images are taken" in refused[1]["says"]


async def test_an_endpoint_that_is_gone_is_told_while_its_asker_watches(
    playground: Playground, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.dash.playground.models.RETRY_S", 0.1)
    playground.add(endpoint(unused_url(), key="a"))
    async with client(playground) as dash:
        clip = await uploaded(dash, content)
        failed = (await asked(dash, clip=clip["clip"]))[-2]
    assert failed[0] == "failed"
    assert failed[1]["says"].startswith("nobody answered within 0 s: ConnectError")


def report_of(status: ReplicaStatus) -> ReplicaReport:
    return ReplicaReport(status=status, tokens_per_s=0, generates_in_work=0, generates_waiting=0)


async def test_a_run_s_newest_replica_can_be_asked_about_its_own_videos(
    playground: Playground, runs: Path, content: bytes
) -> None:
    statuses = [
        replica_status(name, version=version).model_copy(
            update={"phase": phase, "url": f"http://{name}"}
        )
        for name, version, phase in (
            ("old", 3, "serving"),
            ("new", 7, "serving"),
            ("silent", 8, "serving"),
            ("broken", 9, "broken"),
        )
    ]
    replicas = tuple(
        Replica(status=one, report=None if one.replica == "silent" else report_of(one))
        for one in statuses
    )
    folder = RunFolder(runs / "one", "one")
    fleet = Fleet(run_id="a", replicas=replicas)
    chosen = of_run(folder.run(), fleet, roots=None)
    assert chosen is not None
    assert (chosen.url, chosen.name) == ("http://new", "run a: new, version 7")
    assert chosen.frames == VideoSampling()
    chosen.refuse(Path("/anywhere"))  # it says so itself
    assert of_run(folder.run(), Fleet(run_id="a", replicas=replicas[2:]), roots=None) is None
    assert of_run(folder.run(), None, roots=None) is None
    site = Site(runs)
    site.run("one").watch._seen = Live(fleet=fleet)
    app = create_app(site, live=False, playground=playground)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HERE) as dash:
        offer = (await dash.get("/api/playground", params={"run": "one"})).json()
        assert [model["key"] for model in offer["models"]] == ["run"]
        clip = await uploaded(dash, content)
        events = await asked(dash, clip=clip["clip"], models=["run"], run="one")
    assert events[0][0] == "failed"
    assert "opens videos below" in events[0][1]["says"]
    assert "--model FOLDER" in events[0][1]["says"]


def no_folder() -> Path:
    raise AssertionError("nothing is loaded")


def test_a_checkpoint_of_a_run_is_asked_as_it_was_trained(tmp_path: Path) -> None:
    shared = {**SETTINGS["shared"], "video": {"fps": 1.0, "max_pixels": 65_536}}
    run = write_run(tmp_path / "run", steps=1, settings={**SETTINGS, "shared": shared})
    hf = run / "checkpoints/step-000200/hf"
    hf.parent.mkdir(parents=True)
    hf.symlink_to(TINY)
    (run / "checkpoints/step-000100").mkdir()
    own = run / "checkpoints/step-000100/hf"
    own.mkdir()
    for path in TINY.iterdir():
        (own / path.name).symlink_to(path)
    rows = tmp_path / "rows.jsonl"
    document = json.loads((run / "config.json").read_text())
    document["learner"]["rows"] = str(rows)
    (run / "config.json").write_text(json.dumps(document))
    row = {"problem": '<video>When is "a dog" there?', "query": "a dog", "videos": ["a.mp4"]}
    rows.write_text(json.dumps(row) + "\n")
    trained = Local(str(own), key="a", folder=no_folder, beside=1)
    assert (trained.frames.fps, trained.wording) == (1.0, ('<video>When is "', '" there?'))
    other = Local(str(TINY), key="a", folder=no_folder, beside=1)
    assert (other.frames.fps, other.wording) == (2.0, None)


@pytest.mark.parametrize(
    "row",
    [
        {"query": "a dog", "videos": ["a.mp4"]},
        {"problem": "<video>Find it.", "query": "a dog", "videos": ["a.mp4"]},
        {"problem": "<video>a dog, a dog", "query": "a dog", "videos": ["a.mp4"]},
        {"problem": "When is a dog there?", "query": "a dog", "videos": ["a.mp4"]},
        {"problem": 5},
    ],
)
def test_rows_without_words_of_their_own_are_asked_in_ours(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    rows = tmp_path / "rows.jsonl"
    assert wording_of(rows) is None
    rows.write_text(json.dumps(row))
    assert wording_of(rows) is None


async def test_words_of_a_run_are_asked_with_and_thoughts_in_ours(
    playground: Playground, content: bytes
) -> None:
    model = Stand(wording=("<video>When is it that ", " is seen?"))
    playground.add(model)
    async with client(playground) as dash:
        clip = await uploaded(dash, content)
        said = [
            (await asked(dash, clip=clip["clip"], mode=mode))[-2][1]["asked"]
            for mode in ("answer", "think")
        ]
    assert [one["in_words_of"] for one in said] == ["run", "ground"]
    assert said[0]["prompt"] == "<video>When is it that a dog is seen?"
    assert "<think>" in said[1]["prompt"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "none/such/model"], "--model: found 'none/such/model', neither a folder"),
        (["--model", str(TINY), "--model", str(TINY)], "--model: found "),
        (["--model", "a", "--model", "b", "--model", "c"], "--model: found 3, wanted at most 2"),
        (["--endpoint", "ftp://there"], "--endpoint: found 'ftp://there'"),
        (["--served-model", "a"], "--served-model: found 'a' without --openai"),
        (["--openai", "http://127.0.0.1:1/v1"], "--openai: found http://127.0.0.1:1/v1"),
    ],
)
def test_who_cannot_be_asked_is_known_before_anything_is_served(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError), result.output
    assert said in str(result.exception)
