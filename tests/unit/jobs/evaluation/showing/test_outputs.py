"""A run's folder → tables and page, without asking anything again."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from common.video.sampling import VideoSampling
from jobs.evaluation.scoring.matching import match, own_questions
from jobs.evaluation.scoring.predictions import AnswerMode, PredictionFile, read_predictions
from jobs.evaluation.scoring.score import score_matched
from jobs.evaluation.settings import AnswerSampling, Checkpoint, RunSettings
from jobs.evaluation.showing.outputs import write_outputs
from jobs.evaluation.summary import Mixed, Summary

TRUTH = [2.0, 12.0]


def record(number: int, *, end_s: float | None, mode: AnswerMode) -> dict[str, Any]:
    failed = {"failure": "video", "error": "moov atom not found"}
    said = {"text": f"<answer> 2 to {end_s} </answer>"}
    return {
        "id": f"q{number}",
        "video": f"{number}.mp4",
        "query": f"query {number}",
        "gt": [TRUTH],
        "duration_s": 30,
        "mode": mode,
        "fingerprint": "f",
        **(failed if end_s is None else said),
    }


def leave(folder: Path, ends: list[float | None], *, mode: AnswerMode) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "predictions.jsonl"
    lines = [record(number, end_s=end_s, mode=mode) for number, end_s in enumerate(ends)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def finished(
    out: Path,
    *,
    bench: str,
    scored_as: str,
    mode: AnswerMode = "answer",
    mixed: Mixed | None = None,
    **changed: Any,
) -> None:
    """What `tempsamp eval` leaves of one benchmark."""
    file: PredictionFile = read_predictions(leave(out / bench, [12.0, 7.0, None], mode=mode))
    matched = match(file.predictions, questions=own_questions(file.predictions))
    summary = Summary(
        label=mode,
        fingerprint="f",
        settings=RunSettings(
            bench=bench,
            annotations_sha256="0",
            model=Checkpoint(name="tiny-qwen3vl", sha256="0"),
            mode=mode,
            prompt="ours",
            templates={"answer": "<video>{query}"},
            sampling=AnswerSampling(max_tokens={"answer": 64}, num_samples=0, seed=0),
            clip=VideoSampling(fps=2.0),
        ),
        queries=5,
        answered=3,
        missing_videos={"gone.mp4": 2},
        unusable_annotations=(),
        score=score_matched(matched, file=file, bench=scored_as),
        mixed=mixed,
    ).model_copy(update=changed)
    (out / bench / "summary.json").write_text(summary.model_dump_json(), encoding="utf-8")


def write(out: Path) -> str:
    paths = write_outputs(out, find=lambda bench, name: None)
    assert [path.name for path in paths] == ["tables.md", "tables.tex", "tables.csv", "report.html"]
    return (out / "report.html").read_text(encoding="utf-8")


def test_every_scored_benchmark_is_in_the_tables_and_on_the_page(tmp_path: Path) -> None:
    finished(tmp_path, bench="tvgbench", scored_as="tvgbench")
    finished(tmp_path, bench="activitynet-captions-val_1", scored_as="activitynet-captions")
    page = write(tmp_path)
    for name in ("tvgbench", "activitynet-captions-val_1"):
        assert f"<h2>{name}</h2>" in page
        assert name in (tmp_path / "tables.csv").read_text(encoding="utf-8")
    assert "tiny-qwen3vl" in page


def test_what_is_in_no_figure_is_said(tmp_path: Path) -> None:
    finished(tmp_path, bench="tvgbench", scored_as="tvgbench", unusable_annotations=("3: none",))
    page = write(tmp_path)
    assert "3 of 5 queries done." in page
    assert "In no figure: 2 queries of 1 missing videos." in page
    assert "In no figure: 1 annotations that cannot be used." in page
    assert "moov atom not found" in page


def test_a_mixed_run_compares_its_modes(tmp_path: Path) -> None:
    mixed = Mixed(
        queries=3, miou={"answer": 41.25, "logprob": 52.5}, think_chosen={"answer": 0, "logprob": 1}
    )
    finished(tmp_path, bench="tvgbench", scored_as="tvgbench", mode="mixed_selected", mixed=mixed)
    leave(tmp_path / "tvgbench/answer", [12.0, 7.0], mode="answer")
    leave(tmp_path / "tvgbench/think", [12.0, 12.0], mode="think")
    page = write(tmp_path)
    assert "2 queries scored in both modes: the thought helps 1, hurts 0." in page
    assert "which of two answers, 3 queries" in page
    assert "41.25" in page


def test_answers_beyond_a_limit_are_on_no_chart(tmp_path: Path) -> None:
    finished(tmp_path, bench="tvgbench", scored_as="tvgbench", mode="mixed_selected")
    leave(tmp_path / "tvgbench/answer", [12.0, 7.0, 8.0, 9.0], mode="answer")
    leave(tmp_path / "tvgbench/think", [12.0, 12.0, 8.0, 12.0], mode="think")
    assert "3 queries scored in both modes" in write(tmp_path)


def test_videos_are_looked_for_by_benchmark(tmp_path: Path) -> None:
    finished(tmp_path, bench="tvgbench", scored_as="tvgbench")
    asked: list[tuple[str, str]] = []

    def find(bench: str, name: str) -> Path | None:
        asked.append((bench, name))
        return tmp_path / "not-there.mp4"

    write_outputs(tmp_path, find=find)
    assert sorted(asked) == [("tvgbench", "0.mp4"), ("tvgbench", "1.mp4")]


def test_nothing_is_written_before_anything_is_scored(tmp_path: Path) -> None:
    finished(tmp_path, bench="tvgbench", scored_as="tvgbench", score=None)
    assert write_outputs(tmp_path, find=lambda bench, name: None) == ()
    assert not (tmp_path / "report.html").exists()


def test_a_benchmark_that_lost_its_predictions_is_named(tmp_path: Path) -> None:
    finished(tmp_path, bench="tvgbench", scored_as="tvgbench")
    (tmp_path / "tvgbench/predictions.jsonl").unlink()
    with pytest.raises(ValueError, match="tvgbench: found no predictions"):
        write_outputs(tmp_path, find=lambda bench, name: None)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\0\0"])
def test_a_summary_that_cannot_be_read_is_named_with_the_way_out(
    content: bytes, tmp_path: Path
) -> None:
    finished(tmp_path, bench="rows", scored_as="rows")
    path = tmp_path / "rows" / "summary.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{path}: found no summary .*delete it; ") as refused:
        write(tmp_path)
    assert "\n" not in str(refused.value)
