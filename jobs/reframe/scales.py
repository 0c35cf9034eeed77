"""In which unit do replies give their points? A segment's points → places of 0 to 1. Pure.

The prompt asks for a scale of 0 to 1000 and for the size of the frame on the scale that was used.
Models that were trained on pixels give pixels all the same, and 700 may be either. In order:

1. A reply that states a size that we know (1000 x 1000, 1 x 1, that of the frame as it was sent or
   of the video) is read on that scale.
2. A point with both coordinates up to 1, one of them between 0 and 1, is a share of the frame.
   A whole 1 is not: on a scale of 0 to 1000 it lies at the left edge, not at the right.
3. The rest of a segment is read alike: in pixels if more of its replies state a size in pixels than
   one of 1000, or, where none states a size, if `PIXEL_SHARE` of them or more exceed 1000; else on
   the scale of 0 to 1000.

A point outside its scale is none.
"""

from collections.abc import Sequence

from jobs.reframe.crop import Point, Size
from jobs.reframe.reading import Pair, Read

PERMILLE = (1000.0, 1000.0)
SHARE = (1.0, 1.0)
SAME_SIZE = 0.02
"""A stated size may be off by so much of it."""
PIXEL_SHARE = 0.25
"""Points beyond 1000 that are rarer are slips."""


def places(replies: Sequence[Read | None], *, sent: Size, source: Size) -> list[Point | None]:
    """Where the points of one segment lie in the frame; None for a reply without a usable one.

    Args:
        replies: of the segment's keyframes.
        sent: size in pixels of the frames that were asked about.
        source: of the video's.
    """
    stated = [None if one is None else _own_scale(one, sent=sent, source=source) for one in replies]
    common = _common_scale(replies, stated, sent=sent, source=source)
    return [
        None if one is None else _place(one.point, scale or common)
        for one, scale in zip(replies, stated, strict=True)
    ]


def _own_scale(read: Read, *, sent: Size, source: Size) -> Pair | None:
    """What a reply alone tells."""
    if read.size is not None:
        for known in (PERMILLE, SHARE, _float(sent), _float(source)):
            if all(abs(a - b) <= SAME_SIZE * b for a, b in zip(read.size, known, strict=True)):
                return known
    is_share = max(read.point) <= 1 and any(0 < number < 1 for number in read.point)
    return SHARE if is_share else None


def _common_scale(
    replies: Sequence[Read | None],
    stated: Sequence[Pair | None],
    *,
    sent: Size,
    source: Size,
) -> Pair:
    """Of the replies that do not tell by themselves."""
    plain = [
        one.point
        for one, scale in zip(replies, stated, strict=True)
        if one is not None and scale is None
    ]
    in_pixels = sum(scale not in (None, SHARE, PERMILLE) for scale in stated)
    in_permille = sum(scale == PERMILLE for scale in stated)
    beyond = sum(max(point) > max(PERMILLE) for point in plain)
    if in_pixels + in_permille:
        is_pixels = in_pixels > in_permille
    else:
        is_pixels = beyond > 0 and beyond >= PIXEL_SHARE * len(plain)
    if not is_pixels:
        return PERMILLE
    # A model knows the frame that it was sent; larger numbers are of somebody who knows the video.
    fits = all(x <= sent.width and y <= sent.height for x, y in plain)
    return _float(sent if fits else source)


def _place(point: Pair, scale: Pair) -> Point | None:
    x, y = point[0] / scale[0], point[1] / scale[1]
    return Point(x, y) if max(x, y) <= 1 else None


def _float(size: Size) -> Pair:
    return float(size.width), float(size.height)
