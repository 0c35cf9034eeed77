"""One picture of an answer: a video, a query and spans → frames over a time bar (PNG).

    first row   frames across the video, each above its own time on the bar
    time bar    one lane per candidate, the best on top
    second row  frames inside the best candidate, so that a short one is seen as well

Neighbours: `jobs.ground.command` and `jobs.reframe.show` decide what the lanes are;
`common.video.frames` decodes, so the sheet shows what a model could see. Text is set in DejaVu
Sans, which matplotlib brings along, or in an installed font that holds more of its characters.

Times are seconds since the first frame, sizes pixels.
"""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.answers.spans import Span, length_s, merge
from common.messages import Window
from common.video.frames import load_frames, sample_clip
from common.video.index import index_frames
from common.video.sampling import VideoSampling

COLUMNS = 8
WIDTH_PX, MARGIN_PX, GAP_PX = 1600, 44, 8
INNER_PX = WIDTH_PX - 2 * MARGIN_PX
CELL_PX = (INNER_PX - (COLUMNS - 1) * GAP_PX) // COLUMNS
MAX_FRAME_HEIGHT_PX = 240
LANE_PX = 50
"""Of a candidate: its label and, below it, its bar."""
BAR_PX = 14
AXIS_PX = 34
ZOOM_PX = 44
PAGE_PX = 12_000
"""Room for a query of some 3,000 words."""
SAMPLING = VideoSampling(factor=4, min_pixels=4096, max_pixels=65_536)
"""Only finds the clip; times and size of its frames are chosen here."""

PAPER, INK, MUTED, TRACK, TICK = "#ffffff", "#17202e", "#5b6678", "#e8ebf0", "#a9b2bf"
BEST, OTHER, OUTSIDE = "#d9480f", "#8ea3bf", "#b42318"
TINT = "#fdeee6"

Font = ImageFont.FreeTypeFont
Mark = Callable[[int, Image.Image], Image.Image]
"""Number of a frame and its picture, smaller than the frame → the picture to show."""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One candidate."""

    spans: tuple[Span, ...]
    label: str


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What stands on the sheet."""

    query: str
    answer: str
    """The best candidate in words, or why there is none."""
    notes: tuple[str, ...] = ()
    """Small print, one paragraph each."""
    lanes: tuple[Lane, ...] = ()
    """Candidates, the best first."""


@dataclass(frozen=True)
class _Moment:
    """What is on the screen at a time."""

    time_s: float
    picture: Image.Image


@dataclass(frozen=True)
class _Film:
    """What is shown of the video."""

    duration_s: float
    across: tuple[_Moment, ...]
    """The middles of equal parts of the video."""
    inside: tuple[_Moment, ...]
    """Of the best candidate; empty when it shows nothing of the video."""


def draw_sheet(
    video: str | os.PathLike[str],
    *,
    sheet: Sheet,
    window: Window | None = None,
    mark: Mark | None = None,
) -> Image.Image:
    """The sheet of a video, or of a window of it, as an RGB picture, `WIDTH_PX` wide.

    Args:
        video: the file.
        sheet: what stands on it.
        window: the part of the file that is the video; None: all of it.
        mark: draws on the pictures; None leaves them as they are.

    Raises:
        VideoError: the video cannot be read.
    """
    best = sheet.lanes[0].spans if sheet.lanes else ()
    film = _film(os.fspath(video), best=best, window=window, mark=mark)
    canvas = _Canvas()
    canvas.paragraph(f"\u201c{sheet.query}\u201d", size_px=32, colour=INK, bold=True)
    colour = BEST if sheet.lanes else OUTSIDE
    canvas.paragraph(sheet.answer, size_px=26, colour=colour, bold=True)
    for note in sheet.notes:
        canvas.paragraph(note, size_px=18, colour=MUTED)
    canvas.y += 16
    decimals = 1 if film.duration_s >= COLUMNS * 2 else 2
    canvas.row(film.across, best=best, decimals=decimals)
    canvas.bars(sheet.lanes, duration_s=film.duration_s, zoomed=bool(film.inside))
    if film.inside:
        canvas.row(film.inside, best=best, decimals=2)
    return canvas.finish()


def write_sheet(
    video: str | os.PathLike[str],
    *,
    sheet: Sheet,
    output: Path,
    window: Window | None = None,
    mark: Mark | None = None,
) -> None:
    """Draw the sheet into a PNG file, complete or not at all; makes its folder.

    Raises:
        VideoError: the video cannot be read.
        OSError: the file cannot be written.
    """
    picture = draw_sheet(video, sheet=sheet, window=window, mark=mark)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        picture.save(partial, "PNG")
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


def _film(video: str, *, best: Sequence[Span], window: Window | None, mark: Mark | None) -> _Film:
    """Decode what the two rows need in one pass."""
    clip = sample_clip(video, sampling=SAMPLING, window=window)
    index = index_frames(video)
    shares = (np.arange(COLUMNS) + 0.5) / COLUMNS
    across_s = (shares * clip.duration_s).tolist()
    inside_s = _inside(best, shares=shares.tolist(), duration_s=clip.duration_s)
    start_s = 0.0 if window is None else window[0]
    in_file_s = np.add(across_s + inside_s, start_s)
    shown = np.searchsorted(index.times_s, in_file_s, side="right") - 1
    scale = min(CELL_PX / index.width_px, MAX_FRAME_HEIGHT_PX / index.height_px)
    size = tuple(max(1, round(side * scale)) for side in (index.height_px, index.width_px))
    wanted, places = np.unique(shown, return_inverse=True)
    chosen = {"frame_indices": tuple(wanted.tolist()), "frame_hw": size}
    frames = load_frames(clip.model_copy(update=chosen))
    pictures = [Image.fromarray(frame) for frame in frames]
    if mark is not None:
        pictures = [mark(n, picture) for n, picture in zip(wanted.tolist(), pictures, strict=True)]
    moments = [
        _Moment(time_s, pictures[place])
        for time_s, place in zip(across_s + inside_s, places, strict=True)
    ]
    return _Film(clip.duration_s, tuple(moments[:COLUMNS]), tuple(moments[COLUMNS:]))


def _inside(spans: Sequence[Span], *, shares: Sequence[float], duration_s: float) -> list[float]:
    """Times at these shares of what the spans cover of the video; none if they cover nothing."""
    covered = merge([(max(0.0, start), min(end, duration_s)) for start, end in spans])
    times_s: list[float] = []
    before_s, total_s = 0.0, length_s(covered)
    for start, end in covered:
        places = [share * total_s - before_s for share in shares]
        times_s += [start + place for place in places if 0 <= place < end - start]
        before_s += end - start
    return times_s


class _Canvas:
    """A page that is filled from the top; `y` is where the next thing goes."""

    def __init__(self) -> None:
        self._page = Image.new("RGB", (WIDTH_PX, PAGE_PX), PAPER)
        self._draw = ImageDraw.Draw(self._page)
        self.y = MARGIN_PX

    def finish(self) -> Image.Image:
        """The page, cut below the last thing."""
        return self._page.crop((0, 0, WIDTH_PX, self.y + MARGIN_PX - 2 * GAP_PX))

    def paragraph(self, text: str, *, size_px: int, colour: str, bold: bool = False) -> None:
        """Text over the whole width, as many lines as it needs."""
        font = _font(text, size_px=size_px, bold=bold)
        for line in wrap(text, width_px=INNER_PX, measure=font.getlength):
            self._draw.text((MARGIN_PX, self.y), line, fill=colour, font=font)
            self.y += round(size_px * 1.35)
        self.y += 4

    def row(self, moments: Sequence[_Moment], *, best: Sequence[Span], decimals: int) -> None:
        """Frames with their times; those inside the best candidate are framed."""
        width, height = moments[0].picture.size
        for column, moment in enumerate(moments):
            is_best = any(start <= moment.time_s < end for start, end in best)
            middle = MARGIN_PX + column * (CELL_PX + GAP_PX) + CELL_PX // 2
            left = middle - width // 2
            self._page.paste(moment.picture, (left, self.y))
            if is_best:
                box = (left - 3, self.y - 3, left + width + 2, self.y + height + 2)
                self._draw.rectangle(box, outline=BEST, width=5)
            stamp = f"{moment.time_s:.{decimals}f} s"
            font = _font(stamp, size_px=17, bold=is_best)
            colour = BEST if is_best else MUTED
            self._draw.text((middle, self.y + height + 8), stamp, colour, font, anchor="mt")
        self.y += height + 40

    def bars(self, lanes: Sequence[Lane], *, duration_s: float, zoomed: bool) -> None:
        """One lane per candidate over an axis in seconds, opening onto the row below."""
        axis_y = self.y + LANE_PX * max(1, len(lanes)) + 4
        place = functools.partial(_place_px, duration_s=duration_s)
        if zoomed:
            self._zoom([place(time_s) for span in lanes[0].spans for time_s in span], axis_y=axis_y)
        font = _font("0 s", size_px=16)
        for tick_s in _ticks_s(duration_s):
            x = place(tick_s)
            self._draw.line((x, axis_y - 4, x, axis_y + 4), TICK)
            self._draw.text((x, axis_y + 8), f"{tick_s:g} s", MUTED, font, anchor="mt")
        for number, lane in enumerate(lanes or [Lane(spans=(), label="")]):
            y = self.y + number * LANE_PX
            self._lane(lane, y=y, colour=OTHER if number else BEST, duration_s=duration_s)
        self.y = axis_y + AXIS_PX + (ZOOM_PX if zoomed else 0)

    def _zoom(self, places_px: Sequence[int], *, axis_y: int) -> None:
        """A light band from the best candidate to both ends of the row below."""
        left, right, waist = min(places_px), max(places_px), axis_y + AXIS_PX - 4
        self._draw.rectangle((left, self.y, right, waist), TINT)
        bottom = axis_y + AXIS_PX + ZOOM_PX - GAP_PX
        corners = [(left, waist), (right, waist)]
        corners += [(WIDTH_PX - MARGIN_PX, bottom), (MARGIN_PX, bottom)]
        self._draw.polygon(corners, TINT)

    def _lane(self, lane: Lane, *, y: int, colour: str, duration_s: float) -> None:
        """A label over a bar on a track; a triangle shows that the bar goes on outside."""
        font = _font(lane.label, size_px=17, bold=colour == BEST)
        ink = BEST if colour == BEST else MUTED
        self._draw.text((MARGIN_PX, y + 4), lane.label, ink, font, anchor="lt")
        top, bottom = y + LANE_PX - BAR_PX - 6, y + LANE_PX - 6
        self._draw.rectangle((MARGIN_PX, top + 5, WIDTH_PX - MARGIN_PX, bottom - 5), TRACK)
        for start_s, end_s in lane.spans:
            left = _place_px(start_s, duration_s=duration_s)
            right = max(left + 3, _place_px(end_s, duration_s=duration_s))
            self._draw.rounded_rectangle((left, top, right, bottom), 3, colour)
            pixel_s = duration_s / INNER_PX
            if start_s <= -pixel_s:
                self._triangle(MARGIN_PX, top=top, towards=-1)
            if end_s >= duration_s + pixel_s:
                self._triangle(WIDTH_PX - MARGIN_PX, top=top, towards=1)

    def _triangle(self, x: int, *, top: int, towards: int) -> None:
        tip = (x + towards * MARGIN_PX // 2, top + BAR_PX // 2)
        self._draw.polygon([(x, top - 4), tip, (x, top + BAR_PX + 4)], OUTSIDE)


def wrap(text: str, *, width_px: float, measure: Callable[[str], float]) -> list[str]:
    """Lines no wider than `width_px`, broken at spaces, and inside a word that is wider itself.

    Args:
        text: any text; a newline in it counts as a space.
        width_px: the most `measure` may give for a line of more than one character.
        measure: width of a piece of text in pixels.
    """
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if measure(longer) <= width_px:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and measure(lines[-1] + character) > width_px:
                lines.append("")
            lines[-1] += character
    return lines


def _place_px(time_s: float, *, duration_s: float) -> int:
    """Where a time lies across the page; a time outside the video lies at its edge."""
    share = min(max(time_s / duration_s, 0.0), 1.0)
    return MARGIN_PX + round(share * INNER_PX)


def _ticks_s(duration_s: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    steps = [1, 2, 3, 5, 6, 10] if duration_s >= 10 else [1, 2, 5, 10]
    ticks = MaxNLocator(nbins=10, steps=steps).tick_values(0, duration_s)
    return [round(float(tick), 6) for tick in ticks if tick <= duration_s]


def _font(text: str, *, size_px: int, bold: bool = False) -> Font:
    """DejaVu Sans, or the installed font with most characters of a text that it cannot write."""
    import matplotlib as mpl

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    own = Path(mpl.get_data_path()) / "fonts" / "ttf" / name
    wanted = frozenset(map(ord, text)) - {ord("\n"), ord("\t")}
    path = str(own) if wanted <= _characters(str(own)) else _best_font(str(own), wanted)
    return ImageFont.truetype(path, size_px)


@functools.lru_cache(maxsize=256)
def _best_font(own: str, wanted: frozenset[int]) -> str:
    from matplotlib.font_manager import findSystemFonts

    return max([own, *sorted(findSystemFonts())], key=lambda path: len(wanted & _characters(path)))


@functools.lru_cache(maxsize=4096)
def _characters(path: str) -> frozenset[int]:
    """Code points of a font; none if it cannot be scaled, as some emoji fonts."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
    except RuntimeError:
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
