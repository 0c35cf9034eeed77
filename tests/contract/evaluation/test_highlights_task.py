"""`tempsamp eval --task highlights` over HTTP: what is asked, and what the answers are worth."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from common.errors import ConfigError
from common.messages import GenerateRequest
from common.prompts import highlight_problem
from jobs.evaluation.command import command
from jobs.evaluation.scoring.highlights_text import true_answer
from jobs.evaluation.scoring.predictions import read_predictions
from jobs.evaluation.scoring.score import score_file
from tests.fixtures.clips import make_clip
from tests.fixtures.replicas.stand_in_replica import question_of, refuse, serving

ANNOTATIONS = "highlight_val_release.jsonl"
RATED = [
    {
        "qid": 7,
        "query": "a dog",
        "vid": "clip",
        "duration": 8,
        "relevant_windows": [[2, 6]],
        "relevant_clip_ids": [1, 2],
        "saliency_scores": [[4, 4, 4], [2, 3, 3]],
    },
    {
        "qid": 8,
        "query": "a cat",
        "vid": "clip",
        "duration": 8,
        "relevant_windows": [[0, 2]],
        "relevant_clip_ids": [0],
        "saliency_scores": [[3, 4, 4]],
    },
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of eight seconds, two queries about it, and a benchmark without ratings."""
    root = tmp_path_factory.mktemp("bench")
    make_clip(root / "clip.mp4", num_frames=64)
    (root / ANNOTATIONS).write_text("".join(json.dumps(row) + "\n" for row in RATED))
    videos = {"clip": {"duration": 8, "spans": [[2, 6]], "queries": ["a dog"]}}
    (root / "charades-timelens.json").write_text(json.dumps(videos))
    return root


def perfect(request: GenerateRequest) -> str:
    row: dict[str, Any] = RATED["a cat" in question_of(request)]
    return true_answer(row["relevant_clip_ids"], saliency=row["saliency_scores"])


def garbage(_: GenerateRequest) -> str:
    """A span, which is no answer to this question."""
    return "<answer> 2.00 to 6.00 </answer>"


def evaluate(data: Path, out: Path, *, url: str, **replaced: str) -> str:
    """What the command prints.

    Raises:
        ConfigError: as the command does.
    """
    settings = {
        "bench": "qvhighlights",
        "task": "highlights",
        "bench-dir": str(data),
        "video-root": str(data),
        "out": str(out),
        "endpoint": url,
        **{key.replace("_", "-"): value for key, value in replaced.items()},
    }
    app = typer.Typer()
    app.command()(command)
    given = [text for key, value in settings.items() for text in (f"--{key}", value)]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*given, "--report"])
    if isinstance(result.exception, ConfigError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def highlights(out: Path) -> dict[str, Any]:
    summary = json.loads((out / "qvhighlights" / "summary.json").read_text())
    assert summary["settings"]["task"] == "highlights"
    found: dict[str, Any] = summary["score"]["highlights"]
    return found


def test_perfect_answers_reach_what_the_scorer_can_give(data: Path, tmp_path: Path) -> None:
    with serving(perfect) as replica:
        shown = evaluate(data, tmp_path, url=replica.url)
    asked = {"<video>" + text for text in replica.questions}
    assert asked == {highlight_problem(query, mode="answer") for query in ("a dog", "a cat")}
    assert {request.sampling.max_tokens for request in replica.requests} == {1024}
    found = highlights(tmp_path)
    # The first rater calls no clip of the cat Very Good: 0 of its 1 AP, whatever is answered.
    very_good = round(100 * (1 + 2 / 3) / 2, 2)
    wanted = {
        "HL-min-Fair-mAP": 100.0,
        "HL-min-Fair-Hit1": 100.0,
        "HL-min-Good-mAP": 100.0,
        "HL-min-Good-Hit1": 100.0,
        "HL-min-VeryGood-mAP": very_good,
        "HL-min-VeryGood-Hit1": 100.0,
    }
    assert found["official"]["brief"] == found["exact"]["brief"] == wanted
    assert found["failures"] == {"parse": 0, "video": 0, "engine": 0}
    assert found["parse_rate"] == 1.0
    for text in (shown, (tmp_path / "tables.csv").read_text()):
        assert "HL-min-VeryGood-mAP" in text
        assert str(very_good) in text


def test_garbage_is_worth_nothing_and_a_vector_of_zeros_officially(
    data: Path, tmp_path: Path
) -> None:
    with serving(garbage) as replica:
        shown = evaluate(data, tmp_path, url=replica.url)
    found = highlights(tmp_path)
    assert re.search(r"moment_detr \(official\).*0\.00.*2 parse", shown)
    page = (tmp_path / "report.html").read_text()
    assert "HL-min-VeryGood-mAP" in page
    assert "without a span" not in page
    assert found["failures"] == {"parse": 2, "video": 0, "engine": 0}
    assert found["parse_rate"] == 0.0
    assert set(found["exact"]["brief"].values()) == {0.0}
    # Clips of equal score enter together: AP is the share of positives. The first of them is hit.
    official = found["official"]
    assert official["HL-min-Fair"] == {"HL-mAP": 100 * (2 / 4 + 1 / 4) / 2, "HL-Hit1": 50.0}
    very_good = 100 * (1 / 4 + 2 / 3 * 1 / 4) / 2
    assert official["HL-min-VeryGood"] == {"HL-mAP": round(very_good, 2), "HL-Hit1": 50.0}
    assert not [name for name in official["brief"] if name.startswith("MR")]


def test_failures_are_counted_by_kind_and_exact_does_not_score_them(
    data: Path, tmp_path: Path
) -> None:
    def answer(request: GenerateRequest) -> str:
        if "a cat" in question_of(request):
            return refuse(422, "cannot decode", field="clip")
        return perfect(request)

    with serving(answer) as replica:
        evaluate(data, tmp_path, url=replica.url)
    found = highlights(tmp_path)
    assert found["failures"] == {"parse": 0, "video": 1, "engine": 0}
    assert found["parse_rate"] == 1.0
    assert set(found["exact"]["brief"].values()) == {100.0}
    assert found["official"]["HL-min-Fair"]["HL-mAP"] == 100 * (1 + 1 / 4) / 2


@pytest.mark.parametrize("answer", [perfect, garbage])
def test_the_file_that_is_written_scores_the_same_by_itself(
    answer: Callable[[GenerateRequest], str], data: Path, tmp_path: Path
) -> None:
    with serving(answer) as replica:
        evaluate(data, tmp_path, url=replica.url, mode="think")
    assert all("<think>" in text for text in replica.questions)
    path = tmp_path / "qvhighlights" / "predictions.jsonl"
    assert read_predictions(path).predictions[0].ratings
    for truths in (data / ANNOTATIONS, None):
        alone = score_file(path, bench="qvhighlights", gt=truths)
        assert alone.model_dump(mode="json")["highlights"] == highlights(tmp_path)


def test_the_task_is_part_of_the_run(data: Path, tmp_path: Path) -> None:
    with serving(garbage) as replica:
        evaluate(data, tmp_path, url=replica.url, task="moments", max_tokens="512")
        with pytest.raises(ConfigError, match="task: found 'moments', wanted 'highlights'"):
            evaluate(data, tmp_path, url=replica.url, max_tokens="512")
    assert len(replica.requests) == len(RATED)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"bench": "qvhighlights,charades-timelens"},
            "--task: found highlights with charades-time",
        ),
        ({"mode": "mixed_selected"}, "--mode: found mixed_selected, wanted answer or think"),
        ({"mode": "mixed_oracle"}, "--mode: found mixed_oracle, wanted answer or think"),
        ({"protocol_prompt": "timelens"}, "--protocol-prompt: found timelens, wanted ours"),
    ],
)
def test_what_knows_moments_only_is_refused_before_anything_is_asked(
    changed: dict[str, str], message: str, data: Path, tmp_path: Path
) -> None:
    with serving(garbage) as replica, pytest.raises(ConfigError, match=message):
        evaluate(data, tmp_path, url=replica.url, **changed)
    assert replica.requests == []
