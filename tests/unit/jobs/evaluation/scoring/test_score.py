"""`tempsamp eval score` from files to table and JSON; bad input is one clear message."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from common.errors import ConfigError
from jobs.evaluation.score_command import command
from jobs.evaluation.scoring.highlights_text import true_answer
from jobs.evaluation.scoring.modes import ORACLE_LABEL
from jobs.evaluation.scoring.predictions import PredictionRecord
from jobs.evaluation.scoring.score import score_file

SHARED = Path(__file__).parents[6] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="../shared is not here")

CHARADES = "AB 0.0 10.0##a door opens.\nAB 20.0 30.0##a dog barks.\nCD 5.0 9.0##nobody moves.\n"
RATED = {
    "qid": 7,
    "query": "a dog",
    "vid": "x_0.0_6.0",
    "duration": 6,
    "relevant_windows": [[2, 6]],
    "relevant_clip_ids": [1, 2],
    "saliency_scores": [[4, 4, 4], [2, 3, 3]],
}


def written(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def ours(tmp_path: Path, *changes: dict[str, object]) -> Path:
    base = {
        "id": "line 1",
        "video": "AB",
        "query": "a door opens",
        "gt": [[0.0, 10.0]],
        "mode": "answer",
        "text": "<answer> 0 to 10 </answer>",
        "fingerprint": "f00d",
    }
    records = [PredictionRecord.model_validate(base | change) for change in changes]
    return written(
        tmp_path / "predictions.jsonl", "".join(f"{r.model_dump_json()}\n" for r in records)
    )


def three(tmp_path: Path) -> Path:
    return ours(
        tmp_path,
        {},
        {"id": "line 2", "query": "a dog barks.", "text": "I cannot tell."},
        {"id": "line 3", "video": "CD", "query": "nobody moves", "text": None, "failure": "engine"},
    )


def test_exact_and_official_figures_stand_side_by_side(tmp_path: Path) -> None:
    gt = written(tmp_path / "charades_sta_test.txt", CHARADES)

    score = score_file(three(tmp_path), bench="charades-sta", gt=gt)

    exact, timezero = score.protocols["exact"], score.protocols["timezero"]
    assert exact.miou is not None
    assert timezero.miou is not None
    assert list(score.protocols) == ["exact", "timelens", "seed", "timezero", "unitime"]
    assert (score.official, exact.scored, timezero.scored) == ("timezero", 2, 3)
    assert (exact.miou.mean, timezero.miou.mean) == (50.0, pytest.approx(100 / 3))
    assert exact.failures == {"parse": 1, "video": 0, "engine": 1}
    assert exact.parse_rate == 0.5
    assert exact.recall["0.5"].low <= 50.0 <= exact.recall["0.5"].high


def test_truths_that_the_file_repeats_are_enough(tmp_path: Path) -> None:
    score = score_file(ours(tmp_path, {"duration_s": 40.0}), bench="rows")

    assert score.protocols["seed"].recall["0.7"].mean == 100.0
    assert (score.without_duration, score.unknown, score.unanswered) == (0, 0, 0)


def test_annotations_without_duration_and_impossible_truths_are_counted(tmp_path: Path) -> None:
    score = score_file(ours(tmp_path, {"gt": [[9.0, 5.0]]}), bench="charades-sta")

    assert (score.without_duration, score.impossible_truths) == (1, 1)
    assert score.protocols["exact"].recall["0.3"].mean == 0.0


def test_several_true_spans_leave_single_span_protocols_out_with_the_reason(tmp_path: Path) -> None:
    score = score_file(ours(tmp_path, {"gt": [[0, 5], [5, 10]]}), bench="rows")

    assert list(score.protocols) == ["exact", "unitime"]
    assert score.not_computed["seed"] == "1 annotations have several true spans"


def test_text_highlight_answers_are_scored_officially_and_exactly(tmp_path: Path) -> None:
    perfect = true_answer([1, 2], saliency=[[4, 4, 4], [2, 3, 3]])
    rated = [RATED, RATED | {"qid": 8, "query": "a cat"}, RATED | {"qid": 9, "query": "a cow"}]
    gt = written(tmp_path / "gt.jsonl", "".join(f"{json.dumps(record)}\n" for record in rated))
    asked = {"video": "x_0.0_6.0", "gt": [[2, 6]]}
    predictions = ours(
        tmp_path,
        asked | {"id": "7", "query": "a dog", "text": perfect},
        asked | {"id": "8", "query": "a cat", "text": "no idea"},
        asked | {"id": "9", "query": "a cow", "text": None, "failure": "video"},
    )

    highlights = score_file(predictions, bench="qvhighlights", gt=gt).highlights

    assert highlights is not None
    assert highlights.exact is not None
    assert highlights.failures == {"parse": 1, "video": 1, "engine": 0}
    assert highlights.parse_rate == 0.5
    # A vector of zeros has the share of positives, 2 of 3 clips, and misses with its first clip.
    zeros = 100 * (1 + 2 / 3 + 2 / 3) / 3
    assert highlights.official["HL-min-Fair"] == {"HL-mAP": round(zeros, 2), "HL-Hit1": 33.33}
    assert highlights.exact["HL-min-Fair"] == {"HL-mAP": 50.0, "HL-Hit1": 50.0}


def test_a_span_is_no_answer_where_highlights_were_asked_for(tmp_path: Path) -> None:
    gt = written(tmp_path / "gt.jsonl", f"{json.dumps(RATED)}\n")
    ratings = {1: [4, 4, 4], 2: [2, 3, 3]}

    moments, highlights = (
        score_file(
            ours(
                tmp_path,
                {"id": "7", "query": "a dog", "video": "x_0.0_6.0", "gt_ratings": truth},
            ),
            bench="qvhighlights",
            gt=gt,
        )
        for truth in (None, ratings)
    )

    assert moments.highlights is not None
    assert moments.highlights.has_moments
    assert moments.highlights.failures["parse"] == 0
    assert highlights.highlights is not None
    assert highlights.highlights.exact is not None
    assert highlights.highlights.exact["HL-min-Fair"] == {"HL-mAP": 0.0, "HL-Hit1": 0.0}
    assert highlights.highlights.failures["parse"] == 1
    assert highlights.protocols == {}


def test_qvhighlights_without_duration_is_refused(tmp_path: Path) -> None:
    record = {key: value for key, value in RATED.items() if key != "duration"}
    gt = written(tmp_path / "gt.jsonl", json.dumps(record))
    predictions = ours(tmp_path, {"id": "7", "query": "a dog", "video": "x_0.0_6.0"})

    with pytest.raises(ValueError, match="annotation '7': found no duration"):
        score_file(predictions, bench="qvhighlights", gt=gt)


@pytest.mark.parametrize(
    ("gt", "message"),
    [
        ("AB 0.0 ten##a door opens.\n" + CHARADES, "line 1: bad record"),
        ("AB 0.0 nan##a door opens.\nAB 0.0 1.0##b\n", "line 1: found the true spans"),
        (json.dumps({**RATED, "relevant_windows": []}), "found no true span, wanted one"),
    ],
)
def test_annotation_that_cannot_be_scored_is_named(tmp_path: Path, gt: str, message: str) -> None:
    path = written(tmp_path / "gt", gt)

    with pytest.raises(ValueError, match=message):
        score_file(ours(tmp_path, {}), bench="charades-sta", gt=path)


def test_partial_counts_annotations_that_cannot_be_read(tmp_path: Path) -> None:
    gt = written(tmp_path / "gt.txt", CHARADES + "AB 0.0 ten##a cat.\n")

    score = score_file(ours(tmp_path, {}), bench="charades-sta", gt=gt, partial=True)

    assert (score.bad_annotations, score.unanswered) == (1, 2)


def test_command_prints_both_kinds_of_figure_and_writes_json(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    output = tmp_path / "out/score.json"

    result = CliRunner().invoke(
        app,
        [str(three(tmp_path)), "--bench", "charades-sta", "--json", str(output)],
        env={"COLUMNS": "200"},
    )

    assert result.exit_code == 0, result.output
    assert "timezero (official)" in result.output
    assert "failures: engine" in result.output
    assert "reward downscaling" in result.output
    found = json.loads(output.read_text())
    assert found["protocols"]["exact"]["miou"]["mean"] == 50.0
    assert found["published"][0]["bench"] == "charades-sta"


def test_an_oracle_file_says_so_wherever_it_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "score.json"
    command(ours(tmp_path, {"mode": "mixed_oracle"}), bench="rows", output=output)
    assert ORACLE_LABEL in capsys.readouterr().out
    assert json.loads(output.read_text())["label"] == f"mixed {ORACLE_LABEL}"


def test_json_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--json: found .*wanted a file that can be written"):
        command(three(tmp_path), bench="rows", output=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.jsonl"]


@pytest.mark.parametrize("name", ["none.txt", "."])
def test_annotations_that_are_not_there_are_named_with_their_option(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match=r"--gt: found .*wanted an annotation file"):
        command(three(tmp_path), bench="rows", gt=tmp_path / name)


def test_unknown_benchmark_is_one_message_with_the_nearest_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found 'qvhighlight'.*nearest: qvhighlights"):
        command(three(tmp_path), bench="qvhighlight")


def test_missing_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        command(tmp_path / "nowhere.jsonl", bench="rows")


@needs_shared
def test_real_detector_file_scores_as_published_from_the_command() -> None:
    score = score_file(
        SHARED / "reference/qvh60_momentdetr_preds.jsonl",
        bench="qvhighlights",
        gt=SHARED / "reference/qvh60_gt.jsonl",
    )

    golden = json.loads((SHARED / "reference/qvh60_momentdetr.metrics.json").read_text())
    assert score.highlights is not None
    assert score.highlights.official == score.highlights.exact == golden


@needs_shared
def test_real_vtg_llm_file_is_matched_with_charades_sta() -> None:
    score = score_file(
        SHARED / "data/vtgllm_eval/tvg_example_pred_file.json",
        bench="charades-sta",
        gt=SHARED / "data/charades_sta/charades_sta_test.txt",
        partial=True,
    )

    golden = json.loads((SHARED / "reference/charades500_vtgllm.metrics.json").read_text())
    exact = score.protocols["exact"]
    assert (exact.scored, score.unanswered, exact.parse_rate) == (500, 3220, 0.44)
    assert {at: interval.mean for at, interval in exact.recall.items()} == golden["R1"]
