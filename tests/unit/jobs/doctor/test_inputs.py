"""Rows, videos, cache: each broken alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.config import Run
from jobs.doctor import inputs
from jobs.doctor.finding import Finding
from jobs.doctor.inputs import Inputs
from tests.fixtures.rows import event_row, write_rows

Make = Callable[..., Run]


def looked_at(run: Run) -> tuple[Inputs, dict[str, Finding]]:
    given = Inputs()
    found = [*inputs.roots(run), *inputs.rows(run, given)]
    found += inputs.clips(run, given) if given.rows else ()
    return given, {finding.name: finding for finding in found}


def test_what_is_whole_is_ok_and_given_on(make_run: Make) -> None:
    given, found = looked_at(make_run())
    assert {one.level for one in found.values()} == {"ok"}
    assert found["rows"].found.startswith("4 in")
    assert given.frames is not None
    assert given.clip is not None
    assert given.frames.shape[1:3] == given.clip.frame_hw


def test_a_root_that_is_not_there_fails(make_run: Make, tmp_path: Path) -> None:
    run = make_run(f"shared.video.roots=['{tmp_path}/gone']")
    (finding,) = inputs.roots(run)
    assert (finding.level, str(tmp_path / "gone") in finding.found) == ("fail", True)
    assert "shared.video.roots" in finding.cure


def test_a_row_file_that_is_not_there_fails(make_run: Make, tmp_path: Path) -> None:
    _, found = looked_at(make_run(f"learner.rows={tmp_path}/no.jsonl"))
    assert found["rows"].level == "fail"
    assert "No such file" in found["rows"].found


def test_rows_that_cannot_be_used_are_counted(make_run: Make, videos: Path) -> None:
    rows = [event_row(1), event_row(2, problem="no tag"), event_row(3, spans=[[5, 1]])]
    write_rows(videos / "rows.jsonl", rows)
    given, found = looked_at(make_run())
    assert found["rows"].level == "warn"
    assert found["rows"].found.startswith("1 usable; left out: ")
    assert len(given.lines) == 1


def test_without_a_usable_row_there_is_nothing_to_train_on(make_run: Make, videos: Path) -> None:
    write_rows(videos / "rows.jsonl", [{"videos": ["clip.mp4"]}])
    _, found = looked_at(make_run())
    assert found["rows"].level == "fail"


def test_a_video_that_is_not_there_is_named_and_the_next_one_is_taken(
    make_run: Make, videos: Path
) -> None:
    write_rows(videos / "rows.jsonl", [event_row(1, videos=["gone.mp4"]), event_row(2)])
    given, found = looked_at(make_run())
    assert found["a clip"].found.startswith("row 2: ")
    assert found["clips"].level == "warn"
    assert "gone.mp4" in found["clips"].found
    # The engines are started on rows that work.
    assert [row.row_id for row in given.rows] == ["2", "1"]
    assert json.loads(given.lines[0])["videos"] == ["clip.mp4"]


def test_videos_that_cannot_be_decoded_fail(make_run: Make, videos: Path) -> None:
    (videos / "clip.mp4").write_bytes(b"no video")
    given, found = looked_at(make_run())
    assert found["clips"].level == "fail"
    assert found["clips"].found.startswith("3 of the first 3: row 1: ")
    assert given.clip is None


def test_an_event_behind_the_end_of_its_clip_is_named(make_run: Make, videos: Path) -> None:
    write_rows(videos / "rows.jsonl", [event_row(1, spans=[[100, 200]])])
    _, found = looked_at(make_run())
    assert "outside the clip" in found["clips"].found


@pytest.mark.parametrize(("mode", "level"), [("prefer", "warn"), ("strict", "fail")])
def test_a_cache_without_the_clips_is_seen(
    make_run: Make, tmp_path: Path, mode: str, level: str
) -> None:
    (tmp_path / "cache").mkdir()
    run = make_run(f"shared.video.cache={tmp_path}/cache", f"shared.video.cache_mode={mode}")
    _, found = looked_at(run)
    assert found["clip cache"].level == level
    assert "tempsamp data preprocess" in found["clip cache"].cure


def test_a_cache_with_the_clips_is_used(make_run: Make, tmp_path: Path, videos: Path) -> None:
    from common.video.cache import ClipCache
    from common.video.frames import file_digest
    from common.video.loader import ensure_entry

    run = make_run(f"shared.video.cache={tmp_path}/cache", "shared.video.cache_mode=strict")
    clip = videos / "clip.mp4"
    ensure_entry(
        ClipCache(tmp_path / "cache"),
        clip,
        sha256=file_digest(clip),
        sampling=run.shared.video.sampling,
    )
    _, found = looked_at(run)
    assert found["clip cache"].level == "ok"
    # The same clips at another rate are other clips.
    other = make_run(f"shared.video.cache={tmp_path}/cache", "shared.video.fps=2")
    _, found = looked_at(other)
    assert found["clip cache"].level == "warn"
    assert found["clip cache"].found.endswith("entries of them with other parameters")
