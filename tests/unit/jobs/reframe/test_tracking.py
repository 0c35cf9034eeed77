"""From places at keyframes to boxes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.reframe.crop import Box, Point, Size, centred, crop_size
from jobs.reframe.tracking import bounded, boxes, frame_segments, held, keyframes, outliers

TALL, FRAME = Size(9, 16), Size(1280, 720)
CROP = Size(405, 720)


def at(x: float) -> Point:
    """A place at half the height."""
    return Point(x, 0.5)


def left(x_px: float) -> Point:
    """The place whose crop has this left side."""
    return Point((x_px + CROP.width / 2) / FRAME.width, 0.5)


@pytest.mark.parametrize(
    ("first", "end", "frames"),
    [
        (0, 31, [0, 15, 30]),
        (0, 32, [0, 15, 30, 31]),
        (10, 11, [10]),
        (10, 12, [10, 11]),
        (7, 22, [7, 21]),
    ],
)
def test_keyframes_are_every_15th_and_the_last(first: int, end: int, frames: list[int]) -> None:
    assert keyframes(first, end) == frames


@pytest.mark.parametrize(
    ("spans", "segments", "faults"),
    [
        ([(10, 20)], [(10, 20)], {}),
        ([(90, 100)], [(90, 100)], {}),
        ([(90, 101)], [(90, 100)], {"segment cut at the end": 1}),
        ([(100, 120)], [], {"segment past the end": 1}),
        ([(10, 10), (20, 15)], [], {"zero-length segment": 2}),
        ([(-5, 5)], [(0, 5)], {}),
        ([(-5, -2), (-3, 0)], [], {"zero-length segment": 2}),
        ([(50, 60), (10, 20)], [(10, 20), (50, 60)], {}),
        ([(10, 20), (15, 30)], [(10, 30)], {}),
        ([(10, 20), (20, 30)], [(10, 30)], {}),
        ([(10, 40), (15, 30)], [(10, 40)], {}),
        (
            [(50, 60), (5, 5), (10, 20), (30, 40)],
            [(10, 20), (50, 60)],
            {"one segment too many": 1, "zero-length segment": 1},
        ),
        ([], [], {}),
    ],
)
def test_spans_of_frames_are_made_sound(
    spans: list[tuple[int, int]], segments: list[tuple[int, int]], faults: dict[str, int]
) -> None:
    found = frame_segments(spans, total=100, limit=2)
    assert found.segments == segments
    assert dict(found.faults) == faults


def test_corners_move_evenly_between_keyframes() -> None:
    found = boxes([10, 14], [left(100), left(102)], wrong=(), size=FRAME, ratio=TALL)
    # 100, 100.5, 101, 101.5, 102; halves up
    assert [box.x for box in found.values()] == [100, 101, 101, 102, 102]
    assert list(found) == [10, 11, 12, 13, 14]
    assert {(box.y, box.w) for box in found.values()} == {(0, 405)}


def test_boxes_stay_inside() -> None:
    found = boxes([0, 1], [Point(0, 0), Point(1, 1)], wrong=(), size=FRAME, ratio=TALL)
    assert list(found.values()) == [Box(0, 0, 405), Box(875, 0, 405)]
    low = boxes(
        [0, 1], [Point(0, 0), Point(1, 1)], wrong=(), size=Size(720, 1280), ratio=Size(16, 9)
    )
    assert list(low.values()) == [Box(0, 0, 720), Box(0, 875, 720)]


def test_no_place_at_all_is_the_centred_crop() -> None:
    found = boxes([0, 2], [None, None], wrong=(), size=Size(853, 479), ratio=TALL)
    assert found == dict.fromkeys(range(3), centred(Size(853, 479), ratio=TALL))


def test_a_keyframe_without_a_place_holds_the_last_good_one() -> None:
    assert held([at(0.1), None, None, at(0.9), None]) == [at(0.1)] * 3 + [at(0.9)] * 2
    assert held([None, at(0.1)]) == [Point(0.5, 0.5), at(0.1)]
    found = boxes([0, 2, 4], [left(100), None, left(200)], wrong=(), size=FRAME, ratio=TALL)
    assert [box.x for box in found.values()] == [100, 100, 100, 150, 200]


@pytest.mark.parametrize(
    ("xs", "wrong"),
    [
        ([0.5, 0.5, 0.9, 0.5, 0.5], {2}),
        ([0.5, 0.5, 0.9, 0.1, 0.5, 0.5], {2, 3}),
        ([0.9, 0.2, 0.2, 0.2], {0}),
        ([0.2, 0.2, 0.2, 0.9], {3}),
        # a cut, and a fast subject, are no slips
        ([0.2, 0.2, 0.2, 0.8, 0.8, 0.8], set()),
        ([0.0, 0.25, 0.5, 0.75, 1.0], set()),
        # within a fifth of the frame
        ([0.5, 0.5, 0.69, 0.5, 0.5], set()),
        # two that differ: nobody knows which is right
        ([0.1, 0.9], set()),
        ([0.5], set()),
        ([], set()),
    ],
)
def test_a_median_finds_slips(xs: list[float], wrong: set[int]) -> None:
    assert outliers([at(x) for x in xs], step_s=0.4) == wrong
    assert outliers([Point(0.5, x) for x in xs], step_s=0.4) == wrong


def test_between_rare_keyframes_a_subject_may_have_crossed_the_frame() -> None:
    there_and_back = [at(x) for x in (0.5, 0.5, 0.9, 0.5, 0.5)]
    assert outliers(there_and_back, step_s=0.79) == {2}
    assert outliers(there_and_back, step_s=0.81) == set()


def test_gaps_do_not_count_as_neighbours() -> None:
    assert outliers([at(0.5), None, at(0.5), at(0.9), None, at(0.5), at(0.5)], step_s=0.4) == {3}


def test_a_slip_is_passed_over_evenly() -> None:
    places = [left(x) for x in (100, 110, 800, 130, 140)]
    found = boxes([0, 1, 2, 3, 4], places, wrong={2}, size=FRAME, ratio=TALL)
    assert [box.x for box in found.values()] == [100, 110, 120, 130, 140]


def test_smoothing_bounds_every_step_around_a_jump() -> None:
    places = [left(x) for x in (100, 100, 100, 200, 200, 200)]
    found = boxes([0, 1, 2, 3, 4, 5], places, wrong=(), size=FRAME, ratio=TALL, smooth_px=20)
    # the highest path below: 100 100 100 120 140 160; the lowest above: 140 160 180 200 200 200
    assert [box.x for box in found.values()] == [120, 130, 140, 160, 170, 180]


@settings(deadline=None)
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=60), st.integers(1, 50))
def test_steps_are_bounded_and_nothing_leaves_the_range(path: list[int], step: int) -> None:
    smooth = bounded(np.array(path, np.int64), step=step)
    assert (np.abs(np.diff(smooth)) <= step).all()
    assert min(path) <= smooth.min() <= smooth.max() <= max(path)
    if (np.abs(np.diff(path)) <= step).all():
        assert smooth.tolist() == path


PLACES = st.one_of(st.none(), st.builds(Point, st.floats(0, 1), st.floats(0, 1)))


@settings(deadline=None)
@given(
    st.lists(PLACES, min_size=1, max_size=8),
    st.integers(1, 20),
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.tuples(st.integers(1, 21), st.integers(1, 21)),
    st.one_of(st.none(), st.integers(1, 9)),
)
def test_boxes_are_whole_inside_and_complete(
    places: list[Point | None],
    every: int,
    frame: tuple[int, int],
    ratio: tuple[int, int],
    smooth_px: int | None,
) -> None:
    frames = [7 + every * number for number in range(len(places))]
    size = Size(*frame)
    crop = crop_size(size, ratio=Size(*ratio))
    found = boxes(frames, places, wrong=(), size=size, ratio=Size(*ratio), smooth_px=smooth_px)
    assert list(found) == list(range(7, frames[-1] + 1))
    for box in found.values():
        assert [type(number) for number in box] == [int, int, int]
        assert 0 <= box.x <= size.width - crop.width
        assert 0 <= box.y <= size.height - crop.height
        assert box.w == crop.width
