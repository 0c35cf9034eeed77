"""SPEC A11's arithmetic, by hand."""

import pytest

from jobs.reframe.crop import Box, Point, Size, centred, corner_around, crop_size

WIDE, TALL = Size(16, 9), Size(9, 16)


@pytest.mark.parametrize(
    ("frame", "ratio", "crop", "box"),
    [
        # 1080 * 9 / 16 = 607.5, to the even 608; (1920 - 608) / 2 = 656
        (Size(1920, 1080), TALL, Size(608, 1080), Box(656, 0, 608)),
        # 720 * 9 / 16 = 405; (1280 - 405) / 2 = 437.5, to the even 438
        (Size(1280, 720), TALL, Size(405, 720), Box(438, 0, 405)),
        (Size(1920, 1080), WIDE, Size(1920, 1080), Box(0, 0, 1920)),
        # a vertical source: 1080 * 9 / 16 = 607.5 again, now a height; (1920 - 608) / 2 = 656
        (Size(1080, 1920), WIDE, Size(1080, 608), Box(0, 656, 1080)),
        (Size(1080, 1920), TALL, Size(1080, 1920), Box(0, 0, 1080)),
        # narrower than 9:16: 1000 * 16 / 9 = 1777.78; (1920 - 1778) / 2 = 71
        (Size(1000, 1920), TALL, Size(1000, 1778), Box(0, 71, 1000)),
        # odd sizes: 479 * 9 / 16 = 269.4; (853 - 269) / 2 = 292
        (Size(853, 479), TALL, Size(269, 479), Box(292, 0, 269)),
        # 479 * 16 / 9 = 851.6, no wider than the frame; (853 - 852) / 2 = .5, to the even 0
        (Size(853, 479), WIDE, Size(852, 479), Box(0, 0, 852)),
        # at least a pixel
        (Size(1, 3), Size(100, 1), Size(1, 1), Box(0, 1, 1)),
        (Size(3, 1), Size(1, 100), Size(1, 1), Box(1, 0, 1)),
    ],
)
def test_the_largest_crop_of_a_ratio_in_the_middle(
    frame: Size, ratio: Size, crop: Size, box: Box
) -> None:
    assert crop_size(frame, ratio=ratio) == crop
    assert centred(frame, ratio=ratio) == box


def test_a_crop_around_a_point_stays_inside() -> None:
    frame, crop = Size(1280, 720), Size(405, 720)
    assert corner_around(Point(0.5, 0.5), frame=frame, crop=crop) == (437.5, 0.0)
    assert corner_around(Point(0.0, 0.9), frame=frame, crop=crop) == (0.0, 0.0)
    assert corner_around(Point(1.0, 0.0), frame=frame, crop=crop) == (875.0, 0.0)
