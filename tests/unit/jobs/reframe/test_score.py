"""Our own figures, by hand."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from common.errors import ConfigError
from jobs.reframe.crop import Box, Size
from jobs.reframe.score import command, iou, mean, score, video_score
from jobs.reframe.submission import Submitted, read_submission, write_submission

SQUARE, TALL = Size(1, 1), Size(9, 16)


def still(*frames: int, x: int = 0) -> dict[int, Box]:
    return {frame: Box(x, 0, 9) for frame in frames}


def test_iou_takes_heights_from_the_ratio() -> None:
    # 9x16 each, 6 wide shared: 96 / (2 * 144 - 96)
    assert iou(Box(0, 0, 9), Box(3, 0, 9), ratio=TALL) == pytest.approx(96 / 192)
    # 4x4 inside 8x8
    assert iou(Box(0, 0, 8), Box(2, 2, 4), ratio=SQUARE) == pytest.approx(16 / 64)
    assert iou(Box(0, 0, 4), Box(4, 0, 4), ratio=SQUARE) == 0.0
    assert iou(Box(0, 0, 4), Box(9, 9, 4), ratio=SQUARE) == 0.0


def test_frames_and_boxes_are_scored_apart() -> None:
    # frames 2, 3 of {0, 1, 2, 3} and {2, 3, 4}: 2 * 2 / (4 + 3); boxes 3 px off: 96 / 192
    found = video_score(still(2, 3, 4, x=3), truth=still(0, 1, 2, 3), ratio=TALL)
    assert found.frame_f1 == pytest.approx(4 / 7)
    assert found.box_iou == pytest.approx(0.5)
    assert found.jitter_px == 0.0


def test_an_even_pace_is_no_jitter_and_gaps_are_no_steps() -> None:
    truth = still(0)
    even = {frame: Box(5 * frame, 2 * frame, 9) for frame in range(6)}
    assert video_score(even, truth=truth, ratio=TALL).jitter_px == 0.0
    # steps of (3, 4), then none: the change is 5 px; over the gap to frame 9 nothing is counted
    jumping = {0: Box(0, 0, 9), 1: Box(3, 4, 9), 2: Box(3, 4, 9), 9: Box(90, 0, 9)}
    assert video_score(jumping, truth=truth, ratio=TALL).jitter_px == 5.0
    assert video_score(still(0, 1), truth=truth, ratio=TALL).jitter_px is None


def test_empty_videos() -> None:
    agreed = video_score({}, truth={}, ratio=TALL)
    assert (agreed.frame_f1, agreed.box_iou, agreed.jitter_px) == (1.0, None, None)
    assert video_score({}, truth=still(1), ratio=TALL).frame_f1 == 0.0
    assert video_score(still(1), truth={}, ratio=TALL).frame_f1 == 0.0


def line(video_id: str, boxes: dict[int, Box], ratio: Size = TALL) -> Submitted:
    return Submitted(video_id=video_id, ratio=ratio, boxes=boxes)


def test_means_are_over_videos_that_have_the_figure() -> None:
    truth = {name: line(name, still(0, 1, 2)) for name in "abc"}
    found = {"a": line("a", still(0, 1, 2)), "b": line("b", still(2, x=3))}
    total = mean(score(found, truth=truth))
    # F1 of b: 2 / 4
    assert total.frame_f1 == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert total.box_iou == pytest.approx((1.0 + 0.5) / 2)
    assert total.jitter_px == 0.0


def test_strangers_and_other_ratios_are_refused() -> None:
    truth = {"a": line("a", still(0))}
    with pytest.raises(ConfigError, match="b: found it in the submission"):
        score({"b": line("b", still(0))}, truth=truth)
    with pytest.raises(ConfigError, match=r"a: found targetRatioWH \[1, 1\], wanted \[9, 16\]"):
        score({"a": line("a", still(0), ratio=SQUARE)}, truth=truth)


app = typer.Typer()
app.command()(command)


def test_command_prints_a_table_or_json(tmp_path: Path) -> None:
    write_submission(tmp_path / "truth.jsonl", lines=[line("a", still(0, 1, 2))])
    write_submission(tmp_path / "sub.jsonl", lines=[line("a", still(0, 1, 2, x=3))])
    arguments = [str(tmp_path / "sub.jsonl"), "--truth", str(tmp_path / "truth.jsonl")]
    shown = CliRunner().invoke(app, arguments).stdout
    assert "box IoU   0.500" in shown
    assert "no metric of the task is published" in shown
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert document["by_video"]["a"] == {"frame_f1": 1.0, "box_iou": 0.5, "jitter_px": 0.0}
    assert (document["videos"], document["frame_f1"]) == (1, 1.0)


def test_an_unsound_file_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "truth.jsonl").write_text('{"video_id": "a"}\n')
    arguments = [str(tmp_path / "truth.jsonl"), "--truth", str(tmp_path / "truth.jsonl")]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, ConfigError)
    assert "--truth" in str(refused.exception)
    assert "truth.jsonl:1: found" in str(refused.exception)
    assert "tempsamp reframe check" in str(refused.exception)


def kept(predictions: object) -> str:
    fields = {"video_id": "a", "targetRatioWH": [9, 16], "predictions": predictions}
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", "it is no object"),
        ('{"targetRatioWH": [9, 16], "predictions": []}', "video_id, targetRatioWH or predictions"),
        (kept(5), "video_id, targetRatioWH or predictions"),
        (kept([7]), "prediction 7"),
        (kept([{"frame": 0, "bboxes": [1, 2]}]), "prediction {'frame': 0, 'bboxes': [1, 2]}"),
        (kept([{"frame": True, "bboxes": [1, 2, 3]}]), "prediction {'frame': True"),
        (kept([{"frame": 0, "bboxes": [1, 2, 0]}]), "prediction {'frame': 0"),
        (kept([{"frame": 0, "bboxes": [1, 2, 3]}] * 2), "frame 0 does not ascend"),
    ],
)
def test_what_is_not_sound_is_said_in_words(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "sub.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(ConfigError) as refused:
        read_submission(path, knob="submission")
    assert str(refused.value).startswith(f"submission: {path}:2: found {line[:80]!r}, wanted a")
    assert f"({said}" in str(refused.value)
