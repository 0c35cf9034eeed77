"""`tempsamp eval --endpoint`: benchmark file and clips in, answers, summary and tables out."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from common.errors import ConfigError
from common.messages import GenerateRequest
from jobs.evaluation.command import command
from jobs.evaluation.scoring.predictions import read_predictions
from jobs.evaluation.scoring.score import score_file
from tests.fixtures.clips import make_clip
from tests.fixtures.replicas.stand_in_replica import StandIn, question_of, refuse, serving

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = "import typer; from jobs.evaluation.command import command; typer.run(command)"
SPANS = {"long": [[0.5, 2.0], [2.0, 3.5]], "short": [[0.0, 1.0]]}
DURATIONS_S = {"long": 4.0, "short": 2.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of a benchmark in the published layout."""
    root = tmp_path_factory.mktemp("bench")
    videos = {}
    for name, spans in SPANS.items():
        make_clip(
            root / "videos" / "charades" / f"{name}.mp4", num_frames=int(8 * DURATIONS_S[name])
        )
        queries = [f"{name} {number}" for number in range(len(spans))]
        videos[name] = {"duration": DURATIONS_S[name], "spans": spans, "queries": queries}
    (root / "charades-timelens.json").write_text(json.dumps(videos))
    return root


def truth(request: GenerateRequest) -> str:
    """A perfect model, except that it says nothing readable about `short`."""
    name, number = re.search(r"(long|short) (\d)", question_of(request)).groups()  # type: ignore[union-attr]
    if name == "short":
        return "I cannot tell."
    start_s, end_s = SPANS[name][int(number)]
    return f"<answer> {start_s:.2f} to {end_s:.2f} </answer>"


def better_with_thought(request: GenerateRequest) -> str:
    """Right when it may think, else wrong."""
    if "<think>" in question_of(request):
        return f"<think> hm </think>{truth(request)}"
    return "<answer> 3.9 to 4.0 </answer>"


@pytest.fixture
def replica() -> Iterator[StandIn]:
    with serving(truth) as running:
        yield running


def arguments(data: Path, out: Path, *, url: str, **replaced: str) -> list[str]:
    settings = {
        "bench": "charades-timelens",
        "bench-dir": str(data),
        "video-root": str(data),
        "out": str(out),
        "endpoint": url,
        **{key.replace("_", "-"): value for key, value in replaced.items()},
    }
    return [text for key, value in settings.items() for text in (f"--{key}", value)]


def evaluate(
    data: Path, out: Path, *options: str, url: str, report: bool = False, **replaced: str
) -> Result:
    app = typer.Typer()
    app.command()(command)
    written = "--report" if report else "--no-report"
    given = [*arguments(data, out, url=url, **replaced), *options, written]
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, given)


def done(
    data: Path, out: Path, *options: str, url: str, report: bool = False, **replaced: str
) -> str:
    result = evaluate(data, out, *options, url=url, report=report, **replaced)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(data: Path, out: Path, *options: str, url: str, **replaced: str) -> str:
    result = evaluate(data, out, *options, url=url, **replaced)
    assert isinstance(result.exception, ConfigError), (result.output, result.exception)
    return str(result.exception)


def summary(out: Path, bench: str = "charades-timelens") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / bench / "summary.json").read_text())
    return found


def test_a_benchmark_is_answered_scored_and_shown(
    data: Path, tmp_path: Path, replica: StandIn
) -> None:
    shown = done(data, tmp_path, url=replica.url, protocol_prompt="timelens")
    assert sorted(replica.questions)[0].startswith("Please find the visual event")
    found = summary(tmp_path)
    assert (found["queries"], found["answered"], found["label"]) == (3, 3, "answer")
    exact = found["score"]["protocols"]["exact"]
    assert exact["miou"]["mean"] == pytest.approx(200 / 3)
    assert exact["failures"] == {"parse": 1, "video": 0, "engine": 0}
    assert exact["parse_rate"] == pytest.approx(2 / 3)
    # Whole seconds, halves to even: 0.5 to 2 becomes 0 to 2, and 2 to 3.5 becomes 2 to 4.
    assert found["score"]["protocols"]["timelens"]["miou"]["mean"] == pytest.approx(50.0)
    assert re.search(r"exact.*66\.67", shown)
    assert re.search(r"timelens \(official\).*50\.00", shown)


def test_the_longest_clip_is_asked_first_and_greedily(
    data: Path, tmp_path: Path, replica: StandIn
) -> None:
    done(data, tmp_path, url=replica.url, concurrency="1")
    assert ["long" in text for text in replica.questions] == [True, True, False]
    assert {request.sampling.temperature for request in replica.requests} == {0.0}
    assert {request.sampling.max_tokens for request in replica.requests} == {512}


def test_a_second_run_asks_nothing(data: Path, tmp_path: Path, replica: StandIn) -> None:
    first = done(data, tmp_path, url=replica.url)
    before = summary(tmp_path)
    assert len(replica.requests) == 3
    second = done(data, tmp_path, url=replica.url)
    assert len(replica.requests) == 3
    assert summary(tmp_path) == before
    assert first.splitlines()[-10:] == second.splitlines()[-10:]


def test_an_interrupted_run_goes_on_where_it_was(
    data: Path, tmp_path: Path, replica: StandIn
) -> None:
    done(data, tmp_path, url=replica.url)
    whole = summary(tmp_path)
    path = tmp_path / "charades-timelens" / "predictions.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    done(data, tmp_path, url=replica.url)
    assert len(replica.requests) == 4
    assert summary(tmp_path)["score"] == whole["score"]


def test_ctrl_c_keeps_every_answer_and_the_same_command_goes_on(data: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "charades-timelens" / "predictions.jsonl"
    with serving(truth, delay_s=1.0) as slow:
        given = arguments(data, tmp_path, url=slow.url, concurrency="1")
        running = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *given], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while not (predictions.exists() and predictions.stat().st_size):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        shown, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "the same command goes on" in " ".join(shown.split())
    kept = len(read_predictions(predictions).predictions)
    assert 1 <= kept < 3
    with serving(truth) as replica:
        done(data, tmp_path, url=replica.url)
    assert len(replica.requests) == 3 - kept


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"max_tokens": "64"}, "sampling.max_tokens.answer: found 512, wanted 64"),
        ({"protocol_prompt": "paper"}, "prompt: found 'ours', wanted 'paper'"),
        ({"mode": "think"}, "mode: found 'answer', wanted 'think'"),
    ],
)
def test_a_changed_setting_is_refused_with_the_difference(
    changed: dict[str, str], difference: str, data: Path, tmp_path: Path, replica: StandIn
) -> None:
    done(data, tmp_path, url=replica.url)
    assert difference in refused(data, tmp_path, url=replica.url, **changed)
    assert len(replica.requests) == 3


def test_other_weights_are_another_run(data: Path, tmp_path: Path, replica: StandIn) -> None:
    done(data, tmp_path, url=replica.url)
    with serving(truth, version=5) as later:
        assert "model.version: found 0, wanted 5" in refused(data, tmp_path, url=later.url)
        assert later.requests == []


def test_what_only_bounds_the_work_may_change(data: Path, tmp_path: Path, replica: StandIn) -> None:
    done(data, tmp_path, url=replica.url, limit="1")
    assert summary(tmp_path)["queries"] == 1
    done(data, tmp_path, url=replica.url, concurrency="2")
    assert summary(tmp_path)["answered"] == len(replica.requests) == 3
    assert "1 of 1 queries done" in done(data, tmp_path, url=replica.url, limit="1")


def test_missing_videos_are_refused_before_anything_is_asked_or_counted_apart(
    data: Path, tmp_path: Path, replica: StandIn
) -> None:
    videos = json.loads((data / "charades-timelens.json").read_text())
    videos["gone"] = {"duration": 9.0, "spans": [[1, 2], [3, 4]], "queries": ["gone 0", "gone 1"]}
    videos["odd"] = {"duration": 9.0, "spans": [[3, 2]], "queries": ["[bold]odd"]}
    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "charades-timelens.json").write_text(json.dumps(videos))
    out = tmp_path / "out"
    assert "videos/charades/gone.mp4" in refused(data, out, url=replica.url, bench_dir=str(folder))
    assert replica.requests == []
    shown = done(data, out, "--allow-missing", url=replica.url, bench_dir=str(folder))
    assert "2 queries of 1 missing videos" in shown
    assert "missing: videos/charades/gone.mp4" in shown
    assert "the true spans ((3.0, 2.0),) are not 0 <= start <= end" in shown
    found = summary(out)
    assert found["missing_videos"] == {"videos/charades/gone.mp4": 2}
    assert found["queries"] == found["score"]["protocols"]["timelens"]["scored"] == 3


def test_failures_are_counted_by_kind_and_exact_does_not_score_them(
    data: Path, tmp_path: Path
) -> None:
    def answer(request: GenerateRequest) -> str:
        asked = question_of(request)
        if "long 0" in asked:
            return refuse(422, "prompt too long")
        return refuse(422, "cannot decode", field="clip") if "short" in asked else truth(request)

    with serving(answer) as replica:
        done(data, tmp_path, url=replica.url)
    protocols = summary(tmp_path)["score"]["protocols"]
    assert protocols["exact"]["failures"] == {"parse": 0, "video": 1, "engine": 1}
    assert (protocols["exact"]["scored"], protocols["exact"]["miou"]["mean"]) == (1, 100.0)
    assert protocols["timelens"]["scored"] == 3
    assert protocols["exact"]["parse_rate"] == 1.0


def test_tables_and_report_are_written_over_everything_in_the_folder(
    data: Path, tmp_path: Path, replica: StandIn
) -> None:
    done(data, tmp_path, url=replica.url, report=True)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "report.html",
        "tables.csv",
        "tables.md",
        "tables.tex",
    }
    assert "served weights, version 0" in (tmp_path / "tables.md").read_text()


def test_two_shards_are_one_run(data: Path, tmp_path: Path, replica: StandIn) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    done(data, whole, url=replica.url)
    done(data, halves, url=replica.url, shard="1/2")
    assert summary(halves)["answered"] < 3
    done(data, halves, url=replica.url, shard="2/2")
    assert sorted(path.name for path in (halves / "charades-timelens").glob("*.jsonl")) == [
        "predictions-1-of-2.jsonl",
        "predictions-2-of-2.jsonl",
    ]
    assert summary(halves)["score"] == summary(whole)["score"]
    assert len(replica.requests) == 6


def test_mixed_selected_asks_both_modes_and_keeps_both_answers(data: Path, tmp_path: Path) -> None:
    with serving(better_with_thought) as replica:
        shown = done(data, tmp_path, url=replica.url, mode="mixed_selected", selector="agreement")
    assert len(replica.requests) == 2 * 2 * 3
    assert {r.num_samples for r in replica.requests if r.sampling.temperature} == {8}
    folder = tmp_path / "charades-timelens"
    for mode in ("answer", "think"):
        assert len(read_predictions(folder / mode / "predictions.jsonl").predictions) == 3
    found = summary(tmp_path)
    assert found["label"] == "mixed_selected"
    assert set(found["mixed"]["miou"]) == {
        "answer",
        "think",
        "logprob",
        "agreement",
        "oracle (uses the truth)",
    }
    assert found["mixed"]["miou"]["think"] == pytest.approx(200 / 3)
    assert "oracle (uses the truth)" in shown


def test_a_limit_holds_for_the_comparison_of_choices_too(data: Path, tmp_path: Path) -> None:
    with serving(better_with_thought) as replica:
        done(data, tmp_path, url=replica.url, mode="mixed_selected")
        done(data, tmp_path, url=replica.url, mode="mixed_selected", limit="1")
    found = summary(tmp_path)
    assert found["mixed"]["queries"] == found["answered"] == found["queries"] == 1


def test_the_oracle_is_labelled_wherever_it_is_shown(data: Path, tmp_path: Path) -> None:
    with serving(better_with_thought) as replica:
        shown = done(data, tmp_path, url=replica.url, mode="mixed_oracle")
    assert "charades-timelens: mixed oracle (uses the truth)" in shown
    assert summary(tmp_path)["label"] == "mixed oracle (uses the truth)"
    records = (tmp_path / "charades-timelens" / "predictions.jsonl").read_text().splitlines()
    assert {json.loads(line)["mode"] for line in records} == {"mixed_oracle"}


def test_the_file_that_is_written_scores_the_same_by_itself(
    data: Path, tmp_path: Path, replica: StandIn
) -> None:
    done(data, tmp_path, url=replica.url)
    alone = score_file(
        tmp_path / "charades-timelens" / "predictions.jsonl",
        bench="charades-timelens",
        gt=data / "charades-timelens.json",
    )
    assert alone.model_dump(mode="json") == summary(tmp_path)["score"]


def test_several_benchmarks_and_trainer_rows_go_into_folders_of_their_own(
    data: Path, tmp_path: Path, replica: StandIn
) -> None:
    rows = tmp_path / "held_out.jsonl"
    row = {
        "query": "short 0",
        "videos": ["videos/charades/short.mp4"],
        "answer": "<answer> 0.0 to 1.0 </answer>",
    }
    rows.write_text(json.dumps(row) + "\n")
    done(data, tmp_path, url=replica.url, bench=f"charades-timelens,{rows}")
    assert summary(tmp_path, "held_out")["score"]["official"] == "seed"
    assert summary(tmp_path, "held_out")["answered"] == 1
    assert len(replica.requests) == 4


def test_qvhighlights_is_scored_by_its_own_evaluator(data: Path, tmp_path: Path) -> None:
    row = {
        "qid": 7,
        "query": "long 0",
        "vid": "long",
        "duration": 4,
        "relevant_windows": [[0, 2]],
        "relevant_clip_ids": [0],
        "saliency_scores": [[4, 4, 4]],
    }
    (tmp_path / "highlight_val_release.jsonl").write_text(json.dumps(row) + "\n")
    with serving(lambda _: "<answer> 0 to 2 </answer>") as replica:
        done(
            data,
            tmp_path,
            url=replica.url,
            bench="qvhighlights",
            bench_dir=str(tmp_path),
            video_root=str(data / "videos" / "charades"),
        )
    official = summary(tmp_path, "qvhighlights")["score"]["highlights"]["official"]
    assert official["brief"]["MR-full-R1@0.7"] == 100.0


def test_a_file_is_no_folder_for_answers(data: Path, replica: StandIn) -> None:
    file = data / "charades-timelens.json"
    problem = refused(data, file / "deep", url=replica.url)
    assert problem.startswith(f"--out: found {file}: ")
    assert replica.requests == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bench": "charades-timelense"}, "nearest: charades-timelens"),
        ({"shard": "3/2"}, "--shard"),
        ({"protocol_prompt": "timelens", "mode": "think"}, "--protocol-prompt"),
        ({"mode": "mixed_selected", "selector": "agreement", "samples": "1"}, "--samples: found 1"),
        ({"selector": "agreement"}, "--selector: found agreement with --mode answer"),
        ({"endpoint": "localhost:8100"}, "--endpoint: found 'localhost:8100'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_asked(
    changed: dict[str, str], message: str, data: Path, tmp_path: Path, replica: StandIn
) -> None:
    assert message in refused(data, tmp_path, url=replica.url, **changed)
    assert replica.requests == []
