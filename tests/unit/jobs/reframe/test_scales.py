"""In which unit points are: the rules, one by one."""

import pytest

from jobs.reframe.crop import Point, Size
from jobs.reframe.reading import Read
from jobs.reframe.scales import places

SENT, SOURCE = Size(1184, 672), Size(1920, 1080)


def read(x: float, y: float, size: tuple[float, float] | None = None) -> Read:
    return Read((x, y), size)


def placed(*replies: Read | None, sent: Size = SENT) -> list[Point | None]:
    return places(replies, sent=sent, source=SOURCE)


def test_a_thousand_is_the_right_edge_and_one_is_not() -> None:
    assert placed(read(1000, 0)) == [Point(1.0, 0.0)]
    assert placed(read(1, 1)) == [Point(0.001, 0.001)]
    assert placed(read(1, 0)) == [Point(0.001, 0.0)]
    assert placed(read(0, 0)) == [Point(0.0, 0.0)]


def test_shares_are_seen_by_what_lies_between_0_and_1() -> None:
    assert placed(read(0.5, 1)) == [Point(0.5, 1.0)]
    assert placed(read(1.0, 1.0, (1, 1))) == [Point(1.0, 1.0)]
    # each on its own: the next one is on the asked scale
    assert placed(read(0.5, 0.25), read(500, 250)) == [Point(0.5, 0.25), Point(0.5, 0.25)]
    # 1.5 is no share
    assert placed(read(1.5, 0.5)) == [Point(0.0015, 0.0005)]


@pytest.mark.parametrize(
    ("size", "place"),
    [
        ((1000, 1000), Point(0.592, 0.336)),
        ((1184, 672), Point(0.5, 0.5)),
        ((1190, 670), Point(0.5, 0.5)),
        ((1920, 1080), Point(592 / 1920, 336 / 1080)),
        # nobody's size: as if it were not there
        ((640, 480), Point(0.592, 0.336)),
    ],
)
def test_a_stated_size_is_the_scale_if_it_is_known(size: tuple[float, float], place: Point) -> None:
    assert placed(read(592, 336, size)) == [pytest.approx(place)]


def test_pixels_below_1000_are_known_by_the_rest_of_their_segment() -> None:
    """Alone, (592, 336) would be read on the scale of 0 to 1000."""
    assert placed(read(592, 336), read(1184, 672)) == [Point(0.5, 0.5), Point(1.0, 1.0)]
    assert placed(read(592, 336), read(592, 336, (1184, 672))) == [Point(0.5, 0.5)] * 2


def test_pixels_beyond_the_frame_that_was_sent_are_the_video_s() -> None:
    assert placed(read(960, 540), read(1920, 1080)) == [Point(0.5, 0.5), Point(1.0, 1.0)]


def test_one_slip_beyond_1000_among_many_is_no_scale_but_no_place_either() -> None:
    many = [read(500, 500)] * 5
    assert placed(*many, read(1100, 500)) == [*[Point(0.5, 0.5)] * 5, None]
    # one of four is a quarter
    found = placed(*many[:3], read(1100, 500))
    assert found[0] == pytest.approx(Point(500 / 1184, 500 / 672))


def test_stated_sizes_outvote_what_numbers_suggest() -> None:
    stated = [read(500, 500, (1000, 1000))] * 2
    assert placed(*stated, read(1100, 500)) == [*[Point(0.5, 0.5)] * 2, None]
    mixed = [*stated, read(592, 336, (1184, 672)), read(500, 250)]
    assert placed(*mixed) == [*[Point(0.5, 0.5)] * 3, Point(0.5, 0.25)]


def test_replies_without_a_point_have_no_place() -> None:
    assert placed(None, read(500, 500), None) == [None, Point(0.5, 0.5), None]
    assert placed() == []


def test_a_point_outside_every_scale_is_none() -> None:
    assert placed(read(5000, 10)) == [None]


def test_small_frames_cannot_be_told_from_the_scale_without_a_size() -> None:
    """A limit, written down: pixels of a frame of under 1000 are read as asked for."""
    assert placed(read(320, 180), sent=Size(640, 360)) == [Point(0.32, 0.18)]
