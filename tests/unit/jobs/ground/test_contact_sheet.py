"""`jobs.ground.contact_sheet`: what is drawn where, read back from the pixels."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageColor

from common.errors import VideoError
from common.messages import Window
from jobs.ground.contact_sheet import (
    BEST,
    CELL_PX,
    COLUMNS,
    GAP_PX,
    INNER_PX,
    MARGIN_PX,
    MAX_FRAME_HEIGHT_PX,
    OTHER,
    OUTSIDE,
    WIDTH_PX,
    Lane,
    Sheet,
    draw_sheet,
    wrap,
    write_sheet,
)
from tests.fixtures.clips import make_clip

DURATION_S = 16.0
MIDDLES_PX = [MARGIN_PX + CELL_PX // 2 + k * (CELL_PX + GAP_PX) for k in range(COLUMNS)]
PIXEL_S = DURATION_S / INNER_PX

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grows brighter from frame to frame; the row shows seconds 1, 3, 5, ... 15."""
    return make_clip(tmp_path_factory.mktemp("sheet") / "video.mp4", num_frames=128, fps=8.0)


@pytest.fixture(scope="module")
def frames_y(video: Path) -> int:
    """A line through the middle of the first row, the same in every sheet with a short query."""
    first_frame = drawn(video)[:, MIDDLES_PX[0]].mean(axis=1)
    return int(np.median(np.flatnonzero(first_frame < 100)))


def drawn(video: Path, *candidates: tuple[tuple[float, float], ...], query: str = "?") -> Pixels:
    lanes = tuple(Lane(spans=spans, label="candidate") for spans in candidates)
    return np.asarray(draw_sheet(video, sheet=Sheet(query=query, answer="answer", lanes=lanes)))


def places_of(pixels: Pixels, colour: str) -> npt.NDArray[np.bool_]:
    """[H, W] where a colour is."""
    return np.asarray((pixels == ImageColor.getrgb(colour)).all(axis=2))


def bar_of(pixels: Pixels, colour: str) -> tuple[float, float]:
    """Start and end in seconds of the candidate's bar: the fullest line of its colour."""
    places = places_of(pixels, colour)
    left, *_, right = np.flatnonzero(places[int(places.sum(axis=1).argmax())])
    return (left - MARGIN_PX) * PIXEL_S, (right - MARGIN_PX) * PIXEL_S


def framed(pixels: Pixels, y: int) -> set[int]:
    """Columns of the first row that have a border."""
    borders = np.flatnonzero(places_of(pixels, BEST)[y])
    return {int((x - MARGIN_PX + GAP_PX // 2) // (CELL_PX + GAP_PX)) for x in borders}


def test_the_first_row_runs_through_the_video(video: Path, frames_y: int) -> None:
    band = drawn(video)[frames_y - 30 : frames_y + 30].astype(float)
    brightness = [band[:, x - 60 : x + 60].mean() for x in MIDDLES_PX]
    # 32 grey of noise under a grey that goes from 0 to 190 in 16 s.
    np.testing.assert_allclose(brightness, 32 + 190 * np.arange(1, 16, 2) / 16, atol=8)


def test_the_first_row_runs_through_the_window(video: Path, frames_y: int) -> None:
    """A quarter of the video changes a quarter as much, from the level at its start on."""
    sheet = Sheet(query="?", answer="answer", lanes=())

    def brightness(window: Window | None) -> list[float]:
        pixels = np.asarray(draw_sheet(video, sheet=sheet, window=window))
        band = pixels[frames_y - 30 : frames_y + 30].astype(float)
        return [float(band[:, x - 60 : x + 60].mean()) for x in MIDDLES_PX]

    whole, part = brightness(None), brightness((8.0, 12.0))
    across = np.arange(len(whole)) + 0.5
    expected = np.interp(across / 4 + len(whole) / 2, across, whole)
    assert part == pytest.approx(expected.tolist(), abs=6)


@pytest.mark.parametrize(
    ("spans", "columns"),
    [
        (((4.5, 9.5),), {2, 3, 4}),
        (((0.0, 16.0),), set(range(8))),
        (((1.5, 2.5),), set()),
        (((0.5, 1.5), (14.0, 16.0)), {0, 7}),
        (((-4.0, 1.5),), {0}),
    ],
)
def test_frames_inside_the_best_candidate_are_framed_and_no_others(
    video: Path, frames_y: int, spans: tuple[tuple[float, float], ...], columns: set[int]
) -> None:
    assert framed(drawn(video, spans), frames_y) == columns


def test_only_the_best_candidate_frames_anything(video: Path, frames_y: int) -> None:
    assert framed(drawn(video, ((4.5, 5.5),), ((8.0, 16.0),)), frames_y) == {2}


def test_bars_lie_where_their_spans_are(video: Path, frames_y: int) -> None:
    below_the_row = drawn(video, ((4.5, 9.5),), ((2.0, 12.0),))[frames_y + 90 : frames_y + 220]
    assert bar_of(below_the_row, BEST) == pytest.approx((4.5, 9.5), abs=2 * PIXEL_S)
    assert bar_of(below_the_row, OTHER) == pytest.approx((2.0, 12.0), abs=2 * PIXEL_S)


@pytest.mark.parametrize(
    ("span", "sides"),
    [
        ((2.0, 16.0), set()),
        ((2.0, 30.0), {"right"}),
        ((-1.0, 3.0), {"left"}),
        ((-1.0, 99.0), {"left", "right"}),
        ((40.0, 50.0), {"right"}),
    ],
)
def test_a_bar_that_goes_on_outside_the_video_has_a_mark_there(
    video: Path, span: tuple[float, float], sides: set[str]
) -> None:
    _, columns = np.nonzero(places_of(drawn(video, (span,)), OUTSIDE))
    found = {"left" if x <= MARGIN_PX else "right" for x in columns}
    assert found == sides


def test_a_short_candidate_is_seen_in_a_row_of_its_own(video: Path, frames_y: int) -> None:
    pixels = drawn(video, ((2.0, 2.6),))
    assert framed(pixels, frames_y) == set()
    y = int(np.median(np.flatnonzero(places_of(pixels, BEST)[:, MARGIN_PX])))
    assert framed(pixels, y) == set(range(COLUMNS))
    brightness = pixels[y - 30 : y + 30, MIDDLES_PX[3] - 60 : MIDDLES_PX[3] + 60].mean()
    assert brightness == pytest.approx(32 + 190 * 2.3 / 16, abs=8)


@pytest.mark.parametrize("span", [(40.0, 50.0), (3.0, 3.0)])
def test_a_candidate_that_shows_nothing_has_no_second_row(
    video: Path, span: tuple[float, float]
) -> None:
    assert len(drawn(video, (span,))) == len(drawn(video))


def test_an_unreadable_answer_is_printed_in_the_colour_of_errors(video: Path) -> None:
    assert places_of(drawn(video), OUTSIDE).any()
    assert not places_of(drawn(video, ((1.0, 2.0),)), OUTSIDE).any()


def test_a_long_query_takes_more_lines_and_the_page_grows(video: Path) -> None:
    short, long = drawn(video), drawn(video, query="a word and another one " * 20)
    lines = round((len(long) - len(short)) / 43)
    assert lines >= 5
    assert long.shape[1] == WIDTH_PX


@pytest.mark.parametrize(
    "query",
    [
        "дверь открывается, η πόρτα ανοίγει",
        "门开了 ドアが開く \U0001f600",
        "a\nb\tc \x00 \u202eabc",
        '"' * 3,
    ],
)
def test_any_text_can_be_printed(video: Path, query: str) -> None:
    title = drawn(video, query=query)[: MARGIN_PX + 40]
    assert (title < 100).any()


def test_an_upright_video_fits_the_row(tmp_path: Path) -> None:
    upright = make_clip(tmp_path / "upright.mp4", num_frames=4, height_px=192, width_px=64)
    flat = make_clip(tmp_path / "flat.mp4", num_frames=4, height_px=64, width_px=192)
    higher_px = len(drawn(upright)) - len(drawn(flat))
    assert higher_px == MAX_FRAME_HEIGHT_PX - round(CELL_PX / 3)


def test_the_file_is_a_png_and_replaces_an_earlier_one(video: Path, tmp_path: Path) -> None:
    output = tmp_path / "sheet.png"
    output.write_bytes(b"an earlier sheet")
    write_sheet(video, sheet=Sheet(query="?", answer="answer"), output=output)
    with Image.open(output) as picture:
        assert (picture.format, picture.width) == ("PNG", WIDTH_PX)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_a_file_that_is_no_video_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no video here")
    with pytest.raises(VideoError, match=r"notes\.txt"):
        write_sheet(notes, sheet=Sheet(query="?", answer="?"), output=tmp_path / "sheet.png")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_lines_are_no_wider_than_the_page_and_lose_no_word() -> None:
    text = "a bb ccc  dddd\neeeee ffffff ggggggg"
    lines = wrap(text, width_px=11, measure=len)
    assert lines == ["a bb ccc", "dddd eeeee", "ffffff", "ggggggg"]


def test_a_word_wider_than_the_page_is_broken() -> None:
    assert wrap("ab cdefghij k", width_px=4, measure=len) == ["ab", "cdef", "ghij", "k"]
    assert wrap("开" * 5, width_px=2, measure=len) == ["开开", "开开", "开"]


def test_a_character_wider_than_the_page_stands_alone() -> None:
    assert wrap("abc", width_px=0.5, measure=len) == ["a", "b", "c"]
