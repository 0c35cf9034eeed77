"""`tempsamp reframe show`: what a submission does to one video, as a clip and a contact sheet.

    submission + video -> clip.mp4 (crop on the original | re-framed), clip.png (across its time)

Kept frames alone, one after the other, at the video's own rate. Neighbours:
`common.video.pyav_reader` decodes, `jobs.ground.contact_sheet` sets the sheet.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.answers.spans import Span
from common.errors import ConfigError, VideoError
from common.queue.disk import check_file, writing
from jobs.reframe.center import VideoDir
from jobs.reframe.crop import Box, Size
from jobs.reframe.submission import Submitted, read_submission
from jobs.reframe.videos import check_folder, find, place

if TYPE_CHECKING:
    from PIL import Image

    from common.video.pyav_reader import VideoIndex

MAX_HEIGHT_PX = 720
GAP_PX = 8
PAPER, LINE = (255, 255, 255), (217, 72, 15)
DIMMED = 0.35
"""Brightness of what the crop leaves out."""
ENCODER = {"crf": "20", "preset": "veryfast"}


def segments_s(boxes: Mapping[int, Box], *, index: "VideoIndex") -> list[Span]:
    """Start and end in seconds of each row of kept frames."""
    times_s = [*index.times_s.tolist(), float(index.times_s[-1]) + 1 / index.source_fps]
    rows: list[list[int]] = []
    for frame in boxes:
        if rows and frame == rows[-1][-1] + 1:
            rows[-1].append(frame)
        else:
            rows.append([frame])
    return [(times_s[row[0]], times_s[row[-1] + 1]) for row in rows]


def marked(picture: "Image.Image", *, box: Box, ratio: Size, frame: Size) -> "Image.Image":
    """A picture of the whole frame, of any size, with the crop drawn and the rest dimmed."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = _corners(box, ratio=ratio, frame=frame, shown=picture.size)
    dim = Image.blend(Image.new("RGB", picture.size), picture, DIMMED)
    dim.paste(picture.crop((left, top, right, bottom)), (left, top))
    ImageDraw.Draw(dim).rectangle((left, top, right - 1, bottom - 1), outline=LINE, width=2)
    return dim


def side_by_side(picture: "Image.Image", *, box: Box, ratio: Size, frame: Size) -> "Image.Image":
    """The crop on the original, and beside it the re-framed picture at the same height."""
    from PIL import Image

    height = _even(min(picture.height, MAX_HEIGHT_PX))
    cropped = picture.crop(_corners(box, ratio=ratio, frame=frame, shown=picture.size))
    whole = marked(picture, box=box, ratio=ratio, frame=frame)
    whole = whole.resize((_even(picture.width * height / picture.height), height))
    framed = cropped.resize((_even(height * ratio.width / ratio.height), height))
    page = Image.new("RGB", (whole.width + GAP_PX + framed.width, height), PAPER)
    page.paste(whole, (0, 0))
    page.paste(framed, (whole.width + GAP_PX, 0))
    return page


def write_clip(
    video: Path, *, boxes: Mapping[int, Box], ratio: Size, index: "VideoIndex", output: Path
) -> None:
    """Encode the kept frames, complete or not at all.

    Raises:
        VideoError: the video cannot be decoded.
    """
    import av

    partial = output.with_name(f".{output.stem}.{os.getpid()}.partial{output.suffix}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(partial), "w") as container:
            rate = Fraction(index.source_fps).limit_denominator(100_000)
            stream: Any = None
            for page in _pages(video, boxes=boxes, ratio=ratio, index=index):
                if stream is None:
                    stream = container.add_stream("libx264", rate=rate)
                    stream.width, stream.height, stream.pix_fmt = *page.size, "yuv420p"
                    stream.options = ENCODER
                container.mux(stream.encode(av.VideoFrame.from_image(page)))
            container.mux(stream.encode())
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


def _pages(
    video: Path, *, boxes: Mapping[int, Box], ratio: Size, index: "VideoIndex"
) -> "Iterator[Image.Image]":
    from PIL import Image

    from common.video.pyav_reader import stream_frames

    frame = Size(index.width_px, index.height_px)
    for number, pixels in stream_frames(video, index=index, indices=list(boxes)):
        picture = Image.fromarray(pixels)
        yield side_by_side(picture, box=boxes[number], ratio=ratio, frame=frame)


def _corners(
    box: Box, *, ratio: Size, frame: Size, shown: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop in a picture of the frame; at least a pixel."""
    across, down = shown[0] / frame.width, shown[1] / frame.height
    left, top = min(round(box.x * across), shown[0] - 1), min(round(box.y * down), shown[1] - 1)
    right = max(left + 1, min(shown[0], round((box.x + box.w) * across)))
    bottom = max(top + 1, min(shown[1], round((box.y + box.height(ratio)) * down)))
    return left, top, right, bottom


def _even(length: float) -> int:
    """Chroma has half the sides."""
    return max(2, round(length / 2) * 2)


def command(
    submission: Annotated[Path, typer.Argument(help="The submission (JSONL).")],
    video_dir: VideoDir,
    video_id: Annotated[str, typer.Option("--id", help="Which video.")],
    out: Annotated[Path, typer.Option(help="Clip (mp4, mov, mkv); the sheet is a .png beside it.")],
) -> None:
    """Show the crop on the original beside the re-framed video, and a contact sheet."""
    from common.video.index import index_frames
    from jobs.ground.contact_sheet import Lane, Sheet, write_sheet
    from jobs.local import terminal

    one = _line(submission, video_id)
    check_folder(video_dir)
    if out.suffix.lower() not in (".mp4", ".mov", ".mkv"):
        raise ConfigError(f"--out: found suffix {out.suffix!r}, wanted .mp4, .mov or .mkv")
    inputs = [submission, place(video_dir, video_id)]
    for path in (out, out.with_suffix(".png")):
        check_file(path, knob="--out", inputs=inputs)
    video = find(video_dir, video_id)
    with _named(video):
        index = index_frames(video)
    if (last := max(one.boxes)) >= index.total_frames:
        raise VideoError(
            f"{video}: found frame {last} in {submission}, wanted at most {index.total_frames - 1}"
        )
    with writing(out, knob="--out"), _named(video):
        write_clip(video, boxes=one.boxes, ratio=one.ratio, index=index, output=out)
    spans = segments_s(one.boxes, index=index)
    frame = Size(index.width_px, index.height_px)

    def mark(number: int, picture: "Image.Image") -> "Image.Image":
        box = one.boxes.get(number)
        return picture if box is None else marked(picture, box=box, ratio=one.ratio, frame=frame)

    words = f"{len(one.boxes)} of {index.total_frames} frames, {one.ratio[0]}:{one.ratio[1]}"
    lane = Lane(spans=tuple(spans), label=f"{len(spans)} highlight" + "s" * (len(spans) > 1))
    sheet = Sheet(query=video_id, answer=words, lanes=(lane,))
    with writing(out.with_suffix(".png"), knob="--out", kept=f"{out} is written"):
        write_sheet(video, sheet=sheet, output=out.with_suffix(".png"), mark=mark)
    console = terminal.console()
    console.print(f"{video_id}: {words}", markup=False)
    console.print(f"clip: {out}\nsheet: {out.with_suffix('.png')}", markup=False, soft_wrap=True)


@contextlib.contextmanager
def _named(video: Path) -> Iterator[None]:
    """What is wrong inside is said of this file."""
    try:
        yield
    except VideoError as error:
        raise VideoError(f"{video}: {error}") from error


def _line(submission: Path, video_id: str) -> Submitted:
    lines = read_submission(submission, knob="submission")
    if video_id not in lines:
        raise ConfigError(
            f"--id: found {video_id!r}, wanted one of the {len(lines)} ids of {submission}"
        )
    if not lines[video_id].boxes:
        raise ConfigError(f"--id: found no frames of {video_id!r} in {submission}, wanted some")
    return lines[video_id]
