"""`tempsamp eval` and `ground` with --openai, of a server that checks every request."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response
from typer.testing import CliRunner, Result

import tempsamp
from common.errors import ConfigError, EngineError
from common.prompts import EVALUATION_PROMPTS, grounding_problem
from tests.fixtures.clips import make_clip
from tests.fixtures.servers.chat_server import Body, ChatServer, Said, problem, serving, texts_of

ROOT = Path(__file__).resolve().parents[3]
SPANS = {"long 0": (0.5, 2.0), "long 1": (2.0, 3.5), "short 0": (0.0, 1.0)}
DURATIONS_S = {"long": 4.0, "short": 2.0}
KEY = "sk-hush-hush"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips and three trainer rows, the second about a window."""
    root = tmp_path_factory.mktemp("rows")
    for name, duration_s in DURATIONS_S.items():
        make_clip(root / f"{name}.mp4", num_frames=int(8 * duration_s))
    rows: list[dict[str, Any]] = [
        {"query": query, "videos": [f"{query.split()[0]}.mp4"], "spans": [list(span)]}
        for query, span in SPANS.items()
    ]
    rows[1] |= {"start_s": 1.0, "end_s": 4.0, "spans": [[1.0, 2.5]]}
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def truth(body: Body) -> str:
    """A perfect model; about the window times count from its start."""
    found = re.search(r"(long|short) \d", texts_of(body)[-1])
    assert found is not None
    start_s, end_s = SPANS[found[0]]
    shift_s = 1.0 if found[0] == "long 1" else 0.0
    return f"<answer> {start_s - shift_s:.2f} to {end_s - shift_s:.2f} </answer>"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """It wants a key, and the environment has it, besides a token of the ring's."""
    monkeypatch.setenv("TEMPSAMP_OPENAI_KEY", KEY)
    monkeypatch.setenv("TEMPSAMP_TOKEN", "of-the-ring")
    with serving(truth, key=KEY) as running:
        yield running


def run(data: Path, out: Path, *options: str, server: ChatServer) -> Result:
    given = ["--bench", f"{data}/rows.jsonl", "--video-root", f"{data}", "--out", f"{out}"]
    return CliRunner(env={"COLUMNS": "200"}).invoke(
        tempsamp.app, ["eval", "--no-report", "--openai", server.url, *given, *options]
    )


def done(data: Path, out: Path, *options: str, server: ChatServer) -> str:
    ended = run(data, out, *options, server=server)
    assert ended.exit_code == 0, (ended.output, ended.exception)
    return ended.output


def refused(data: Path, out: Path, *options: str, server: ChatServer) -> str:
    ended = run(data, out, *options, server=server)
    assert isinstance(ended.exception, ConfigError | EngineError), ended.output
    return str(ended.exception)


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "rows" / "summary.json").read_text())
    return found


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("frames_as", ["video", "sequence", "images"])
def test_rows_are_asked_as_replicas_are_and_scored(
    data: Path, tmp_path: Path, server: ChatServer, frames_as: str
) -> None:
    shown = done(data, tmp_path, "--frames-as", frames_as, server=server)
    assert summary(tmp_path)["score"]["protocols"]["exact"]["miou"]["mean"] == 100.0
    template = EVALUATION_PROMPTS["ours"]["answer"].removeprefix("<video>")
    assert {texts_of(body)[-1] for body in server.bodies} == {
        template.format(query=query) for query in SPANS
    }
    body = server.bodies[0]
    assert (body["temperature"], body["top_p"], body["n"], body["max_tokens"]) == (0, 1, 1, 512)
    found = records(tmp_path / "rows")
    assert {record["answer_logprob"] for record in found} == {-0.25}
    assert {record["prompt_tokens"] for record in found} == {100}
    assert "300 prompt and" in shown
    settings = json.loads((tmp_path / "rows" / "settings.json").read_text())
    assert settings["model"] == {
        "kind": "openai",
        "url": server.url,
        "served_model": "a/b",
        "frames_as": frames_as,
    }


def test_times_of_a_window_count_from_its_start(
    data: Path, tmp_path: Path, server: ChatServer
) -> None:
    done(data, tmp_path, "--frames-as", "images", server=server)
    (body,) = (body for body in server.bodies if "long 1" in texts_of(body)[-1])
    times = texts_of(body)[:-1]
    assert (times[0], times[-1]) == ("<0.0 seconds>", "<2.9 seconds>")  # frame 31 of 8 a second


def test_the_key_is_shown_to_the_server_alone(
    data: Path, tmp_path: Path, server: ChatServer
) -> None:
    shown = done(data, tmp_path, server=server)
    assert set(server.keys) == {f"Bearer {KEY}"}
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 3
    assert not any(KEY in text for text in (shown, *written))


def test_a_run_goes_on_and_another_model_or_server_is_another_run(
    data: Path, tmp_path: Path, server: ChatServer
) -> None:
    done(data, tmp_path, "--limit", "1", server=server)
    assert len(server.bodies) == 1
    done(data, tmp_path, server=server)
    assert len(server.bodies) == summary(tmp_path)["answered"] == 3
    server.models = ["a/b", "c"]
    with serving(truth, key=KEY) as other:
        for who, options, difference in (
            (server, ("--served-model", "c"), "model.served_model: found 'a/b', wanted 'c'"),
            (server, ("--served-model", "a/b", "--frames-as", "images"), "model.frames_as: found"),
            (other, (), "model.url: found"),
        ):
            assert difference in refused(data, tmp_path, *options, server=who)
        assert other.bodies == []


def test_both_modes_are_mixed_by_agreement_of_samples(
    data: Path, tmp_path: Path, server: ChatServer
) -> None:
    server.gives_logprobs = False
    mixed = ("--mode", "mixed_selected", "--selector", "agreement", "--samples", "3", "--seed", "2")
    shown = done(data, tmp_path, *mixed, server=server)
    assert shown.count("gives no log-probabilities of tokens: what needs them is left out") == 1
    found = summary(tmp_path)
    assert list(found["mixed"]["miou"]) == ["answer", "think", "agreement", ORACLE]
    sampled = [body for body in server.bodies if body["temperature"]]
    assert {(body["n"], body["temperature"]) for body in sampled} == {(3, 1)}
    assert len({body["seed"] for body in sampled}) == 3  # one a query, both modes share it
    assert "<think>" in "".join(texts_of(body)[-1] for body in sampled)
    for record in records(tmp_path / "rows" / "think"):
        assert len(record["samples"]) == 3
        assert not {"answer_logprob", "samples_surprise_nats", "samples_tokens"} & set(record)


ORACLE = "oracle (uses the truth)"


def test_what_chooses_by_log_probability_needs_it(
    data: Path, tmp_path: Path, server: ChatServer
) -> None:
    mixed = ("--mode", "mixed_selected", "--selector", "logprob")
    done(data, tmp_path / "one", *mixed, server=server)
    assert "logprob" in summary(tmp_path / "one")["mixed"]["miou"]
    server.gives_logprobs = False
    told = refused(data, tmp_path / "two", *mixed, server=server)
    assert told.endswith("--selector agreement chooses by samples instead")


def test_what_is_cut_off_refused_or_held_back_is_an_answer_and_counted(
    data: Path, tmp_path: Path, server: ChatServer
) -> None:
    said: dict[str, Said | Response] = {
        "long 0": Said("I think it", "length"),
        "long 1": Said(None, refusal="I would rather not."),
        "short 0": problem(400, "filtered", code="content_filter"),
    }
    server.answer = lambda body: next(said[query] for query in SPANS if query in texts_of(body)[-1])
    shown = done(data, tmp_path, server=server)
    found = summary(tmp_path)
    assert found["endings"] == {"length": 1, "refusal": 1, "content_filter": 1}
    exact = found["score"]["protocols"]["exact"]
    assert (exact["scored"], exact["miou"]["mean"], exact["failures"]["parse"]) == (3, 0.0, 3)
    assert "1 cut off at --max-tokens; 1 refused by the model; 1 held back by a content f" in shown
    done(data, tmp_path, server=server)
    assert len(server.bodies) == 3  # they are answers: not asked again


def test_trouble_is_waited_for_and_counted(data: Path, tmp_path: Path, server: ChatServer) -> None:
    trouble = iter(
        [problem(429, "slow down", Retry_After="0"), problem(503, "loading"), problem(500, "oops")]
    )

    def answer(body: Body) -> str | Response:
        if "short 0" in texts_of(body)[-1]:
            return problem(500, "cannot do this one")
        return next(trouble, None) or truth(body)

    server.answer = answer
    done(data, tmp_path, "--concurrency", "1", server=server)
    assert summary(tmp_path)["score"]["protocols"]["exact"]["failures"]["engine"] == 1
    failed = next(one for one in records(tmp_path / "rows") if "error" in one)
    assert "the server failed 3 times" in failed["error"]
    assert "cannot do this one" in failed["error"]


def test_pictures_are_few_unless_a_run_file_says_more(
    data: Path, tmp_path: Path, server: ChatServer
) -> None:
    done(data, tmp_path, "--frames-as", "images", server=server)
    settings = json.loads((tmp_path / "rows" / "settings.json").read_text())
    assert settings["clip"]["max_frames"] == 64


def test_frames_fit_a_model_that_is_named_and_the_page_names_who_answered(
    data: Path, tmp_path: Path, server: ChatServer
) -> None:
    server.answer = lambda _: Said("<answer> 0 to 1 </answer>", "length")
    done(data, tmp_path, "--model", f"{ROOT}/deploy/tiny-qwen3vl", "--report", server=server)
    settings = json.loads((tmp_path / "rows" / "settings.json").read_text())
    assert settings["clip"]["factor"] == 16
    page = (tmp_path / "report.html").read_text()
    assert "a/b" in (tmp_path / "tables.md").read_text()
    assert server.url in page
    assert "Of the answers, 3 cut off at --max-tokens." in page


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--endpoint", "http://a"), "--openai: found it with --endpoint"),
        (("--served-model", "a/c"), "wanted one of a/b at"),
    ],
)
def test_mistakes_are_told_before_anything_is_asked(
    data: Path, tmp_path: Path, server: ChatServer, options: tuple[str, ...], told: str
) -> None:
    assert told in refused(data, tmp_path, *options, server=server)
    assert server.bodies == []


def test_options_of_such_a_server_have_no_effect_without_one(tmp_path: Path) -> None:
    for option, value in (("--served-model", "m"), ("--frames-as", "images")):
        given = ["--bench", "r.jsonl", "--video-root", ".", "--out", f"{tmp_path}/o"]
        ended = CliRunner().invoke(
            tempsamp.app, ["eval", *given, "--endpoint", "http://a", option, value]
        )
        assert isinstance(ended.exception, ConfigError)
        assert f"{option}: found" in str(ended.exception)


def ground(data: Path, *options: str, server: ChatServer) -> Result:
    given = ["ground", f"{data}/long.mp4", "long 0", "--openai", server.url, *options]
    return CliRunner(env={"COLUMNS": "200"}).invoke(tempsamp.app, given)


def test_one_question_is_asked_and_its_confidence_known_or_not(
    data: Path, tmp_path: Path, server: ChatServer
) -> None:
    sheet = ("--out", f"{tmp_path}/sheet.png", "--json")
    ended = ground(data, *sheet, "--think", "--frames-as", "images", server=server)
    assert ended.exit_code == 0, (ended.output, ended.exception)
    found = json.loads(ended.stdout)
    assert (found["served_model"], found["policy_version"]) == ("a/b", None)
    assert found["candidates"][0]["spans"] == [[0.5, 2.0]]
    assert found["candidates"][0]["confidence"] == pytest.approx(0.7788, abs=1e-4)
    assert texts_of(server.bodies[0])[-1] == grounding_problem("long 0", mode="think").removeprefix(
        "<video>"
    )
    server.gives_logprobs = False
    ended = ground(data, *sheet, server=server)
    found = json.loads(ended.stdout)
    assert found["candidates"][0]["confidence"] is None
    assert found["confidence_is"].startswith("unknown: the server gives no log-probabilities")
    ended = ground(data, *sheet, "--n", "4", "--seed", "9", server=server)
    assert json.loads(ended.stdout)["candidates"][0]["confidence"] == 1.0
    sampled = server.bodies[-1] if server.bodies[-1]["temperature"] else server.bodies[-2]
    assert (sampled["n"], sampled["seed"]) == (4, 9)
    ended = ground(data, "--out", f"{tmp_path}/sheet.png", server=server)
    assert "unknown" in ended.output
    assert "a/b" in ended.output


def test_a_refusal_of_one_question_is_told(data: Path, tmp_path: Path, server: ChatServer) -> None:
    server.answer = lambda _: Said(None, refusal="No.")
    sheet = f"{tmp_path}/sheet.png"
    ended = ground(data, "--out", sheet, server=server)
    assert isinstance(ended.exception, EngineError)
    assert "'No.' (greedy, the model refused)" in ended.output
    server.answer = lambda _: problem(400, "At most 4 image(s) may be provided in one prompt.")
    ended = ground(data, "--out", sheet, "--frames-as", "images", server=server)
    assert isinstance(ended.exception, EngineError)
    assert "shared.video.max_frames" in str(ended.exception)
