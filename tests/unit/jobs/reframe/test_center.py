"""`tempsamp reframe center` on real files: sizes as displayed, own counts, nothing decoded."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from common.errors import ConfigError
from common.video.index import index_frames
from common.video.pyav_reader import stream_frames
from jobs.reframe.center import command
from jobs.reframe.check import command as check_command
from tests.fixtures.clips import ffmpeg, make_clip

app = typer.Typer()
app.command("center")(command)
app.command("check")(check_command)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `videos/`."""
    (tmp_path / "videos").mkdir()
    return tmp_path


def write_index(folder: Path, ratios: dict[str, list[int]]) -> None:
    entries = [{"video_id": k, "targetRatioWH": ratio} for k, ratio in ratios.items()]
    (folder / "index.json").write_text(json.dumps(entries))


def run(folder: Path, name: str, *arguments: str) -> Result:
    where = ["--index", str(folder / "index.json"), "--video-dir", str(folder / "videos")]
    return CliRunner().invoke(app, [name, *where, *arguments])


def center(folder: Path) -> Result:
    return run(folder, "center", "--out", str(folder / "sub.jsonl"))


def check(folder: Path) -> Result:
    return run(folder, "check", str(folder / "sub.jsonl"))


def submitted(folder: Path) -> dict[str, Any]:
    lines = (folder / "sub.jsonl").read_text().splitlines()
    return {line["video_id"]: line["predictions"] for line in map(json.loads, lines)}


def test_every_frame_of_every_kind_of_video_gets_the_centred_crop(folder: Path) -> None:
    videos = folder / "videos"
    make_clip(videos / "wide.mp4", num_frames=6, height_px=72, width_px=128)
    make_clip(videos / "tall.mp4", num_frames=5, height_px=128, width_px=72)
    ffmpeg(
        "-display_rotation", "90", "-i", videos / "wide.mp4", "-c", "copy", videos / "turned.mp4"
    )
    ffmpeg("-i", videos / "wide.mp4", "-c", "copy", "-f", "matroska", videos / "renamed.mp4")
    odd = ("-vf", "scale=79:63", "-c:v", "libx264", "-pix_fmt", "yuv444p")
    ffmpeg("-i", videos / "wide.mp4", *odd, videos / "odd.mp4")
    uneven = ("-vf", "select='lt(n,2)+eq(n,5)'", "-fps_mode", "vfr")
    ffmpeg("-i", videos / "wide.mp4", *uneven, videos / "uneven.mp4")
    names = ("wide", "tall", "turned", "renamed", "odd", "uneven")
    write_index(folder, {name: [9, 16] for name in names})
    result = center(folder)
    assert result.exit_code == 0, result.output
    found = submitted(folder)
    assert list(found) == list(names)
    # 72 * 9 / 16 = 40.5, to the even 40; (128 - 40) / 2 = 44
    assert found["wide"] == [{"frame": f, "bboxes": [44, 0, 40]} for f in range(6)]
    assert found["tall"] == [{"frame": f, "bboxes": [0, 0, 72]} for f in range(5)]
    # turned: 72 wide, 128 high
    assert found["turned"] == [{"frame": f, "bboxes": [0, 0, 72]} for f in range(6)]
    assert found["renamed"] == found["wide"]
    # 63 * 9 / 16 = 35.4; (79 - 35) / 2 = 22
    assert found["odd"] == [{"frame": f, "bboxes": [22, 0, 35]} for f in range(6)]
    assert [one["frame"] for one in found["uneven"]] == [0, 1, 2]
    checked = check(folder)
    assert checked.exit_code == 0, checked.output
    assert "sound: 6 videos" in checked.stdout


def test_a_line_is_written_as_the_task_has_it(folder: Path) -> None:
    make_clip(folder / "videos/a.mp4", num_frames=2, height_px=72, width_px=128)
    write_index(folder, {"a": [9, 16]})
    center(folder)
    assert (folder / "sub.jsonl").read_bytes() == (
        b'{"video_id": "a", "targetRatioWH": [9, 16], "predictions": '
        b'[{"frame": 0, "bboxes": [44, 0, 40]}, {"frame": 1, "bboxes": [44, 0, 40]}]}\n'
    )


def test_a_video_that_cannot_be_read_has_a_line_without_frames(folder: Path) -> None:
    make_clip(folder / "videos/a.mp4", num_frames=2)
    (folder / "videos/text.mp4").write_text("no video")
    write_index(folder, {"gone": [9, 16], "text": [9, 16], "a": [9, 16]})
    result = center(folder)
    assert result.exit_code == 1
    assert {name: len(boxes) for name, boxes in submitted(folder).items()} == {
        "gone": 0,
        "text": 0,
        "a": 2,
    }
    assert "found no" in result.stdout
    assert "gone.mp4" in result.stdout
    assert "text.mp4: PyAV cannot read it as a video" in result.stdout
    assert "2 of 3 videos could not be read" in result.stdout


def test_violations_are_listed_and_end_with_1(folder: Path) -> None:
    make_clip(folder / "videos/a.mp4", num_frames=2)
    write_index(folder, {"a": [9, 16]})
    center(folder)
    text = (folder / "sub.jsonl").read_text().replace('"frame": 1', '"frame": 9')
    (folder / "sub.jsonl").write_text(text)
    checked = check(folder)
    assert checked.exit_code == 1
    assert "line 1: a: found frame 9: leave it out: the video has frames 0 to 1" in checked.stdout
    assert "1 violations" in checked.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("center", "--out", "/dev/null/sub.jsonl"), "--out: found /dev/null: Not a directory"),
        (("check", "none.jsonl"), "none.jsonl"),
    ],
)
def test_wrong_paths_are_refused(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    write_index(folder, {"a": [9, 16]})
    refused = run(folder, *arguments)
    assert isinstance(refused.exception, ConfigError)
    assert message in str(refused.exception)


def test_no_folder_of_videos_is_said_first(folder: Path) -> None:
    write_index(folder, {"a": [9, 16]})
    shutil.rmtree(folder / "videos")
    assert "--video-dir: found no folder" in str(center(folder).exception)


def test_as_many_headers_as_the_task_has_take_less_than_decoding_a_tenth(folder: Path) -> None:
    """174 videos. A ratio: seconds would be those of the machine."""
    source = make_clip(folder / "source.mp4", num_frames=200, height_px=180, width_px=320)
    names = [f"{number:04d}" for number in range(174)]
    for name in names:
        shutil.copyfile(source, folder / f"videos/{name}.mp4")
    write_index(folder, {name: [9, 16] for name in names})
    began = time.perf_counter()
    assert center(folder).exit_code == 0
    headers_s = time.perf_counter() - began
    began = time.perf_counter()
    index = index_frames(source)
    for _ in range(17):
        for _ in stream_frames(source, index=index, indices=range(200)):
            pass
    decoding_s = time.perf_counter() - began
    print(f"174 headers {headers_s:.2f} s, 17 of 174 videos decoded {decoding_s:.2f} s")  # noqa: T201
    assert headers_s < decoding_s
    assert len(submitted(folder)["0000"]) == 200
