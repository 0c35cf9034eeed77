"""`tempsamp reframe qwen` against a replica's real API: right answers, wrong ones, and none."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import tempsamp
from common.errors import ConfigError, EngineError, VideoError
from common.messages import GenerateRequest
from jobs.reframe import qwen
from jobs.reframe.crop import Size, centred
from jobs.reframe.score import Score, mean, score
from jobs.reframe.submission import read_submission
from tests.fixtures.clips import ffmpeg, make_clip
from tests.fixtures.replicas.reframing import (
    NUM_FRAMES,
    RATIO,
    is_about_a_frame,
    oracle,
    write_task,
)
from tests.fixtures.replicas.stand_in_replica import (
    HangUpError,
    StandIn,
    refuse,
    serving,
)

TEMPSAMP = Path(sys.executable).with_name("tempsamp")
COUNT = 6
EVERY = 5
"""Toy clips have 4 frames a second."""
CENTRED = centred(Size(64, 64), ratio=RATIO)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, index and truth; nobody writes there."""
    folder = tmp_path_factory.mktemp("task")
    write_task(folder, count=COUNT)
    return folder


@pytest.fixture
def folder(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, where the command runs."""
    shutil.copytree(task, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TEMPSAMP_TOKEN", raising=False)
    return tmp_path


def reframe(*arguments: str, index: str = "test_index.json") -> Result:
    where = ["--index", index, "--video-dir", "videos", "--out", "sub.jsonl"]
    return CliRunner().invoke(tempsamp.app, ["reframe", "qwen", *where, *arguments])


def run(*replicas: StandIn, arguments: tuple[str, ...] = ("--every", str(EVERY))) -> Result:
    endpoints = [word for one in replicas for word in ("--endpoint", one.url)]
    return reframe(*endpoints, *arguments)


def succeeded(result: Result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def scored(folder: Path) -> Score:
    found = read_submission(folder / "sub.jsonl", knob="sub")
    return mean(score(found, truth=read_submission(folder / "truth.jsonl", knob="truth")))


def boxes(folder: Path) -> dict[str, dict[int, Any]]:
    found = read_submission(folder / "sub.jsonl", knob="sub")
    return {name: dict(one.boxes) for name, one in found.items()}


def ends(folder: Path) -> dict[str, dict[str, Any]]:
    """What became of each video, by the journal."""
    lines = map(json.loads, (folder / "sub.journal.jsonl").read_text().splitlines())
    return {line["video"]["video_id"]: line["video"] for line in lines if "video" in line}


def checked(folder: Path, index: str = "test_index.json") -> None:
    arguments = ["sub.jsonl", "--index", index, "--video-dir", "videos"]
    succeeded(CliRunner().invoke(tempsamp.app, ["reframe", "check", *arguments]))


def test_a_replica_that_knows_the_subject_gives_the_true_boxes(folder: Path) -> None:
    """What the kit loses by itself: between keyframes and by rounding."""
    with serving(oracle) as replica:
        shown = succeeded(run(replica))
    checked(folder)
    found = scored(folder)
    assert found.frame_f1 == 1.0
    assert found.box_iou is not None
    assert found.box_iou > 0.97
    assert f"{COUNT} videos: {COUNT} followed" in shown
    assert {end["outcome"] for end in ends(folder).values()} == {"followed"}
    assert all(end["faults"] == {} for end in ends(folder).values())


def test_the_centred_crop_is_far_worse(folder: Path) -> None:
    arguments = ["--index", "test_index.json", "--video-dir", "videos", "--out", "sub.jsonl"]
    succeeded(CliRunner().invoke(tempsamp.app, ["reframe", "center", *arguments]))
    found = scored(folder)
    assert found.frame_f1 < 0.8
    assert found.box_iou is not None
    assert found.box_iou < 0.8


def test_questions_are_greedy_and_about_whole_videos_then_single_frames(folder: Path) -> None:
    with serving(oracle) as replica:
        succeeded(run(replica, arguments=("--every", "5", "--segments", "3")))
    first = [one for one in replica.requests if not is_about_a_frame(one)]
    second = [one for one in replica.requests if is_about_a_frame(one)]
    assert len(first) == COUNT
    assert replica.requests[:COUNT] == first
    assert all("at most 3" in question for question in replica.questions[:COUNT])
    assert {one.sampling.temperature for one in replica.requests} == {0.0}
    assert {len(one.clip.frame_indices) for one in second} == {2}
    assert {one.clip.frame_indices[0] - one.clip.frame_indices[1] for one in second} == {0}
    for name, kept in boxes(folder).items():
        asked = [one.clip.frame_indices[0] for one in second if Path(one.clip.uri).stem == name]
        assert sorted(asked) == sorted({*list(kept)[::5], list(kept)[-1]})


def test_equal_answers_give_equal_bytes_on_any_fleet(folder: Path) -> None:
    with serving(oracle) as replica:
        succeeded(run(replica))
    alone = (folder / "sub.jsonl").read_bytes()
    (folder / "sub.journal.jsonl").unlink()
    with serving(oracle, delay_s=0.02) as slow, serving(oracle) as fast:
        succeeded(run(slow, fast, arguments=("--every", str(EVERY), "--concurrency", "3")))
        assert slow.requests
        assert fast.requests
    assert (folder / "sub.jsonl").read_bytes() == alone


def test_what_is_known_is_not_asked_again(folder: Path) -> None:
    with serving(oracle) as replica:
        succeeded(run(replica))
        once, first = len(replica.requests), (folder / "sub.jsonl").read_bytes()
        succeeded(run(replica))
        assert len(replica.requests) == once
        assert (folder / "sub.jsonl").read_bytes() == first
        succeeded(run(replica, arguments=("--every", str(EVERY), "--smooth", "1")))
        assert len(replica.requests) == once
        # other keyframes: the questions about videos are known, and those of shared frames
        succeeded(run(replica, arguments=("--every", "4")))
        again = replica.requests[once:]
        assert again
        assert all(is_about_a_frame(one) for one in again)
    with serving(oracle, version=5, run_tag="another") as replica:
        succeeded(run(replica))
        assert len(replica.requests) == once


def test_a_run_that_was_killed_goes_on(folder: Path) -> None:
    with serving(oracle) as replica:
        succeeded(run(replica))
        once = len(replica.requests)
    whole = (folder / "sub.jsonl").read_bytes()
    (folder / "sub.jsonl").unlink()
    (folder / "sub.journal.jsonl").unlink()
    enough = threading.Event()

    def count(request: GenerateRequest) -> str:
        if len(replica.requests) > once // 2:
            enough.set()
        return oracle(request)

    with serving(count, delay_s=0.05) as replica:
        where = ["--index", "test_index.json", "--video-dir", "videos", "--out", "sub.jsonl"]
        command = [TEMPSAMP, "reframe", "qwen", *where, "--endpoint", replica.url]
        child = subprocess.Popen([*command, "--every", str(EVERY), "--concurrency", "2"])
        assert enough.wait(60)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert not (folder / "sub.jsonl").exists()
        known = (folder / "sub.journal.jsonl").read_text().count('"reply"')
        with (folder / "sub.journal.jsonl").open("a") as journal:
            journal.write('{"reply":{"video_id":"0')
    assert 0 < known < once
    with serving(oracle) as replica:
        succeeded(run(replica))
    assert len(replica.requests) == once - known
    assert (folder / "sub.jsonl").read_bytes() == whole


FAULTS: dict[str, tuple[str, dict[str, int]]] = {
    "I cannot help with that.": ("centred", {"no segments in the reply": 1}),
    '{"segments": []}': ("centred", {"no highlight": 1}),
    '{"segments": [[3, 3]]}': ("centred", {"zero-length segment": 1}),
    '{"segments": [[5, 3]]}': ("centred", {"zero-length segment": 1}),
    '{"segments": [[16, 20]]}': ("centred", {"segment past the end": 1}),
    '{"segments": [[1e300, 1e308]]}': ("centred", {"segment past the end": 1}),
    '{"segments": [[4, 99]]}': ("followed", {"segment cut at the end": 1}),
    '{"segments": [[0, 1]]} or {"segments": [[4, 8]]}': (
        "followed",
        {"several objects in a reply": 1},
    ),
    "Segments: from 4.0 to 8.0 seconds": ("followed", {"no JSON in a reply": 1}),
    '{"segments": [[4, 8], [9, 10]]}': ("followed", {"one segment too many": 1}),
}


@pytest.mark.parametrize("reply", FAULTS)
def test_a_wrong_answer_costs_one_video_and_is_counted(folder: Path, reply: str) -> None:
    outcome, faults = FAULTS[reply]
    with serving(partial(oracle, wrong={"00002": reply})) as replica:
        shown = succeeded(run(replica))
    checked(folder)
    end = ends(folder)["00002"]
    assert (end["outcome"], end["faults"]) == (outcome, faults)
    assert all(f"{count} x {kind}" in shown for kind, count in faults.items())
    others = {name: one["outcome"] for name, one in ends(folder).items() if name != "00002"}
    assert set(others.values()) == {"followed"}
    if outcome == "centred":
        assert boxes(folder)["00002"] == dict.fromkeys(range(NUM_FRAMES), CENTRED)


def keyframe(folder: Path, name: str, number: int) -> int:
    """The frame of one of a video's keyframes, in a run with right answers."""
    kept = list(boxes(folder)[name])
    return [*kept[::EVERY], kept[-1]][number]


@pytest.mark.parametrize(
    ("reply", "faults"),
    [
        ("I see nobody.", {"no point in a reply": 1}),
        ('{"center": [1900, 500], "size": [1000, 1000]}', {"point outside the frame": 1}),
        ('{"center": [1, 1]} {"center": [500, 500]}', {"several objects in a reply": 1}),
        ("at 500, 500", {"no JSON in a reply": 1}),
    ],
)
def test_a_wrong_point_costs_one_keyframe_and_is_counted(
    folder: Path, reply: str, faults: dict[str, int]
) -> None:
    with serving(oracle) as replica:
        succeeded(run(replica))
    frame = keyframe(folder, "00003", 1)
    right = boxes(folder)
    (folder / "sub.journal.jsonl").unlink()
    with serving(partial(oracle, wrong={f"00003:{frame}": reply})) as replica:
        succeeded(run(replica))
    checked(folder)
    found = ends(folder)["00003"]
    assert found["outcome"] == "followed"
    assert {k: n for k, n in found["faults"].items() if k != "slip of a point"} == faults
    assert list(boxes(folder)["00003"]) == list(right["00003"])
    assert {k: v for k, v in boxes(folder).items() if k != "00003"} == {
        k: v for k, v in right.items() if k != "00003"
    }
    if "no point in a reply" in faults or "point outside the frame" in faults:
        before = keyframe(folder, "00003", 0)
        assert boxes(folder)["00003"][frame] == right["00003"][before]


def test_a_slip_at_one_keyframe_is_passed_over(folder: Path) -> None:
    """At 4 frames a second and every 2nd one, half a second apart: .25 of the frame is far."""

    def resting(request: GenerateRequest) -> str:
        if not is_about_a_frame(request):
            return '{"segments": [[2.0, 6.0]]}'
        slipped = request.clip.frame_indices[0] == 14
        return '{"center": [900, 500]}' if slipped else '{"center": [400, 500]}'

    with serving(resting) as replica:
        succeeded(run(replica, arguments=("--every", "2")))
    assert all(end["faults"] == {"slip of a point": 1} for end in ends(folder).values())
    # 400 of 1000 is 25.6 px; less 18, half of the crop, is 7.6
    assert set(boxes(folder)["00000"].values()) == {(8, 0, 36)}


def test_no_point_at_all_leaves_the_crop_in_the_middle_of_the_highlight(folder: Path) -> None:
    def blind(request: GenerateRequest) -> str:
        is_third = Path(request.clip.uri).stem == "00003"
        return "Nobody." if is_third and is_about_a_frame(request) else oracle(request)

    with serving(blind) as replica:
        succeeded(run(replica))
    checked(folder)
    assert ends(folder)["00003"]["outcome"] == "middle"
    assert set(boxes(folder)["00003"].values()) == {CENTRED}
    assert scored(folder).frame_f1 == 1.0


def failing(name: str, how: Callable[[], str]) -> Callable[[GenerateRequest], str]:
    """Right answers, but for one video."""

    def answer(request: GenerateRequest) -> str:
        return how() if Path(request.clip.uri).stem == name else oracle(request)

    return answer


def hang_up() -> str:
    raise HangUpError


@pytest.mark.parametrize(
    ("how", "kind", "error"),
    [
        (lambda: refuse(422, "found 9 tokens too many"), "refused", "9 tokens too many"),
        (lambda: refuse(500, "boom"), "refused", "boom"),
        (hang_up, "engine", "the connection broke 3 times"),
    ],
)
def test_failures_of_a_replica_cost_one_video_and_are_asked_again(
    folder: Path, how: Callable[[], str], kind: str, error: str
) -> None:
    with serving(failing("00001", how)) as replica:
        succeeded(run(replica))
    checked(folder)
    end = ends(folder)["00001"]
    assert (end["outcome"], end["faults"]) == ("centred", {kind: 1})
    assert error in end["error"]
    with serving(oracle) as replica:
        succeeded(run(replica))
        assert {Path(one.clip.uri).stem for one in replica.requests} == {"00001"}
    assert scored(folder).frame_f1 == 1.0


def test_replicas_that_are_lost_leave_a_whole_submission(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qwen, "RETRY_S", 0.3)
    lost = threading.Event()

    def until_lost(request: GenerateRequest) -> str:
        if len(replica.requests) > COUNT + 3:
            lost.set()
        return refuse(503, "loading") if lost.is_set() else oracle(request)

    with serving(until_lost) as replica:
        result = run(replica)
    assert isinstance(result.exception, EngineError)
    assert "the submission is whole" in str(result.exception)
    checked(folder)
    found = ends(folder)
    assert any(end["faults"].get("engine") for end in found.values())
    assert {end["outcome"] for end in found.values()} <= {"followed", "middle"}
    with serving(oracle) as replica:
        succeeded(run(replica))
        assert all(is_about_a_frame(one) for one in replica.requests)
    assert scored(folder).frame_f1 == 1.0


def test_nothing_but_prose_is_a_failure_with_a_submission(folder: Path) -> None:
    with serving(lambda _: "What a nice video!") as replica:
        result = run(replica)
    assert isinstance(result.exception, EngineError)
    assert f"no highlight of {COUNT} videos could be read" in str(result.exception)
    checked(folder)
    assert set(boxes(folder)["00000"].values()) == {CENTRED}


@pytest.fixture
def awkward(folder: Path) -> Path:
    """Sources of every kind, with an index of their own."""
    videos = folder / "videos"
    make_clip(videos / "wide.mp4", num_frames=40, height_px=90, width_px=160)
    make_clip(videos / "tall.mp4", num_frames=40, height_px=160, width_px=90)
    ffmpeg("-display_rotation", "90", "-i", videos / "wide.mp4", "-c", "copy", videos / "turn.mp4")
    odd = ("-vf", "scale=159:89", "-c:v", "libx264", "-pix_fmt", "yuv444p")
    ffmpeg("-i", videos / "wide.mp4", *odd, videos / "odd.mp4")
    # 8 frames of the first second, then one a second: at 0, .125, ... .875, 1, 2, 3, 4 s
    uneven = ("-vf", "select='lt(n,8)+not(mod(n,8))'", "-fps_mode", "vfr")
    ffmpeg("-i", videos / "wide.mp4", *uneven, videos / "uneven.mp4")
    make_clip(videos / "short.mp4", num_frames=1, height_px=90, width_px=160)
    (videos / "text.mp4").write_text("no video")
    names = ("wide", "tall", "turn", "odd", "uneven", "short", "text", "gone")
    entries = [{"video_id": name, "targetRatioWH": [9, 16]} for name in names]
    (folder / "awkward.json").write_text(json.dumps(entries))
    return folder


def test_awkward_sources_all_have_a_line(awkward: Path) -> None:
    def answer(request: GenerateRequest) -> str:
        if is_about_a_frame(request):
            return '{"center": [750, 250]}'
        return '{"segments": [[2.0, 4.0]]}'

    with serving(answer) as replica:
        result = reframe("--endpoint", replica.url, index="awkward.json")
    assert isinstance(result.exception, VideoError)
    assert "2 of 8 videos could not be read and have no frames" in str(result.exception)
    checked_with = ["sub.jsonl", "--index", "awkward.json", "--video-dir", "videos"]
    shown = CliRunner().invoke(tempsamp.app, ["reframe", "check", *checked_with])
    assert shown.exit_code == 0, shown.output
    found = boxes(awkward)
    # 90 * 9 / 16 = 50.6: 51 wide, around 120
    assert found["wide"] == dict.fromkeys(range(16, 32), (95, 0, 51))
    # 90 wide already: the whole frame
    assert found["tall"] == dict.fromkeys(range(16, 32), (0, 0, 90))
    assert found["turn"] == found["tall"]
    # 89 * 9 / 16 = 50.06: 50 wide, around 119.25
    assert found["odd"] == dict.fromkeys(range(16, 32), (94, 0, 50))
    # frames 9 and 10 lie at 2 and 3 s; 4 s is frame 11, where the span ends
    assert list(found["uneven"]) == [9, 10]
    assert found["short"] == {0: centred(Size(160, 90), ratio=RATIO)}
    assert found["text"] == found["gone"] == {}
    assert {name: (end["outcome"], *end["faults"]) for name, end in ends(awkward).items()} == {
        **dict.fromkeys(("wide", "tall", "turn", "odd", "uneven"), ("followed",)),
        "short": ("centred", "unusable video"),
        "text": ("empty", "unusable video"),
        "gone": ("empty", "missing video"),
    }


def test_the_frames_of_a_turned_video_are_sent_upright(awkward: Path) -> None:
    with serving(lambda _: '{"segments": [[0, 1]], "center": [5, 5]}') as replica:
        reframe("--endpoint", replica.url, index="awkward.json")
    sizes = {Path(one.clip.uri).stem: one.clip.frame_hw for one in replica.requests}
    assert sizes["turn"][0] > sizes["turn"][1]
    assert sizes["wide"][0] < sizes["wide"][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "found neither --endpoint nor --model"),
        (("--endpoint", "nonsense"), "--endpoint: found 'nonsense', wanted a URL"),
        (("--model", "nowhere"), "--model: found 'nowhere'"),
    ],
)
def test_wrong_options_are_refused(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    refused = reframe(*arguments)
    assert isinstance(refused.exception, ConfigError)
    assert message in str(refused.exception)


def test_two_runs_into_one_file_are_refused(folder: Path) -> None:
    result: list[Result] = []
    began = threading.Event()

    def slow(request: GenerateRequest) -> str:
        began.set()
        time.sleep(0.1)
        return oracle(request)

    with serving(slow) as replica:
        where = ["--index", "test_index.json", "--video-dir", "videos", "--out", "sub.jsonl"]
        child = subprocess.Popen([TEMPSAMP, "reframe", "qwen", *where, "--endpoint", replica.url])
        try:
            assert began.wait(60)
            result.append(run(replica))
        finally:
            child.terminate()
            assert child.wait(30) == 130
    assert isinstance(result[0].exception, ConfigError)
    assert "found another process writing it" in str(result[0].exception)
