import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.errors import ConfigError, OutputError
from common.queue import disk
from common.video.cache import ClipCache
from common.video.frames import decode, file_digest, load_frames
from common.video.loader import ClipLoader
from common.video.roots import VideoRoots
from common.video.sampling import VideoSampling
from jobs.data.cache_filling import (
    NO_ROOM,
    Done,
    Failure,
    Fault,
    Report,
    RowsByKey,
    failures_path,
    fill,
    fill_in_terminal,
    group_rows,
    video_settings,
)
from jobs.data.preprocess import Part, Plan, command, content_of, find_video, make_entry, part_of
from tests.fixtures.clips import make_clip
from tests.fixtures.pages.commands import invoked
from tests.fixtures.servers.places import no_room

ROOT = Path(__file__).resolve().parents[4]
SAMPLING = VideoSampling(fps=4.0)
DEADLINE_S = 60.0


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder with three clips."""
    for name, fps in (("a", 8.0), ("b", 7.0), ("c", 6.0)):
        make_clip(tmp_path / f"videos/{name}.mp4", num_frames=16, fps=fps)
    return tmp_path / "videos"


@pytest.fixture
def plan(videos: Path) -> Plan:
    return Plan(cache=videos.with_name("cache"), roots=(videos,), sampling=SAMPLING)


def write_rows(path: Path, *names: str) -> Path:
    lines = [json.dumps({"query": "it", "videos": [name], "spans": [[0, 1]]}) for name in names]
    path.write_text("\n".join(lines) + "\n")
    return path


def entry_of(plan: Plan, video: str) -> Path:
    sha256 = file_digest(plan.roots[0] / video)
    return ClipCache(plan.cache).path(sha256, sampling=plan.sampling.fingerprint)


run = functools.partial(invoked, command)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def holding(plan: Plan, video: str) -> AbstractContextManager[None]:
    """Keep whoever makes this entry waiting, as a decoder that does not come back would."""
    sha256 = file_digest(plan.roots[0] / video)
    return ClipCache(plan.cache).locked(sha256, sampling=plan.sampling.fingerprint)


def waiting_for(lock: Path) -> psutil.Process | None:
    """The descendant of this process that wants a lock."""
    for process in psutil.Process().children(recursive=True):
        try:
            if str(lock) in {file.path for file in process.open_files()}:
                return process
        except psutil.Error:
            continue
    return None


def test_videos_are_cached_once_and_failures_are_listed(plan: Plan, tmp_path: Path) -> None:
    (plan.roots[0] / "text.mp4").write_text("no video")
    rows = write_rows(tmp_path / "rows.jsonl", "a.mp4", "b.mp4", "a.mp4", "text.mp4", "no.mp4")
    rows.write_text(rows.read_text() + '\n{"videos": []}\n')
    options = ["--cache", plan.cache, "--video-root", plan.roots[0], "--fps", 4, "--workers", 1]

    first = run("--input", rows, *options)
    assert first.exit_code == 1
    table = " ".join(first.stdout.replace("│", " ").split())
    assert "videos 4 written 2 there already 0" in table
    assert "failed: unusable video 1" in table
    assert "failed: missing file 1" in table
    assert "unreadable rows: bad row 1" in table
    failures = [json.loads(line) for line in failures_path(rows).read_text().splitlines()]
    assert {(tuple(f["rows"]), f["video"], f["reason"]) for f in failures} == {
        ((4,), "text.mp4", "unusable video"),
        ((5,), "no.mp4", "missing file"),
        ((7,), None, "bad row"),
    }
    loader = ClipLoader(
        sampling=SAMPLING,
        roots=VideoRoots(plan.roots),
        cache=ClipCache(plan.cache),
        mode="strict",
    )
    clip = loader.sample(plan.roots[0] / "a.mp4")
    assert (loader.load(clip) == load_frames(clip)).all()

    made = entry_of(plan, "a.mp4").stat().st_mtime_ns
    write_rows(rows, "a.mp4", "b.mp4", "c.mp4")
    second = run("--input", rows, *options)
    assert second.exit_code == 0
    table = " ".join(second.stdout.replace("│", " ").split())
    assert "videos 3 written 1 there already 2" in table
    assert entry_of(plan, "a.mp4").stat().st_mtime_ns == made
    assert not failures_path(rows).exists()


def fill_from(rows: Path, plan: Plan, *, timeout_s: float) -> Report:
    """All videos of the rows in one worker."""
    return fill(
        functools.partial(make_entry, plan=plan),
        group_rows([rows], key=part_of),
        inputs=[rows],
        cache=plan.cache,
        workers=1,
        timeout_s=timeout_s,
    )


def test_decoder_that_crashes_costs_its_video_only(plan: Plan, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", "a.mp4", "b.mp4")
    lock = entry_of(plan, "a.mp4").with_suffix(".lock")

    def crash_the_worker_of_a() -> None:
        until(lambda: waiting_for(lock) is not None)
        worker = waiting_for(lock)
        assert worker is not None
        worker.send_signal(signal.SIGSEGV)

    crash = threading.Thread(target=crash_the_worker_of_a)
    with holding(plan, "a.mp4"):
        crash.start()
        report = fill_from(rows, plan, timeout_s=DEADLINE_S)
    crash.join()
    (failure,) = report.failures
    assert (failure.video, failure.reason) == ("a.mp4", "decoder crashed")
    assert "SIGSEGV" in failure.detail
    assert [done.written for done in report.done] == [True]
    assert failures_path(rows).read_text().count("decoder crashed") == 1


def test_decoder_that_hangs_costs_its_video_only(plan: Plan, tmp_path: Path) -> None:
    make_entry(Part("b.mp4"), plan)  # so that its turn needs no time
    rows = write_rows(tmp_path / "rows.jsonl", "a.mp4", "b.mp4")
    with holding(plan, "a.mp4"):
        report = fill_from(rows, plan, timeout_s=1.5)
    (failure,) = report.failures
    assert (failure.video, failure.reason) == ("a.mp4", "timed out")
    assert "1.5 s" in failure.detail
    assert [done.written for done in report.done] == [False]


def test_ctrl_c_ends_the_workers_and_leaves_no_litter(plan: Plan, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", "a.mp4", "b.mp4")
    code = "import typer, jobs.data.preprocess; typer.run(jobs.data.preprocess.command)"
    arguments = ["--input", rows, "--cache", plan.cache, "--video-root", plan.roots[0]]
    lock = entry_of(plan, "b.mp4").with_suffix(".lock")
    with holding(plan, "b.mp4"):
        job = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments), "--workers", "1", "--fps", "4"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        until(lambda: job.poll() is not None or waiting_for(lock) is not None)
        children = psutil.Process(job.pid).children(recursive=True)
        job.send_signal(signal.SIGINT)
        output, _ = job.communicate(timeout=DEADLINE_S)
    assert "run it again to go on" in output
    assert job.returncode == 130
    assert psutil.wait_procs(children, timeout=5.0)[1] == []
    assert entry_of(plan, "a.mp4").exists()
    left = {path.suffix for path in plan.cache.rglob("*") if path.is_file()}
    assert left == {".safetensors", ".json"}


def test_verify_finds_and_mends_damage_that_resuming_skips(plan: Plan) -> None:
    first = make_entry(Part("a.mp4"), plan)
    frames = decode(plan.roots[0] / "a.mp4", sampling=SAMPLING).frames
    path = entry_of(plan, "a.mp4")
    assert first == Done(path, True, path.stat().st_size, 4 * frames.size)
    entry = entry_of(plan, "a.mp4")
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    skipped = make_entry(Part("a.mp4"), plan)
    assert isinstance(skipped, Done)
    assert not skipped.written
    mended = make_entry(Part("a.mp4"), Plan(**{**vars(plan), "verify": True}))
    assert isinstance(mended, Done)
    assert mended.written
    assert ClipCache(plan.cache).read(
        file_digest(plan.roots[0] / "a.mp4"), sampling=SAMPLING.fingerprint
    )


def test_changed_video_gets_an_entry_of_its_own(plan: Plan) -> None:
    make_entry(Part("a.mp4"), plan)
    before = entry_of(plan, "a.mp4")
    shutil.copy(plan.roots[0] / "b.mp4", plan.roots[0] / "a.mp4")
    again = make_entry(Part("a.mp4"), plan)
    assert isinstance(again, Done)
    assert again.written
    assert before.exists()
    assert entry_of(plan, "a.mp4").exists()


def test_known_file_is_not_read_again_unless_verified(plan: Plan) -> None:
    cache, video = ClipCache(plan.cache), plan.roots[0] / "a.mp4"
    sha256 = content_of(video, cache)
    stat = video.stat()
    content = video.read_bytes()
    video.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_of(video, cache) == sha256
    video.touch()
    assert content_of(video, cache) == file_digest(video) != sha256


@pytest.mark.parametrize(
    ("video", "reason", "detail"),
    [
        ("no.mp4", "missing file", "--video-root"),
        ("../outside.mp4", "unusable video", "roots"),
        ("link.mp4", "unusable video", "roots"),
    ],
)
def test_unusable_video_is_a_fault_with_its_reason(
    plan: Plan, video: str, reason: str, detail: str
) -> None:
    outside = make_clip(plan.roots[0].with_name("outside.mp4"), num_frames=4)
    (plan.roots[0] / "link.mp4").symlink_to(outside)
    fault = make_entry(Part(video), plan)
    assert isinstance(fault, Fault)
    assert fault.reason == reason
    assert detail in fault.detail


def test_cache_that_cannot_be_written_is_a_fault(plan: Plan) -> None:
    plan.cache.write_text("a file")
    fault = make_entry(Part("a.mp4"), plan)
    assert isinstance(fault, Fault)
    assert fault.reason == "cannot write"


def no_room_but_for_a(part: Part) -> Done | Fault:
    if part.video == "a.mp4":
        return Done(entry=Path("/dev/null"), written=False, entry_bytes=1, float32_bytes=4)
    return Fault(NO_ROOM, "the cache: No space left on device")


def test_a_full_disk_stops_the_work_and_keeps_what_is_done(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with no_room(4096):
        fault = make_entry(Part("a.mp4"), plan)
    assert isinstance(fault, Fault)
    assert fault.reason == NO_ROOM
    assert "cannot write" in fault.detail
    rows = write_rows(tmp_path / "rows.jsonl", "a.mp4", *(f"{n}.mp4" for n in range(50)))
    taken = tmp_path / "taken"
    taken.mkdir()
    failures = taken / "failures.jsonl"
    with pytest.raises(OutputError, match=r"--cache: .* for 1 of 51 videos; those are kept"):
        fill_in_terminal(
            "preprocess",
            no_room_but_for_a,
            group_rows([rows], key=part_of),
            inputs=[rows],
            cache=plan.cache,
            workers=1,
            timeout_s=60.0,
            failures_file=failures,
        )
    assert len(failures.read_text().splitlines()) == 1
    assert "failed: no space left" in capsys.readouterr().out


def test_failures_that_no_file_takes_are_shown(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", "no.mp4")

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "replace_text", full)
    with pytest.raises(OutputError, match=r"--failures: .*failed\.jsonl: No space left .* nowhere"):
        fill_in_terminal(
            "preprocess",
            no_room_but_for_a,
            RowsByKey(
                places={},
                unreadable=(
                    Failure(input=rows, rows=[1], video=None, reason="bad row", detail="it is"),
                ),
            ),
            inputs=[rows],
            cache=plan.cache,
            workers=1,
            timeout_s=60.0,
            failures_file=None,
        )
    assert f"{rows}: rows [1]: bad row: it is" in capsys.readouterr().err


def test_relative_path_starts_at_the_first_root_as_in_the_ring(plan: Plan, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    both = dataclasses.replace(plan, roots=(empty, *plan.roots))
    here = plan.roots[0] / "a.mp4"
    assert find_video("a.mp4", plan) == here
    assert find_video(str(here), both) == here
    with pytest.raises(FileNotFoundError, match=r"empty/a\.mp4"):
        find_video("a.mp4", both)
    with pytest.raises(FileNotFoundError, match=r"--video-root; nearest there: 'a\.mp4'"):
        find_video("A.mkv", plan)


def test_address_is_refused_unless_the_run_allows_it(plan: Plan) -> None:
    fault = make_entry(Part("https://127.0.0.1:1/a.mp4"), plan)
    assert isinstance(fault, Fault)
    assert "shared.video.allow_urls" in fault.detail
    allowed = dataclasses.replace(plan, downloads=plan.cache / "downloads")
    fault = make_entry(Part("https://127.0.0.1:1/a.mp4"), allowed)
    assert isinstance(fault, Fault)
    assert "cannot be downloaded" in fault.detail


def test_run_file_says_where_cache_and_videos_are(plan: Plan, tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text(
        (ROOT / "deploy/configs/demo.toml")
        .read_text()
        .replace(
            "[shared.video]",
            f"[shared.video]\nroots = ['{plan.roots[0]}']\ncache = '{plan.cache}'",
        )
    )
    rows = write_rows(tmp_path / "rows.jsonl", "a.mp4")
    assert run("--input", rows, "--config", run_file, "--workers", 1).exit_code == 0
    assert len(list(plan.cache.rglob("*.safetensors"))) == 1
    missing = run("--input", rows)
    assert isinstance(missing.exception, ConfigError)
    assert "--cache" in str(missing.exception)


def test_rows_of_several_files_share_their_videos(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "one.jsonl", "a.mp4", "b.mp4", "a.mp4")
    second = write_rows(tmp_path / "two.jsonl", "b.mp4")
    rows = group_rows([first, second], key=part_of)
    assert rows.places == {
        Part("a.mp4"): {first: [1, 3]},
        Part("b.mp4"): {first: [2], second: [1]},
    }


def test_sampling_comes_from_the_run_file_and_options_win() -> None:
    config = sorted((ROOT / "deploy/configs").glob("*.toml"))[0]
    places: dict[str, Any] = {"cache": Path("cache"), "video_root": [Path("videos")]}
    base = video_settings(config, **places).sampling
    twice = video_settings(config, **places, fps=base.fps * 2, factor=None).sampling
    assert twice == base.model_copy(update={"fps": base.fps * 2})
    assert video_settings(None, **places).sampling == VideoSampling()


def test_wrong_option_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--max-frames: found 1: .*greater than or equal to 2"):
        video_settings(None, cache=Path("cache"), video_root=[Path("videos")], max_frames=1)
    with pytest.raises(ConfigError, match=r"^shared\.video\.min_frames: found 4 while .* is 2"):
        video_settings(None, cache=Path("cache"), video_root=[Path("videos")], max_frames=2)


def test_windows_are_cached_beside_their_file_and_a_missing_one_is_listed(
    plan: Plan, tmp_path: Path
) -> None:
    windows: list[dict[str, float]] = [{}, {"start_s": 0.5, "end_s": 1.5}, {"end_s": 1.5}]
    windows += [{"start_s": 0.5, "end_s": 1.5}, {"start_s": 39.0, "end_s": 84.7}]
    rows = tmp_path / "rows.jsonl"
    asked = [{"query": "it", "videos": ["a.mp4"], "spans": [[0, 1]]} | window for window in windows]
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
    options = ["--cache", plan.cache, "--video-root", plan.roots[0], "--fps", 4, "--workers", 1]

    assert run("--input", rows, *options).exit_code == 1
    (failure,) = map(json.loads, failures_path(rows).read_text().splitlines())
    assert (failure["video"], failure["rows"]) == ("a.mp4 (39.00 to 84.70 s)", [5])
    assert "wanted 39.00 to 84.70 s of it (start_s and end_s of the row)" in failure["detail"]
    strict = ClipLoader(
        sampling=SAMPLING,
        roots=VideoRoots(plan.roots),
        cache=ClipCache(plan.cache),
        mode="strict",
    )
    (plan.roots[0] / "a.mp4").rename(tmp_path / "gone.mp4")
    for window in (None, (0.5, 1.5), (0.0, 1.5)):
        clip = strict.sample(plan.roots[0] / "a.mp4", window)
        assert clip.window_s == window
        assert len(strict.load(clip)) == len(clip.frame_indices)
