"""Every kind of violation is found, at its line, with a remedy; a sound submission has none."""

import json
from typing import Any

import pytest

from common.errors import VideoError
from common.video.index import VideoHeader
from jobs.reframe.check import Violation, violations
from jobs.reframe.crop import Size, centred
from jobs.reframe.index import Wanted
from jobs.reframe.videos import MissingVideoError

TALL = Size(9, 16)
INDEX = [Wanted(video_id="a", ratio=TALL)]
HEADER = VideoHeader(width_px=1920, height_px=1080, total_frames=30, decoded=False)


def line(**changed: Any) -> dict[str, Any]:
    box = {"frame": 0, "bboxes": [656, 0, 608]}
    return {"video_id": "a", "targetRatioWH": [9, 16], "predictions": [box], **changed}


def boxes(*found: Any, frame: int = 0) -> dict[str, Any]:
    return line(predictions=[{"frame": frame + k, "bboxes": box} for k, box in enumerate(found)])


def check(*lines: Any, header: Any = HEADER) -> list[Violation]:
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    return list(violations(text, index=INDEX, headers=None if header is None else {"a": header}))


def test_a_sound_line_has_no_violation() -> None:
    assert check(line()) == []
    assert check(line(), "", header=None) == []
    assert check(line(predictions=[])) == []


@pytest.mark.parametrize("ratio", [TALL, Size(16, 9), Size(1, 1), Size(4, 5), Size(1, 100)])
@pytest.mark.parametrize(
    "frame",
    [(1920, 1080), (1280, 720), (1080, 1920), (853, 479), (719, 1279), (3, 7), (607, 1080), (2, 2)],
)
def test_the_centred_crop_is_always_sound(ratio: Size, frame: tuple[int, int]) -> None:
    header = VideoHeader(width_px=frame[0], height_px=frame[1], total_frames=1, decoded=False)
    box = list(centred(Size(*frame), ratio=ratio))
    text = json.dumps(boxes(box) | {"targetRatioWH": list(ratio)})
    wanted = [Wanted(video_id="a", ratio=ratio)]
    assert list(violations(text, index=wanted, headers={"a": header})) == []


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ("{", "no JSON", "line 1: found '{': write JSON"),
        ([1], "no id", "line 1: found '[1]': write an object"),
        ({"targetRatioWH": [9, 16]}, "no id", 'write an object with a string "video_id"'),
        (line(video_id="z"), "unknown id", "line 1: z: found id 'z': remove the line"),
        (line(score=1), "keys", "write exactly predictions, targetRatioWH, video_id"),
        (line(targetRatioWH=[16, 9]), "ratio", "found targetRatioWH '[16, 9]': write [9, 16]"),
        (line(targetRatioWH=None), "ratio", "found targetRatioWH 'null'"),
        (line(predictions={}), "predictions", "found predictions '{}': write a list"),
        (line(predictions=[7]), "prediction", "found '7': write {\"frame\": F"),
        (line(predictions=[{"frame": 0}]), "prediction", 'write {"frame": F'),
        (boxes([0, 0, 608], frame=-1), "frame", "found frame '-1': write a whole number from 0 on"),
        (
            line(predictions=[{"frame": 1.0, "bboxes": [0, 0, 608]}]),
            "frame",
            "found frame '1.0': write a whole number",
        ),
        (
            boxes([0, 0, 608], frame=30),
            "frame past the end",
            "found frame 30: leave it out: the video has frames 0 to 29",
        ),
        (boxes([0, 0]), "box", "found bboxes '[0, 0]': write three whole numbers"),
        (boxes([0, 0, 607.5]), "box", "found bboxes '[0, 0, 607.5]'"),
        (boxes([0, 0, True]), "box", "found bboxes '[0, 0, true]'"),
        (boxes([0, 0, 0]), "width", "found bboxes [0, 0, 0]: write a width of at least 1"),
        (boxes([-1, 0, 608]), "outside", "write x and y of at least 0"),
        (boxes([1313, 0, 608]), "outside", "write x of at most 1312: the frame has 1920x1080 px"),
        (boxes([0, 1, 608]), "outside", "write y of at most 0"),
        # 300 * 16 / 9 = 533.3: 547 + 533.3 fits in 1080.5, 548 + 533.3 does not
        (boxes([0, 548, 300]), "outside", "write y of at most 547"),
        (boxes([0, 0, 609]), "too large", "write a width of at most 608"),
    ],
)
def test_a_violation_is_found_with_its_remedy(wrong: Any, kind: str, message: str) -> None:
    found = [one for one in check(wrong) if one.kind != "missing id"]
    assert [one.kind for one in found] == [kind]
    assert message in str(found[0])


def test_the_bound_of_y_is_its_own_remedy() -> None:
    assert check(boxes([0, 547, 300])) == []


def test_ids_stand_there_once_and_all() -> None:
    (again,) = check(line(), line())
    assert str(again) == "line 2: a: found id 'a' again: keep one line: it stands in line 1 too"
    (missing,) = check("")
    assert missing.line is None
    assert str(missing).startswith("a: found no line: add one, with empty predictions")


def test_frames_ascend() -> None:
    box = [0, 0, 608]
    wrong = line(predictions=[{"frame": f, "bboxes": box} for f in (3, 2, 2, 5)])
    (found,) = check(wrong)
    assert (found.kind, found.times) == ("order", 2)
    assert "found frame 2 after 3" in str(found)
    assert "(2 predictions of this line)" in str(found)


def test_one_violation_a_kind_and_line() -> None:
    found = check(boxes(*[[0, 0, 609]] * 20, *[[-1, 0, 608]] * 20))
    assert [(one.kind, one.times) for one in found] == [
        ("too large", 20),
        ("outside", 20),
        ("frame past the end", 10),
    ]


def test_without_headers_only_what_needs_none_is_checked() -> None:
    assert check(boxes([5000, 0, 9000], frame=10**6), header=None) == []
    assert [one.kind for one in check(boxes([-1, 0, 608]), header=None)] == ["outside"]


def test_a_video_that_cannot_be_read_leaves_boxes_unproven() -> None:
    (missing,) = check(line(), header=MissingVideoError("found no videos/a.mp4"))
    assert "put the video into --video-dir" in str(missing)
    (broken,) = check(line(), header=VideoError("videos/a.mp4: truncated"))
    assert "leave predictions empty" in str(broken)
    assert check(line(predictions=[]), header=VideoError("videos/a.mp4: truncated")) == []
