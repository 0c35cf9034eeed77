"""The clip and the sheet of one video: what is drawn where."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import tempsamp
from common.errors import ConfigError, VideoError
from common.video.index import index_frames
from common.video.pyav_reader import read_frames
from jobs.reframe.crop import Box, Size
from jobs.reframe.show import DIMMED, LINE, marked, segments_s, side_by_side
from jobs.reframe.videos import MissingVideoError
from tests.fixtures.clips import make_clip

TALL, FRAME = Size(9, 16), Size(160, 96)
BOX = Box(100, 0, 54)
"""54 * 16 / 9 = 96: as high as the frame."""


def halves() -> Image.Image:
    """Left of 100 red, right of it blue."""
    pixels = np.zeros((96, 160, 3), np.uint8)
    pixels[:, :100] = (200, 0, 0)
    pixels[:, 100:] = (0, 0, 200)
    return Image.fromarray(pixels)


def test_the_crop_is_bright_and_framed_and_the_rest_is_dim() -> None:
    found = np.asarray(marked(halves(), box=BOX, ratio=TALL, frame=FRAME))
    assert tuple(found[50, 120]) == (0, 0, 200)
    assert tuple(found[50, 50]) == (round(200 * DIMMED), 0, 0)
    assert tuple(found[50, 157]) == (0, 0, round(200 * DIMMED))
    for y, x in ((0, 120), (95, 120), (50, 100), (50, 153)):
        assert tuple(found[y, x]) == LINE


def test_the_original_stands_left_and_the_crop_right_at_one_height() -> None:
    page = np.asarray(side_by_side(halves(), box=BOX, ratio=TALL, frame=FRAME))
    assert page.shape == (96, 160 + 8 + 54, 3)
    assert (page[:, 168:] == (0, 0, 200)).all()
    assert (page[:, 160:168] == 255).all()


def test_crops_scale_with_the_picture_and_large_ones_are_made_smaller() -> None:
    large = halves().resize((3200, 1920))
    page = side_by_side(large, box=BOX, ratio=TALL, frame=FRAME)
    assert page.size == (1200 + 8 + 404, 720)  # 720 * 9 / 16 = 405, to an even side
    small = marked(halves().resize((16, 10)), box=BOX, ratio=TALL, frame=FRAME)
    assert tuple(np.asarray(small)[0, 12]) == LINE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 30 frames, and a submission that keeps 10 of them in two rows."""
    folder = tmp_path_factory.mktemp("show")
    make_clip(folder / "a b.mp4", num_frames=30, fps=10.0, height_px=96, width_px=160)
    boxes = [{"frame": f, "bboxes": [f, 0, 54]} for f in (*range(5, 11), *range(20, 24))]
    lines = [
        {"video_id": "a b", "targetRatioWH": [9, 16], "predictions": boxes},
        {"video_id": "none", "targetRatioWH": [9, 16], "predictions": []},
        {"video_id": "gone", "targetRatioWH": [9, 16], "predictions": boxes},
    ]
    (folder / "sub.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def show(folder: Path, video_id: str, out: Path) -> Result:
    arguments = [str(folder / "sub.jsonl"), "--video-dir", str(folder), "--id", video_id]
    return CliRunner().invoke(tempsamp.app, ["reframe", "show", *arguments, "--out", str(out)])


def test_the_clip_has_the_kept_frames_and_the_sheet_lies_beside_it(
    folder: Path, tmp_path: Path
) -> None:
    result = show(folder, "a b", tmp_path / "clip.mp4")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "a b: 10 of 30 frames, 9:16" in result.stdout
    index = index_frames(tmp_path / "clip.mp4")
    assert (index.total_frames, index.source_fps) == (10, 10.0)
    assert (index.width_px, index.height_px) == (160 + 8 + 54, 96)
    source = folder / "a b.mp4"
    wanted = read_frames(source, index=index_frames(source), indices=[22])[0][:, 22:76]
    found = read_frames(tmp_path / "clip.mp4", index=index, indices=[8])[0][:, 168:]
    assert np.abs(found.astype(int) - wanted).mean() < 8
    with Image.open(tmp_path / "clip.png") as sheet:
        assert sheet.width == 1600
        colours = sheet.convert("RGB").getcolors(2**24)
    assert colours is not None
    assert LINE in {colour for _, colour in colours}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "clip.png"]


def test_rows_of_frames_are_spans_of_time(folder: Path) -> None:
    boxes = dict.fromkeys((0, 1, 2, 9, 28, 29), BOX)
    found = segments_s(boxes, index=index_frames(folder / "a b.mp4"))
    assert found == [pytest.approx(span) for span in ((0.0, 0.3), (0.9, 1.0), (2.8, 3.0))]


@pytest.mark.parametrize(
    ("video_id", "out", "kind", "message"),
    [
        ("z", "clip.mp4", ConfigError, "--id: found 'z', wanted one of the 3 ids"),
        ("none", "clip.mp4", ConfigError, "--id: found no frames of 'none'"),
        ("a b", "clip.gif", ConfigError, "--out: found suffix '.gif'"),
        ("a b", "/dev/null/clip.mp4", ConfigError, "--out: found /dev/null"),
        ("gone", "clip.mp4", MissingVideoError, "found no"),
    ],
)
def test_what_cannot_be_shown_is_said(
    folder: Path, tmp_path: Path, video_id: str, out: str, kind: type[Exception], message: str
) -> None:
    result = show(folder, video_id, tmp_path / out)
    assert isinstance(result.exception, kind)
    assert message in str(result.exception)


def test_a_video_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sub.jsonl").write_bytes((folder / "sub.jsonl").read_bytes())
    whole = (folder / "a b.mp4").read_bytes()
    for content in (b"no video", whole[: len(whole) // 2]):
        (tmp_path / "a b.mp4").write_bytes(content)
        result = show(tmp_path, "a b", tmp_path / "clip.mp4")
        assert isinstance(result.exception, VideoError)
        assert str(result.exception).startswith(f"{tmp_path / 'a b.mp4'}: ")


def test_a_frame_past_the_end_is_said(folder: Path, tmp_path: Path) -> None:
    box = {"frame": 30, "bboxes": [0, 0, 54]}
    line = {"video_id": "a b", "targetRatioWH": [9, 16], "predictions": [box]}
    (tmp_path / "sub.jsonl").write_text(json.dumps(line))
    (tmp_path / "a b.mp4").symlink_to(folder / "a b.mp4")
    result = show(tmp_path, "a b", tmp_path / "clip.mp4")
    assert isinstance(result.exception, VideoError)
    assert "found frame 30" in str(result.exception)
