"""Demo clips: what is written is deterministic, complete, and shows what its rows say."""

import hashlib
import json
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest

from common import prompts
from common.answers.reading import read_spans
from common.messages import ClipRef
from common.video.frames import load_frames, sample_clip
from jobs.toy import clips


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.mp4")
    }


def frames_at_1_fps(folder: Path, index: int) -> tuple[ClipRef, npt.NDArray[np.uint8]]:
    path = folder / clips.clip_path("train", index)
    ref = sample_clip(path, sampling=clips.SAMPLING)
    return ref, load_frames(ref)


@pytest.fixture(scope="module")
def train_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    clips.write_split(folder, "train", num_clips=8, num_processes=1)
    return folder


def test_a_clip_depends_on_split_and_index_alone() -> None:
    first = clips.render_clip("train", 3)
    assert np.array_equal(first, clips.render_clip("train", 3))
    assert not np.array_equal(first, clips.render_clip("train", 4))
    assert not np.array_equal(first, clips.render_clip("test", 3))


def test_no_scene_of_one_split_is_in_another() -> None:
    scenes = {
        split: {clips.scene_events(split, i) for i in range(60)} for split in get_args(clips.Split)
    }
    assert len(set.union(*scenes.values())) == 60 * len(scenes)


def test_spans_of_a_clip_differ_and_its_colours_are_distinct() -> None:
    for index in range(60):
        events = clips.scene_events("validation", index)
        assert len({event.color for event in events}) == clips.SHAPES_PER_CLIP
        for event in events:
            assert 0 <= event.start_s < event.end_s <= clips.DURATION_S
            assert clips.MIN_SPAN_S <= event.end_s - event.start_s <= clips.MAX_SPAN_S
    spans = [{e.span_s for e in clips.scene_events("validation", i)} for i in range(60)]
    assert np.mean([len(distinct) == clips.SHAPES_PER_CLIP for distinct in spans]) > 0.9


def test_sampled_frames_are_what_the_tiny_model_takes(train_folder: Path) -> None:
    ref, frames = frames_at_1_fps(train_folder, 0)
    assert frames.shape == (16, 32, 32, 3)
    assert ref.duration_s == clips.DURATION_S
    assert np.diff(ref.frame_indices).tolist().count(4) >= 10  # mostly a second apart, some 1.25 s


def test_a_shape_is_seen_while_its_row_says_so_and_not_otherwise(train_folder: Path) -> None:
    for index in range(8):
        event = clips.scene_events("train", index)[-1]  # drawn last, so nothing hides it
        ref, frames = frames_at_1_fps(train_folder, index)
        distance = np.linalg.norm(frames - np.array(clips.COLORS[event.color], float), axis=-1)
        num_close = (distance < 60).sum((1, 2))
        for frame_index, close in zip(ref.frame_indices, num_close, strict=True):
            visible = event.start_s <= frame_index / ref.source_fps < event.end_s
            assert close >= 15 if visible else close <= 5, (index, event, frame_index, close)


def test_rows_hold_the_published_keys_and_the_spans_of_the_clip(train_folder: Path) -> None:
    lines = (train_folder / "train" / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 8 * clips.SHAPES_PER_CLIP
    for number, row in enumerate(rows):
        event = clips.scene_events("train", number // 3)[number % 3]
        assert row["spans"] == [[event.start_s, event.end_s]]
        assert read_spans(row["answer"]).spans == ((event.start_s, event.end_s),)
        assert row["gt_len"] == event.end_s - event.start_s
        assert row["duration"] == 16.0
        assert (row["problem_type"], row["data_type"]) == ("temporal grounding", "video")
        assert (train_folder / row["videos"][0]).is_file()
        assert row["query"] in row["problem"]
        parts = prompts.chat_messages(row["problem"])[0].content
        assert [part.type for part in parts] == ["video", "text"]
    assert rows[0]["answer"].startswith("<answer> ")
    assert rows[0]["answer"].endswith(" </answer>")


def test_a_finished_clip_is_left_alone_and_a_missing_one_is_written_again(
    train_folder: Path,
) -> None:
    folder = train_folder / "train"
    before = digests(folder)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.mp4")}
    (folder / "00005.mp4").unlink()
    (folder / "00005.123.partial").write_bytes(b"an interrupted write")
    clips.write_split(train_folder, "train", num_clips=8, num_processes=1)
    assert digests(folder) == before
    changed = {path.name for path, mtime in kept.items() if path.stat().st_mtime_ns != mtime}
    assert changed == {"00005.mp4"}


def test_two_processes_write_the_files_of_one(train_folder: Path, tmp_path: Path) -> None:
    rows = clips.write_split(tmp_path, "train", num_clips=8, num_processes=2)
    assert digests(tmp_path / "train") == digests(train_folder / "train")
    assert rows.read_bytes() == (train_folder / "train" / "rows.jsonl").read_bytes()
