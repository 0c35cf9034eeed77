"""`tempsamp data inspect --check-videos`: real files, real processes, one that dies."""

import functools
import json
import math
import os
import re
import signal
import time
from pathlib import Path

import pytest

from common.errors import VideoError
from jobs.data.annotations.records import Annotation
from jobs.data.inspection.command import command
from jobs.data.inspection.videos import (
    Check,
    Named,
    Video,
    below,
    check,
    collect,
    health,
    reason_of,
)
from tests.fixtures.clips import make_clip
from tests.fixtures.pages.commands import invoked


def probe_or_die(path: Path) -> float:
    """Stands for a decoder: the file's name says what happens to it."""
    if path.name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.name.startswith("hang"):
        time.sleep(600)
    if path.name.startswith("bad"):
        raise VideoError(f"{path}: cannot open as a video: moov atom not found")
    return 4.0


def files(folder: Path, *names: str) -> list[Video]:
    for name in names:
        (folder / name).write_bytes(b"x")
    return [Video(name, folder / name, 4.0) for name in names]


run = functools.partial(invoked, command)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good, empty and truncated files and a row for each, one of a file that is not there."""
    folder = tmp_path_factory.mktemp("clips")
    good = make_clip(folder / "good.mp4", num_frames=16, fps=8.0)
    make_clip(folder / "longer.mp4", num_frames=32, fps=8.0)
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    rows = [
        {"query": "cup", "videos": [f"{name}.mp4"], "spans": [[0.0, 1.0]], "duration": 2.0}
        for name in ("good", "good", "longer", "empty", "cut", "gone")
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    (folder / "fine.jsonl").write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    return folder


def test_bad_videos_are_counted_listed_and_written(clips: Path, tmp_path: Path) -> None:
    failures = tmp_path / "failures.jsonl"
    page = tmp_path / "page.html"
    result = run(
        *(clips / "rows.jsonl", "--check-videos", "--workers", 2),
        *("--failures", failures, "--html", page),
    )
    assert result.exit_code == 1, result.output
    assert re.search(r"fine +2\b", result.output)
    assert re.search(r"missing +1\b", result.output)
    assert re.search(r"off by more than 1 s +1\b", result.output)
    assert re.search(r"longer\.mp4:\s+annotated\s+2\.00\s+s,\s+found\s+4\.00\s+s", result.output)
    found = [Check.model_validate_json(line) for line in failures.read_text().splitlines()]
    assert [bad.video for bad in found] == ["cut.mp4", "empty.mp4", "gone.mp4"]
    assert found[1].reason == "found 0 bytes"
    assert found[2].reason == "missing"
    assert all(str(bad.path) in bad.detail for bad in found)
    assert "2 of 5 can be opened" in page.read_text(encoding="utf-8")


def test_good_videos_exit_0_and_empty_the_failure_file(clips: Path, tmp_path: Path) -> None:
    failures = tmp_path / "failures.jsonl"
    failures.write_text("of an earlier run\n", encoding="utf-8")
    result = run(clips / "fine.jsonl", "--check-videos", "--failures", failures)
    assert result.exit_code == 0, result.output
    assert failures.read_text(encoding="utf-8") == ""


def test_options_of_the_check_are_refused_without_it(clips: Path, tmp_path: Path) -> None:
    for option in ("--failures", "--video-root"):
        result = run(clips / "fine.jsonl", option, tmp_path / "x")
        assert result.exit_code == 2
        assert "--check-videos" in result.output


def test_decoder_that_dies_or_hangs_costs_only_its_own_file(tmp_path: Path) -> None:
    names = ("a", "crash1", "b", "hang", "c", "crash2", "bad", "d")
    checks = list(
        check(files(tmp_path, *names), root=tmp_path, workers=2, timeout_s=4, probe=probe_or_die)
    )
    assert sorted(one.video for one in checks) == sorted(names)
    reasons = {one.video: one.reason for one in checks if one.reason is not None}
    assert reasons == {
        "crash1": "decoder crashed",
        "crash2": "decoder crashed",
        "hang": "decoder timed out",
        "bad": "cannot open as a video",
    }
    assert "SIGSEGV" in next(one.detail for one in checks if one.video == "crash1")


def test_nothing_outside_the_root_is_opened(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    outside = files(tmp_path, "secret")[0]
    (root / "link").symlink_to(outside.path)
    videos = below(root, dict.fromkeys(("../secret", "link", str(outside.path)), Named(4.0)))
    checks = list(check(videos, root=root, workers=1, timeout_s=60, probe=probe_or_die))
    assert [one.reason for one in checks] == ["no file below the video root"] * 3


def test_videos_are_collected_once_with_their_first_known_duration() -> None:
    records = [
        Annotation(position="1", video="a", duration_s=None),
        Annotation(position="2", video="a", duration_s=7.0),
        Annotation(position="3", video="a", duration_s=9.0),
        Annotation(position="4", video="part", duration_s=5.0, window=(10.0, 15.0)),
        Annotation(position="5", video="part", duration_s=5.0, window=(2.0, 7.0)),
        Annotation(position="6", video="a", window=(20.0, math.inf)),
    ]
    seen: dict[str, Named] = {}
    assert list(collect(records, into=seen)) == records
    assert seen == {"a": Named(7.0, 20.0), "part": Named(None, 15.0)}


@pytest.mark.parametrize(("reach_s", "reason"), [(5.0, None), (5.1, "window past the end")])
def test_file_that_its_windows_leave_is_bad(
    tmp_path: Path, reach_s: float, reason: str | None
) -> None:
    files(tmp_path, "a")
    videos = below(tmp_path, {"a": Named(None, reach_s)})
    (found,) = check(videos, root=tmp_path, workers=1, timeout_s=60, probe=probe_or_die)
    assert found.reason == reason
    assert reason is None or "found 4.00 s, wanted the 5.10 s of its windows" in found.detail


def test_durations_off_by_more_than_a_second_come_worst_first() -> None:
    checks = [
        Check(video=name, path=Path(name), annotated_s=10.0, duration_s=found)
        for name, found in (("near", 11.0), ("off", 12.0), ("far", 60.0))
    ]
    assert [one.video for one in health(checks).off] == ["far", "off"]


def test_reasons_have_no_path_and_no_details() -> None:
    path = Path("/v/a.mp4")
    assert reason_of(f"{path}: found 0 bytes, wanted a video", path=path) == "found 0 bytes"
