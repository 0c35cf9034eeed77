"""The client of OpenAI's chat completions, against a server that checks what it is sent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Response
from pydantic import SecretStr
from typer.testing import CliRunner

import tempsamp
from common.errors import ConfigError, EngineError
from common.messages import ClipRef, GenerateRequest, Sampling
from common.prompts import chat_messages
from common.video.frames import sample_clip
from common.video.sampling import VideoSampling
from jobs.asking.answers import Reply
from jobs.asking.openai.endpoint import Endpoint, model_at
from jobs.asking.openai.media import FramesAs, Media, media_of
from jobs.asking.refusals import Broken, Busy, NotReady, Refused
from tests.fixtures.clips import make_clip
from tests.fixtures.replicas.reframing import subject, write_task
from tests.fixtures.servers.chat_server import Body, ChatServer, Said, problem, serving, texts_of


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """On a free port."""
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipRef:
    """4 frames of 8, unevenly spaced."""
    video = make_clip(tmp_path_factory.mktemp("openai") / "a.mp4", num_frames=8)
    return sample_clip(video, sampling=VideoSampling(min_pixels=1024))


async def asked(
    server: ChatServer,
    clip: ClipRef,
    *,
    times: int = 1,
    num_samples: int = 1,
    seed: int | None = None,
    key: str | None = None,
    **settings: Any,
) -> Reply:
    """The last reply of so many requests."""
    request = GenerateRequest(
        clip=clip,
        messages=chat_messages("Look: <video> What is it?"),
        num_samples=num_samples,
        sampling=Sampling(temperature=0.5, top_p=0.75, max_tokens=7, seed=seed),
    )
    endpoint = Endpoint(server.url, model="a/b", **settings)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers) as client:
        for _ in range(times):
            reply = await endpoint.ask(client, request=request)
    return reply


async def test_settings_and_key_are_sent_and_usage_comes_back(
    server: ChatServer, clip: ClipRef
) -> None:
    reply = await asked(server, clip, key="k", seed=3, num_samples=2)
    assert [answer.text for answer in reply.answers] == ["yes", "yes"]
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (100, 8)
    (body,) = server.bodies
    wanted = {"n": 2, "temperature": 0.5, "top_p": 0.75, "max_tokens": 7, "seed": 3}
    assert {name: body[name] for name in wanted} == wanted
    assert set(body) == {"model", "messages", *wanted}
    assert server.keys == ["Bearer k"]
    texts = texts_of(body)
    assert (texts[0], texts[-1]) == ("Look: ", " What is it?")


async def test_log_probabilities_are_asked_for_where_they_are_read(
    server: ChatServer, clip: ClipRef
) -> None:
    server.answer = lambda _: "<answer> 3 à 4 </answer>"
    (answer,) = (await asked(server, clip, wants_logprobs=True)).answers
    assert server.bodies[0]["logprobs"] is True
    assert answer.logprobs is not None
    assert set(answer.logprobs) == {-0.25}
    assert answer.token_ends[-2:] == (len(answer.text), len(answer.text))
    assert answer.token_ends[10:14] == (11, 11, 12, 13)  # the first byte of à ends no character


@pytest.mark.parametrize(
    "refusal",
    [
        None,
        problem(400, "logprobs is not supported with this model", param="logprobs"),
        problem(422, "[{'type': 'extra_forbidden', 'loc': ('body', 'logprobs')}]"),
    ],
)
async def test_a_server_without_log_probabilities_is_asked_for_them_once(
    server: ChatServer, clip: ClipRef, refusal: Response | None
) -> None:
    server.gives_logprobs = False
    if refusal is not None:
        server.answer = lambda body: refusal if "logprobs" in body else "yes"
    told: list[str] = []
    reply = await asked(server, clip, times=3, wants_logprobs=True, say=told.append)
    assert reply.answers[0].logprobs is None
    assert ["logprobs" in body for body in server.bodies].count(True) == 1
    assert told == [
        f"{server.url} gives no log-probabilities of tokens: what needs them is left out"
    ]


async def test_who_cannot_do_without_log_probabilities_is_told_the_way_out(
    server: ChatServer, clip: ClipRef
) -> None:
    server.gives_logprobs = False
    with pytest.raises(EngineError, match=r"gives no log-probabilities.*; take samples"):
        await asked(server, clip, wants_logprobs=True, needs_logprobs="take samples")


async def test_the_longest_answer_goes_by_the_name_that_a_server_knows(
    server: ChatServer, clip: ClipRef
) -> None:
    message = "Unsupported parameter: 'max_tokens' is not supported with this model. "
    refusal = problem(400, message + "Use 'max_completion_tokens' instead.", param="max_tokens")
    server.answer = lambda body: refusal if "max_tokens" in body else "yes"
    await asked(server, clip, times=2)
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None, 7, 7]


async def test_samples_are_asked_for_one_by_one_where_several_are_not_given(
    server: ChatServer, clip: ClipRef
) -> None:
    server.gives_many = False
    assert len((await asked(server, clip, num_samples=3, seed=5)).answers) == 3
    assert [body["n"] for body in server.bodies] == [3, 2, 1]
    assert len({body["seed"] for body in server.bodies}) == 3
    server.bodies.clear()
    refusal = problem(400, "Only one completion choice is allowed", param="n")
    server.answer = lambda body: refusal if "n" in body else "yes"
    reply = await asked(server, clip, num_samples=3)
    assert len(reply.answers) == 3
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 300
    assert ["n" in body for body in server.bodies] == [True, False, False, False]


async def test_a_server_without_seeds_is_told_about(server: ChatServer, clip: ClipRef) -> None:
    refusal = problem(400, "Unsupported parameter: 'seed'", param="seed")
    server.answer = lambda body: refusal if "seed" in body else "yes"
    told: list[str] = []
    await asked(server, clip, seed=1, times=2, say=told.append)
    assert len(told) == 1
    assert "takes no seed" in told[0]


@pytest.mark.parametrize("frames_as", ["video", "sequence"])
async def test_fields_that_only_some_servers_know_are_left_out_where_they_are_refused(
    server: ChatServer, clip: ClipRef, frames_as: FramesAs
) -> None:
    trusted: Body = {}

    def answer(body: Body) -> Response | str:
        for field in ("mm_processor_kwargs", "repetition_penalty"):
            if field in body:
                return problem(400, f"Per-request {field} are disabled by default.", param=field)
        trusted.update(body)
        return "yes"

    server.answer = answer
    told: list[str] = []
    await asked(server, clip, times=2, frames_as=frames_as, say=told.append)
    assert len(server.bodies) == 4
    assert "media_io_kwargs" in trusted
    assert [line.partition(": ")[0] for line in told] == [
        f"{server.url} takes no mm_processor_kwargs",
        f"{server.url} takes no repetition_penalty",
    ]
    assert ("anew" in told[0]) == (frames_as == "video")


async def test_without_the_times_of_its_frames_a_sequence_is_refused(
    server: ChatServer, clip: ClipRef
) -> None:
    told = "Per-request media_io_kwargs are disabled by default."
    server.answer = lambda body: problem(400, told) if "media_io_kwargs" in body else "yes"
    with pytest.raises(Refused, match="--trust-request-mm-kwargs; --frames-as video does without"):
        await asked(server, clip, frames_as="sequence")
    assert (await asked(server, clip, frames_as="video")).answers[0].text == "yes"


async def test_frames_are_decoded_once_for_all_questions_about_a_clip(
    server: ChatServer, clip: ClipRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[ClipRef] = []

    def counted(one: ClipRef, *, frames_as: FramesAs) -> Media:
        packed.append(one)
        return media_of(one, frames_as=frames_as)

    monkeypatch.setattr("jobs.asking.openai.endpoint.media_of", counted)
    await asked(server, clip, times=3)
    assert packed == [clip]


@pytest.mark.parametrize(
    ("said", "text", "ending"),
    [
        (Said("half an", "length"), "half an", "length"),
        (Said(None, "content_filter"), "", "content_filter"),
        (Said(None, refusal="I would rather not."), "I would rather not.", "refusal"),
        (Said("yes", "tool_calls"), "yes", "stop"),
    ],
)
async def test_how_an_answer_ended_is_kept(
    server: ChatServer, clip: ClipRef, said: Said, text: str, ending: str
) -> None:
    server.answer = lambda _: said
    (answer,) = (await asked(server, clip)).answers
    assert (answer.text, answer.ending) == (text, ending)


async def test_a_refusal_without_log_probabilities_does_not_speak_for_all(
    server: ChatServer, clip: ClipRef
) -> None:
    server.gives_logprobs = False
    server.answer = lambda _: Said(None, refusal="I would rather not.")
    await asked(server, clip, times=2, wants_logprobs=True)
    assert ["logprobs" in body for body in server.bodies] == [True, True]


async def test_a_question_that_a_filter_holds_back_is_answered_so(
    server: ChatServer, clip: ClipRef
) -> None:
    server.answer = lambda _: problem(400, "The response was filtered.", code="content_filter")
    reply = await asked(server, clip, num_samples=2)
    assert [answer.ending for answer in reply.answers] == ["content_filter"] * 2
    assert len(server.bodies) == 1


async def test_a_thought_that_is_given_apart_is_kept_apart(
    server: ChatServer, clip: ClipRef
) -> None:
    server.answer = lambda _: Said("3 to 4", reasoning="hm")
    (answer,) = (await asked(server, clip)).answers
    assert (answer.text, answer.thought) == ("3 to 4", "hm")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, Busy), (503, NotReady), (500, Broken), (400, Refused), (422, Refused), (413, Refused)],
)
async def test_errors_are_those_of_replicas(
    server: ChatServer, clip: ClipRef, status: int, kind: type[Exception]
) -> None:
    server.answer = lambda _: problem(status, "no way", Retry_After="2")
    with pytest.raises(EngineError, match="no way") as caught:
        await asked(server, clip)
    assert type(caught.value) is kind
    if isinstance(caught.value, Busy):
        assert caught.value.retry_after_s == 2.0


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (problem(401, "who"), "who; set TEMPSAMP_OPENAI_KEY"),
        (problem(404, "no such model"), "--served-model the model's name"),
        (problem(429, "You exceeded your quota", code="insufficient_quota"), "exceeded your quota"),
    ],
)
async def test_what_waiting_does_not_mend_ends_everything(
    server: ChatServer, clip: ClipRef, answer: Response, told: str
) -> None:
    server.answer = lambda _: answer
    with pytest.raises(EngineError, match=told) as caught:
        await asked(server, clip)
    assert type(caught.value) is EngineError


@pytest.mark.parametrize("raw", ["{}", "text", '{"choices": []}'])
async def test_what_is_no_completion_is_said(server: ChatServer, clip: ClipRef, raw: str) -> None:
    server.answer = lambda _: Response(raw)
    with pytest.raises(Broken, match="wanted a chat completion"):
        await asked(server, clip)


def test_the_model_is_the_named_or_the_only_one(server: ChatServer) -> None:
    assert model_at(server.url, name=None, token=None) == "a/b"
    server.models = ["a/b", "a/bc", "z"]
    assert model_at(server.url, name="z", token=SecretStr("k")) == "z"
    with pytest.raises(ConfigError, match=r"--served-model: found none, wanted one of a/b, a/bc, "):
        model_at(server.url, name=None, token=None)
    with pytest.raises(ConfigError, match=r"found 'a/bd', wanted .*; nearest: a/b, a/bc"):
        model_at(server.url, name="a/bd", token=None)
    server.key = "s"
    with pytest.raises(ConfigError, match=r"status 401.*set TEMPSAMP_OPENAI_KEY"):
        model_at(server.url, name="z", token=SecretStr("k"))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "nonsense", "http://[", "ftp://a"])
def test_who_is_no_such_server_is_said(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--openai: found .*wanted the base URL"):
        model_at(url, name=None, token=None)


def test_where_no_models_are_listed_one_has_to_be_named(server: ChatServer) -> None:
    with pytest.raises(ConfigError, match=r"without /models, wanted the base URL.*--served-model"):
        model_at(f"{server.url}/v1", name=None, token=None)
    assert model_at(f"{server.url}/v1", name="a/b", token=None) == "a/b"


@pytest.mark.parametrize("url", ["http://user:hush@a/v1", "http://a/v1?api-key=hush"])
def test_a_key_in_a_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_at(url, name=None, token=None)
    assert "hush" not in str(caught.value)


def about(body: Body) -> str:
    """A right answer to the highlight question, the middle to the other."""
    if "one frame" in " ".join(texts_of(body)):
        return '{"center": [500, 500], "size": [1000, 1000]}'
    return f'{{"segments": [[{subject(0).span_s[0]}, {subject(0).span_s[1]}]]}}'


def test_reframe_asks_it(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPSAMP_OPENAI_KEY", "k" * 32)
    monkeypatch.setenv("TEMPSAMP_TOKEN", "of the ring")
    write_task(tmp_path, count=1)
    server.answer = about
    where = ["--index", f"{tmp_path}/test_index.json", "--video-dir", f"{tmp_path}/videos"]
    arguments = [*where, "--out", f"{tmp_path}/sub.jsonl", "--openai", server.url]
    ended = CliRunner().invoke(tempsamp.app, ["reframe", "qwen", *arguments])
    assert ended.exit_code == 0, (ended.output, ended.exception)
    assert "1 videos: 1 followed" in ended.output
    assert set(server.keys) == {"Bearer " + "k" * 32}
    assert {body["temperature"] for body in server.bodies} == {0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--openai", "http://a/v1", "--endpoint", "http://b"], "--openai: found it with"),
        (["--openai", "http://a/v1", "--model", "m"], "--openai: found it with --model"),
        (["--served-model", "c", "--endpoint", "http://b"], "--served-model: found 'c' without"),
    ],
)
def test_options_that_exclude_each_other(options: list[str], message: str) -> None:
    where = ["--index", "i.json", "--video-dir", ".", "--out", "s.jsonl"]
    ended = CliRunner().invoke(tempsamp.app, ["reframe", "qwen", *where, *options])
    assert isinstance(ended.exception, ConfigError)
    assert message in str(ended.exception)
