"""Crop arithmetic of the re-framing task (SPEC A11): frame size, target ratio → boxes.

A box is `(x, y, w)` in integer pixels of the video as displayed; its height is not written down,
whoever scores takes `w * ratio_height / ratio_width`. Pure.
"""

from typing import NamedTuple


class Size(NamedTuple):
    """Width and height: pixels of a frame or a crop, or the parts of a ratio such as 9 and 16."""

    width: int
    height: int


class Box(NamedTuple):
    """A crop in pixels: left, top, width."""

    x: int
    y: int
    w: int

    def height(self, ratio: Size) -> float:
        """As whoever scores has it, in pixels."""
        return self.w * ratio.height / ratio.width


class Point(NamedTuple):
    """A place in a frame: 0 to 1 along each axis."""

    x: float
    y: float


MIDDLE = Point(0.5, 0.5)


def crop_size(frame: Size, *, ratio: Size) -> Size:
    """The largest crop of a ratio: as high as the frame where the frame is wider, else as wide."""
    if frame.width * ratio.height >= ratio.width * frame.height:
        width = min(round(frame.height * ratio.width / ratio.height), frame.width)
        return Size(max(1, width), frame.height)
    height = min(round(frame.width * ratio.height / ratio.width), frame.height)
    return Size(frame.width, max(1, height))


def centred(frame: Size, *, ratio: Size) -> Box:
    """The crop in the middle; halves are rounded to even, as Python does."""
    crop = crop_size(frame, ratio=ratio)
    x = round((frame.width - crop.width) / 2)
    y = round((frame.height - crop.height) / 2)
    return Box(x, y, crop.width)


def corner_around(centre: Point, *, frame: Size, crop: Size) -> tuple[float, float]:
    """Left and top, unrounded, of the crop around a point, moved into the frame."""
    left = centre.x * frame.width - crop.width / 2
    top = centre.y * frame.height - crop.height / 2
    return (
        min(max(left, 0.0), float(frame.width - crop.width)),
        min(max(top, 0.0), float(frame.height - crop.height)),
    )
