"""Prediction files of four projects are read, and what is wrong with one is named."""

import gzip
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.evaluation.scoring.predictions import Prediction, PredictionRecord, read_predictions

SHARED = Path(__file__).parents[6] / "shared"

OURS = PredictionRecord(
    id="line 1",
    video="v.mp4",
    query="a dog barks",
    gt=((1.0, 2.5),),
    duration_s=10.0,
    mode="answer",
    text="<answer> 1 to 2 </answer>",
    answer_logprob=-0.25,
    fingerprint="f00d",
)
FAILED = OURS.model_copy(update={"id": "line 2", "text": None, "failure": "video"})


def written(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def detected(qid: int, **changed: object) -> str:
    record = {
        "qid": qid,
        "query": "q",
        "vid": "a_1.0_2.0",
        "pred_relevant_windows": [[0.0, 4.0, 0.9], [5.0, 6.0, 0.1]],
        "pred_saliency_scores": [0.1, -0.5],
    }
    return json.dumps(record | changed)


def test_our_records_are_read_with_their_truth(tmp_path: Path) -> None:
    lines = f"{OURS.model_dump_json()}\n{FAILED.model_dump_json()}\n"

    file = read_predictions(written(tmp_path / "predictions.jsonl", lines))

    answered, failed = file.predictions
    assert (file.format, file.truncated_lines) == ("tempsamp", 0)
    assert answered == Prediction(
        key="line 1",
        id="line 1",
        video="v.mp4",
        query="a dog barks",
        truth=((1.0, 2.5),),
        duration_s=10.0,
        text="<answer> 1 to 2 </answer>",
    )
    assert (failed.text, failed.failure) == (None, "video")


def test_ratings_say_that_highlights_were_asked_for(tmp_path: Path) -> None:
    rated = OURS.model_copy(update={"gt_ratings": {41: (1.0, 2.0, 3.0)}})
    line = rated.model_dump_json(exclude_none=True)

    (found,) = read_predictions(written(tmp_path / "predictions.jsonl", line)).predictions

    assert found.ratings == {41: (1.0, 2.0, 3.0)}
    assert "gt_ratings" not in OURS.model_dump_json(exclude_none=True)


@pytest.mark.parametrize("as_list", [False, True])
def test_moment_detr_lines_and_lists_are_read(tmp_path: Path, as_list: bool) -> None:
    records = [detected(1), detected(2, pred_relevant_windows=[])]
    content = f"[{', '.join(records)}]" if as_list else "\n".join(records)

    file = read_predictions(written(tmp_path / "submission", content))

    first, second = file.predictions
    assert (file.format, first.id, first.video) == ("moment_detr", "1", "a_1.0_2.0")
    assert first.windows == ((0.0, 4.0, 0.9), (5.0, 6.0, 0.1))
    assert (first.spans, second.spans) == (((0.0, 4.0),), ())
    assert first.saliency == (0.1, -0.5)


def test_timelens_entries_give_timestamps_or_what_their_scorer_reads(tmp_path: Path) -> None:
    entries = {
        "v.mp4>>>who >>> what>>>[1.0, 2.5]": {"timestamps": [[1, 3]], "answers": "1 - 3"},
        "v.mp4>>>late>>>(7, 9)": {"answers": "7.5 - 9 or 1 - 2"},
    }

    file = read_predictions(written(tmp_path / "answers.json", json.dumps(entries, indent=1)))

    first, second = file.predictions
    assert (file.format, first.video, first.query) == ("timelens", "v.mp4", "who >>> what")
    assert (first.truth, first.spans, first.text) == (((1.0, 2.5),), ((1.0, 3.0),), "1 - 3")
    assert (second.truth, second.spans) == (((7.0, 9.0),), ((7.5, 9.0), (1.0, 2.0)))


def test_vtg_llm_entries_are_read_from_one_line_and_from_gzip(tmp_path: Path) -> None:
    entries = {"31": {"timestamp": [[0.0, 5.5]], "query": "q", "vid": "v.mp4"}}
    path = tmp_path / "predictions.json.gz"
    path.write_bytes(gzip.compress(json.dumps(entries).encode()))

    file = read_predictions(path)

    assert file.format == "vtg_llm"
    assert file.predictions == (
        Prediction(key="31", video="v.mp4", query="q", spans=((0.0, 5.5),)),
    )


def test_cut_last_line_is_dropped_and_counted(tmp_path: Path) -> None:
    whole = OURS.model_dump_json()

    file = read_predictions(written(tmp_path / "p.jsonl", f"{whole}\n{whole[:40]}"))

    assert (len(file.predictions), file.truncated_lines) == (1, 1)


def test_last_line_without_newline_is_kept(tmp_path: Path) -> None:
    file = read_predictions(written(tmp_path / "p.jsonl", OURS.model_dump_json()))

    assert (len(file.predictions), file.truncated_lines) == (1, 0)


def test_cut_line_that_is_not_the_last_is_refused(tmp_path: Path) -> None:
    whole = OURS.model_dump_json()

    with pytest.raises(ValueError, match=r"p\.jsonl: line 2: "):
        read_predictions(written(tmp_path / "p.jsonl", f"{whole}\n{whole[:40]}\n{whole}\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{detected(7)}\n[]\n", r"line 2: record: found \[\]: Input should be an object"),
        (f"{detected(7)}\n{detected(7)}\n", "found '7' twice"),
        ('{"a>>>q>>>[1, 2]": {}, "a>>>q>>>[1, 2]": {}}', "twice, wanted one prediction"),
        (detected(7, pred_saliency_scores=[float("nan")]), "line 1: pred_saliency_scores.0: found"),
        (detected(7, pred_relevant_windows=[[1, float("inf"), 1]]), "finite number"),
        (f"[{detected(7, pred_relevant_windows=[[1.0]])}]", "pred_relevant_windows.0: found"),
        ('{"qid": 7}', "found neither pred_relevant_windows nor pred_saliency_scores"),
        ('{"a>>>q>>>[1, 2]": {"timestamps": [[1, NaN]]}}', r"'a>>>q>>>\[1, 2\]': timestamps.0.1"),
        ('{"a>>>q": {}}', "wanted video>>>query>>>span"),
        ('{"a>>>q>>>[1, x]": {}}', "a>>>q>>>"),
        ('{"1": {"timestamp": [[1, "x"]]}}', "'1': timestamp.0.1: found x"),
        ('{"model": "m"}', "wanted predictions of tempsamp"),
        ("no JSON at all", "found no JSON .*, wanted predictions of tempsamp"),
        ("", "found nothing, wanted predictions of tempsamp"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_predictions(written(tmp_path / "predictions", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", r"predictions: found no UTF-8 at byte 3, wanted predictions"),
        (gzip.compress(OURS.model_dump_json().encode())[:60], "predictions: found broken gzip"),
        (b"\x1f\x8bno", "predictions: found broken gzip"),
    ],
    # Both processes of a run must collect equal names, and a packed file holds the time.
    ids=["latin-1", "cut gzip", "no gzip"],
)
def test_bytes_that_are_no_text_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "predictions"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_predictions(path)


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found a folder, wanted a file of predictions"):
        read_predictions(tmp_path)
    with pytest.raises(ValueError, match=r"none: found no file, wanted a file of predictions"):
        read_predictions(tmp_path / "none")


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{detected(7)}\n".encode())
    assert [one.key for one in read_predictions(path).predictions] == ["7"]


def test_our_files_say_their_mode_and_others_do_not(tmp_path: Path) -> None:
    assert read_predictions(written(tmp_path / "a", OURS.model_dump_json())).mode == OURS.mode
    assert read_predictions(written(tmp_path / "b", f"{detected(7)}\n")).mode is None


def test_record_is_an_answer_or_a_failure() -> None:
    with pytest.raises(ValidationError, match="exactly one of text and failure"):
        PredictionRecord(**(OURS.model_dump() | {"text": None}))
    with pytest.raises(ValidationError, match="exactly one of text and failure"):
        PredictionRecord(**(OURS.model_dump() | {"failure": "engine"}))


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is not here")
def test_real_vtg_llm_file_has_500_predictions_280_of_them_empty() -> None:
    file = read_predictions(SHARED / "data/vtgllm_eval/tvg_example_pred_file.json")

    assert (file.format, len(file.predictions)) == ("vtg_llm", 500)
    assert sum(not prediction.spans for prediction in file.predictions) == 280
