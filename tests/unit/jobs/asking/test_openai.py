"""The client of OpenAI's chat completions, against a server that checks what it is sent."""

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Header, Response
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from typer.testing import CliRunner

import tempsamp
from common.errors import ConfigError, EngineError
from common.messages import ClipRef, GenerateRequest, Sampling
from common.prompts import chat_messages
from common.video.frames import load_frames, sample_clip
from common.video.sampling import VideoSampling
from jobs.asking.openai import ask_openai, model_at
from jobs.asking.refusals import Busy, NotReady, Refused
from tests.fixtures.clips import make_clip
from tests.fixtures.replicas.reframing import subject, write_task


class Strict(BaseModel):
    """The published request schema, as far as it is used; anything else is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Text(Strict):
    type: Literal["text"]
    text: str


class Url(Strict):
    url: Annotated[str, Field(pattern=r"^data:image/jpeg;base64,")]


class Picture(Strict):
    type: Literal["image_url"]
    image_url: Url


class Turn(Strict):
    role: Literal["system", "user", "assistant"]
    content: list[Annotated[Text | Picture, Field(discriminator="type")]]


class Body(Strict):
    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    n: Annotated[int, Field(ge=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0, le=2)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    seed: int | None = None


@dataclass
class Server:
    """What it says, and what it was asked."""

    url: str = ""
    reply: str = "yes"
    status: int = 200
    raw: str | None = None
    bodies: list[Body] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    """On a free port."""
    known, app = Server(), FastAPI()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "a/b"}, {"id": "c"}]}

    @app.post("/v1/chat/completions")
    async def complete(
        body: dict[str, Any], authorization: Annotated[str | None, Header()] = None
    ) -> Response:
        known.bodies.append(Body.model_validate_json(json.dumps(body)))
        known.keys.append(authorization)
        text = about(known.bodies[-1]) if known.reply == "oracle" else known.reply
        choice = {"index": 0, "finish_reason": "stop", "message": {"content": text}}
        raw = known.raw or json.dumps({"id": "x", "choices": [choice], "usage": {}})
        headers = {"Retry-After": "2"}
        return Response(raw, known.status, headers, media_type="application/json")

    listening = socket.create_server(("127.0.0.1", 0))
    known.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    running = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        yield known
    finally:
        running.should_exit = True
        thread.join()
        listening.close()


def about(body: Body) -> str:
    """A right answer to the highlight question, the middle to the other."""
    texts = " ".join(part.text for part in body.messages[0].content if isinstance(part, Text))
    if "one frame" in texts:
        return '{"center": [500, 500], "size": [1000, 1000]}'
    return json.dumps({"segments": [list(subject(0).span_s)]})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipRef:
    """4 frames, at 0, 2, 5 and 7 eighths of a second."""
    video = make_clip(tmp_path_factory.mktemp("openai") / "a.mp4", num_frames=8)
    return sample_clip(video, sampling=VideoSampling(min_pixels=1024))


async def asked(server: Server, clip: ClipRef, *, key: str | None = None) -> str:
    request = GenerateRequest(
        clip=clip,
        messages=chat_messages("Look: <video> What is it?"),
        sampling=Sampling(temperature=0.0, max_tokens=7),
    )
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers) as client:
        return await ask_openai(client, request=request, model="a/b")


def pixels(part: Picture) -> np.ndarray[Any, np.dtype[np.uint8]]:
    encoded = part.image_url.url.partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


async def test_a_clip_travels_as_pictures_after_their_times(server: Server, clip: ClipRef) -> None:
    assert await asked(server, clip, key="k") == "yes"
    (body,) = server.bodies
    assert (body.model, body.n, body.max_tokens, body.temperature) == ("a/b", 1, 7, 0.0)
    first, *parts, last = body.messages[0].content
    assert [getattr(one, "text", None) for one in (first, last)] == ["Look: ", " What is it?"]
    assert [part.text for part in parts[::2] if isinstance(part, Text)] == [
        f"<{time_s:.1f} seconds>" for time_s in clip.frame_times_s
    ]
    pictures = [part for part in parts[1::2] if isinstance(part, Picture)]
    assert len(pictures) == len(clip.frame_indices) == 4
    for found, wanted in zip(pictures, load_frames(clip), strict=True):
        assert np.abs(pixels(found).astype(int) - wanted).mean() < 12
    assert server.keys == ["Bearer k"]


async def test_a_frame_twice_is_one_picture(server: Server, clip: ClipRef) -> None:
    update = {"frame_indices": (3, 3), "frame_times_s": (0.375, 0.375)}
    await asked(server, clip.model_copy(update=update))
    kinds = [part.type for part in server.bodies[0].messages[0].content]
    assert kinds == ["text", "image_url", "text"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, Busy), (503, NotReady), (400, Refused), (404, Refused), (500, Refused)],
)
async def test_errors_are_those_of_replicas(
    server: Server, clip: ClipRef, status: int, kind: type[Exception]
) -> None:
    server.status, server.raw = status, '{"error": {"message": "too long"}}'
    with pytest.raises(kind, match="too long") as caught:
        await asked(server, clip)
    if isinstance(caught.value, Busy):
        assert caught.value.retry_after_s == 2.0


async def test_a_wrong_key_ends_everything(server: Server, clip: ClipRef) -> None:
    server.status = 401
    with pytest.raises(EngineError, match="TEMPSAMP_GENERATE_TOKEN"):
        await asked(server, clip)


@pytest.mark.parametrize("raw", ["{}", "text", '{"choices": []}'])
async def test_what_is_no_completion_is_said(server: Server, clip: ClipRef, raw: str) -> None:
    server.raw = raw
    with pytest.raises(EngineError, match="wanted a chat completion"):
        await asked(server, clip)


def test_the_model_is_the_named_or_the_first(server: Server) -> None:
    assert model_at(server.url, name=None, token=None) == "a/b"
    assert model_at(server.url, name="c", token=SecretStr("k")) == "c"
    with pytest.raises(ConfigError, match=r"--openai-model: found 'z', wanted one of \['a/b', 'c'"):
        model_at(server.url, name="z", token=None)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "nonsense", "http://["])
def test_who_is_no_such_server_is_said(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--openai: found .*wanted the base URL"):
        model_at(url, name=None, token=None)


def test_reframe_asks_it(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPSAMP_GENERATE_TOKEN", "k" * 32)
    write_task(tmp_path, count=1)
    server.reply = "oracle"
    where = ["--index", f"{tmp_path}/test_index.json", "--video-dir", f"{tmp_path}/videos"]
    arguments = [*where, "--out", f"{tmp_path}/sub.jsonl", "--openai", server.url]
    ended = CliRunner().invoke(tempsamp.app, ["reframe", "qwen", *arguments])
    assert ended.exit_code == 0, (ended.output, ended.exception)
    assert "1 videos: 1 followed" in ended.output
    assert set(server.keys) == {"Bearer " + "k" * 32}
    assert {body.temperature for body in server.bodies} == {0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--openai", "http://a/v1", "--endpoint", "http://b"], "--openai: found it with"),
        (["--openai-model", "c", "--endpoint", "http://b"], "--openai-model: found 'c' without"),
    ],
)
def test_options_that_exclude_each_other(options: list[str], message: str) -> None:
    where = ["--index", "i.json", "--video-dir", ".", "--out", "s.jsonl"]
    ended = CliRunner().invoke(tempsamp.app, ["reframe", "qwen", *where, *options])
    assert isinstance(ended.exception, ConfigError)
    assert message in str(ended.exception)
