"""`tempsamp ground` as a command, against a replica's API over real HTTP."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import pytest
import typer
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from common.errors import ConfigError, EngineError, OutputError, TempSampError, VideoError
from common.messages import (
    GeneratedAnswer,
    GenerateRequest,
    GenerateResponse,
    ReplicaStatus,
    Sample,
    TextPart,
    VersionSpan,
)
from common.prompts import grounding_problem
from common.rest.problems import Problem, install_problem_handlers
from jobs.ground.command import command
from tests.fixtures.clips import ffmpeg
from tests.fixtures.wire import replica_status

ROOT = Path(__file__).resolve().parents[4]
QUERY = "the lid comes off"
GREEDY = "<answer> 4.5 to 7.0 </answer>"
SAMPLES = (
    "<answer> 4.5 to 7.0 </answer>",
    "<answer> 0.5 to 2.0 </answer>",
    "when the music stops",
    "<answer> 4.0 to 7.0 </answer>",
)

app = typer.Typer()
app.command()(command)


@dataclass
class Replica:
    """What is answered, and what was asked."""

    greedy: str = GREEDY
    samples: Sequence[str] = ()
    refusal: str = ""
    url: str = ""
    requests: list[GenerateRequest] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)


@pytest.fixture
def replica() -> Iterator[Replica]:
    """POST /v1/generate on a free port."""
    replica = Replica()
    service = FastAPI()
    install_problem_handlers(service)

    @service.get("/readyz")
    async def readyz() -> ReplicaStatus:
        return replica_status("replica", version=7)

    @service.post("/v1/generate")
    async def generate(body: GenerateRequest, request: Request) -> GenerateResponse:
        replica.requests.append(body)
        replica.tokens.append(request.headers.get("Authorization"))
        if replica.refusal:
            raise Problem(422, replica.refusal)
        texts = [replica.greedy] if body.sampling.temperature == 0 else replica.samples
        return GenerateResponse(
            prompt_token_ids=(1,),
            num_visual_tokens=0,
            grid_thw=(1, 1, 1),
            answers=tuple(map(answered, texts)),
        )

    listening = socket.create_server(("127.0.0.1", 0))
    replica.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(service, log_config=None, access_log=False, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield replica
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def answered(text: str) -> GeneratedAnswer:
    count = len(text)
    sample = Sample(
        token_ids=(5,) * count,
        logprobs=(-0.25,) * count,
        version_spans=(VersionSpan(version=7, start=0, end=count),),
        finish_reason="stop",
        provenance="policy",
    )
    return GeneratedAnswer(sample=sample, text=text)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 s at 8 fps with a key frame every 2 s."""
    path = tmp_path_factory.mktemp("ground") / "film [1].mp4"
    ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=64x48:r=8:d=10", "-c:v", "libx264", "-g", "16"),
        *("-sc_threshold", "0", "-pix_fmt", "yuv420p", path),
    )
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs, on a wide terminal and without a token."""
    monkeypatch.chdir(tmp_path)
    # Where COLUMNS is set when the module is imported, as in xdist's workers, its width stays.
    monkeypatch.setattr("jobs.ground.command.console", Console(width=200))
    monkeypatch.delenv("TEMPSAMP_TOKEN", raising=False)
    return tmp_path


def run(video: Path, replica: Replica | None, *arguments: str, query: str = QUERY) -> Result:
    where = [] if replica is None else ["--endpoint", replica.url]
    return CliRunner().invoke(app, [str(video), query, *where, *arguments])


def succeeded(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def failed(result: Result, kind: type[TempSampError] | type[ConfigError]) -> str:
    assert isinstance(result.exception, kind), result.output
    return str(result.exception)


def question_of(request: GenerateRequest) -> str:
    parts = request.messages[0].content
    return "".join(part.text for part in parts if isinstance(part, TextPart))


def test_one_greedy_answer_is_asked_for_and_shown_with_its_probability(
    replica: Replica, video: Path, folder: Path
) -> None:
    shown = succeeded(run(video, replica))
    (request,) = replica.requests
    assert (request.sampling.temperature, request.num_samples) == (0.0, 1)
    assert Path(request.clip.uri) == video
    assert "<video>" + question_of(request) == grounding_problem(QUERY, mode="answer")
    assert "4.50 to 7.00 s" in shown
    assert "78%" in shown  # exp(-0.25)
    assert "probabilities of the answer's tokens" in shown
    assert "film [1].mp4 · 10.00 s" in shown
    with Image.open(folder / "film [1]-ground.png") as sheet:
        assert sheet.width == 1600


def test_samples_are_asked_for_beside_the_greedy_answer(replica: Replica, video: Path) -> None:
    replica.samples = SAMPLES
    succeeded(run(video, replica, "--n", "4", "--seed", "9", "--think", "--max-tokens", "900"))
    by_temperature = {r.sampling.temperature: r for r in replica.requests}
    assert set(by_temperature) == {0.0, 1.0}
    sampled = by_temperature[1.0]
    assert (sampled.num_samples, sampled.sampling.seed) == (4, 9)
    assert {r.sampling.max_tokens for r in replica.requests} == {900}
    assert "<video>" + question_of(sampled) == grounding_problem(QUERY, mode="think")


def test_candidates_are_listed_by_the_share_of_samples_and_unreadable_ones_shown(
    replica: Replica, video: Path
) -> None:
    replica.samples = SAMPLES
    shown = succeeded(run(video, replica, "--n", "4"))
    first, second = (line for line in shown.splitlines() if "%" in line)
    assert " ".join(first.split()) == "1 4.50 to 7.00 s 50% 2 of 4 0.28 greedy answer"
    assert " ".join(second.split()) == "2 0.50 to 2.00 s 25% 1 of 4 0.00"
    assert "1 of 5 answers could not be read:" in shown
    assert "'when the music stops'" in shown
    assert "share of all samples" in shown


def test_json_is_one_document_with_everything(replica: Replica, video: Path, folder: Path) -> None:
    replica.samples = SAMPLES
    result = run(video, replica, "--n", "4", "--json", "--out", "s.png", "--cut", "c.mp4")
    document: dict[str, Any] = json.loads(succeeded(result))
    best, second = document["candidates"]
    assert (best["spans"], best["confidence"], best["is_greedy"]) == ([[4.5, 7.0]], 0.5, True)
    assert (second["spans"], second["confidence"]) == ([[0.5, 2.0]], 0.25)
    assert [answer["text"] for answer in document["answers"]] == [GREEDY, *SAMPLES]
    assert (document["num_unreadable"], document["policy_version"]) == (1, 7)
    assert (document["query"], document["duration_s"]) == (QUERY, 10.0)
    assert "tokens" not in document["answers"][0]
    assert document["sheet"] == "s.png"
    (clip,) = document["clips"]
    assert (clip["path"], clip["start_s"], clip["lead_s"]) == ("c.mp4", 4.0, 0.5)
    assert {path.name for path in folder.iterdir()} == {"s.png", "c.mp4"}


def test_the_clip_holds_the_best_span_and_its_lead_is_told(
    replica: Replica, video: Path, folder: Path
) -> None:
    shown = succeeded(run(video, replica, "--cut", "clip.mkv"))
    assert "clip: clip.mkv, 4.00 to 7.00 s of the video; starts 0.50 s early" in shown
    with av.open(folder / "clip.mkv") as clip:
        assert sum(1 for _ in clip.decode(video=0)) == 24


def test_a_window_is_asked_about_shown_and_cut_where_it_lies(
    replica: Replica, video: Path, folder: Path
) -> None:
    replica.greedy = "<answer> 1.0 to 2.0 </answer>"
    part = ("--start", "3", "--end", "8.5")
    shown = succeeded(run(video, replica, *part, "--cut", "clip.mkv"))
    assert "5.50 s (3.00 to 8.50 s of it)" in shown
    assert "clip: clip.mkv, 4.00 to 5.12 s of the video" in shown  # a B-frame needs the last one
    (request,) = replica.requests
    assert request.clip.window_s == (3.0, 8.5)
    assert (request.clip.frame_indices[0], request.clip.frame_times_s[0]) == (24, 0.0)
    found = json.loads(succeeded(run(video, replica, *part, "--json", "--out", "sheet.png")))
    assert (found["window_s"], found["duration_s"]) == ([3.0, 8.5], 5.5)
    assert found["candidates"][0]["spans"] == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (("--start", "3", "--end", "3"), "--end: found 3.0 s"),
        (("--start", "30"), "wanted 30.00 s to the end of it (--start and --end)"),
    ],
)
def test_a_window_that_the_video_does_not_have_is_refused(
    replica: Replica, video: Path, part: tuple[str, ...], told: str
) -> None:
    assert told in failed(run(video, replica, *part), ConfigError)
    assert replica.requests == []


def test_an_answer_of_several_spans_becomes_several_clips(
    replica: Replica, video: Path, folder: Path
) -> None:
    replica.greedy = "<answer> 2.0 to 3.0, 8.0 to 9.0 </answer>"
    shown = succeeded(run(video, replica, "--cut", "clip.mp4"))
    assert "2.00 to 3.00, 8.00 to 9.00 s" in shown
    assert {path.name for path in folder.glob("*.mp4")} == {"clip-1.mp4", "clip-2.mp4"}


def test_an_answer_that_leaves_the_video_is_shown_as_given_and_its_clip_is_what_there_is(
    replica: Replica, video: Path
) -> None:
    replica.greedy = "<answer> 8.0 to 30.0 </answer>"
    shown = succeeded(run(video, replica, "--cut", "clip.mp4"))
    assert "8.00 to 30.00 s" in shown
    assert "ends 20.00 s after the video" in shown
    assert "20.00 s of the answer are not in the video" in shown


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_an_answer_outside_the_video_is_printed_before_the_cut_fails(
    replica: Replica, video: Path, folder: Path, form: list[str]
) -> None:
    replica.greedy = "<answer> 80 to 90 </answer>"
    result = run(video, replica, "--cut", "clip.mp4", "--out", "sheet.png", *form)
    assert "found span 80.00 to 90.00 s" in failed(result, VideoError)
    assert "outside the video of 10.00 s" in result.stdout
    assert [path.name for path in folder.iterdir()] == ["sheet.png"]


def test_an_answer_that_cannot_be_read_is_shown_and_fails(
    replica: Replica, video: Path, folder: Path
) -> None:
    replica.greedy = "x" * 300
    result = run(video, replica, "--cut", "clip.mp4", "--out", "sheet.png")
    assert "none of 1 answers could be read" in failed(result, EngineError)
    assert "1 of 1 answers could not be read" in result.stdout
    assert "x" * 200 + "…" in result.stdout
    assert [path.name for path in folder.iterdir()] == ["sheet.png"]


def test_a_run_file_sets_frames_and_length_of_answers(replica: Replica, video: Path) -> None:
    succeeded(run(video, replica, "--config", str(ROOT / "deploy/configs/demo.toml")))
    (request,) = replica.requests
    assert request.sampling.max_tokens == 18
    assert request.clip.frame_hw == (16, 32)  # of 48 x 64, within 1,024 pixels
    assert len(request.clip.frame_indices) == 10  # one a second


def test_a_checkpoint_sets_the_size_of_frames_for_a_running_replica(
    replica: Replica, video: Path
) -> None:
    succeeded(run(video, replica, "--model", str(ROOT / "deploy/tiny-qwen3vl")))
    (request,) = replica.requests
    assert request.clip.frame_hw == (112, 160)  # 64 tokens of 16 x 16 at least


def test_the_token_of_the_environment_is_shown_to_the_replica(
    replica: Replica, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPSAMP_TOKEN", "secret")
    succeeded(run(video, replica))
    assert replica.tokens == ["Bearer secret"]


def test_a_refused_question_ends_with_the_replicas_reason(replica: Replica, video: Path) -> None:
    replica.refusal = "found 9000 prompt tokens, wanted at most 900"
    assert "9000 prompt tokens" in failed(run(video, replica), EngineError)


@pytest.mark.parametrize("content", [None, b"", b"these are notes, no video\n" * 50])
def test_a_file_that_is_no_video_is_named_before_anybody_is_asked(
    replica: Replica, folder: Path, content: bytes | None
) -> None:
    video = folder / "notes.mp4"
    if content is not None:
        video.write_bytes(content)
    assert "notes.mp4" in failed(run(video, replica), ConfigError)
    assert replica.requests == []


@pytest.mark.parametrize("query", ["", "  \n", "a <video> in it"])
def test_a_query_that_cannot_be_asked_is_refused(replica: Replica, video: Path, query: str) -> None:
    failed(run(video, replica, query=query), ConfigError)
    assert replica.requests == []


@pytest.mark.parametrize(
    ("option", "output", "problem"),
    [
        ("--out", "sheet.jpg", r"wanted a .png"),
        ("--out", "film [1].mp4/sheet.png", "Not a directory"),
        ("--out", "folder.png", "a folder, wanted a file"),
        ("--cut", "film [1].mp4", "would overwrite the input"),
        ("--cut", "clip.gif", "--cut: found suffix '.gif'"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anybody_is_asked(
    replica: Replica, video: Path, folder: Path, option: str, output: str, problem: str
) -> None:
    (folder / "folder.png").mkdir()
    (folder / video.name).write_bytes(video.read_bytes())
    result = run(folder / video.name, replica, option, output)
    assert problem in failed(result, ConfigError)
    assert replica.requests == []


def test_a_sheet_that_the_disk_refuses_is_told_after_the_answer(
    replica: Replica, video: Path
) -> None:
    name = f"{'n' * 250}.png"  # fits a folder, but not with the suffix of a partial file
    result = run(video, replica, "--out", name)
    assert f"--out: {name}: File name too long" in failed(result, OutputError)
    assert "4.50 to 7.00 s" in result.stdout


def test_a_service_that_is_no_replica_is_named(video: Path) -> None:
    problem = failed(run(video, Replica(url="ftp://replica")), ConfigError)
    assert "--endpoint: found 'ftp://replica'" in problem


def test_somebody_must_be_named_to_ask(video: Path) -> None:
    problem = failed(run(video, None), ConfigError)
    assert "--endpoint" in problem
    assert "--model" in problem


def test_a_folder_that_is_no_checkpoint_is_refused(video: Path, folder: Path) -> None:
    with contextlib.chdir(folder):
        assert "config.json" in failed(run(video, None, "--model", "."), ConfigError)
