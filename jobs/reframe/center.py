"""`tempsamp reframe center`: every frame of every video, cropped in the middle (SPEC A11).

    test_index.json + headers of videos -> submission

The baseline to beat, and what a video gets for which nothing better is known.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import VideoError
from common.queue.disk import check_file
from jobs.reframe.crop import Box, Size, centred
from jobs.reframe.index import read_index
from jobs.reframe.submission import of, write_submission
from jobs.reframe.videos import check_folder, place, read_headers

if TYPE_CHECKING:
    from common.video.index import VideoHeader

IndexFile = Annotated[Path, typer.Option("--index", help="test_index.json of the task.")]
VideoDir = Annotated[Path, typer.Option("--video-dir", help="Folder of VIDEO_ID.mp4 files.")]


def every_frame(header: "VideoHeader", *, ratio: Size) -> dict[int, Box]:
    """The centred crop on each frame of a video."""
    box = centred(Size(header.width_px, header.height_px), ratio=ratio)
    return dict.fromkeys(range(header.total_frames), box)


def command(
    index: IndexFile,
    video_dir: VideoDir,
    out: Annotated[Path, typer.Option(help="Submission (JSONL).")],
) -> None:
    """Write the centred crop of every frame, from headers alone."""
    from jobs.local import terminal

    wanted = read_index(index)
    check_folder(video_dir)
    videos = [place(video_dir, one.video_id) for one in wanted]
    check_file(out, knob="--out", inputs=[index, *videos])
    headers = read_headers(video_dir, [one.video_id for one in wanted])
    lines = []
    unread: list[str] = []
    for one in wanted:
        header = headers[one.video_id]
        if isinstance(header, VideoError):
            unread.append(str(header))
            lines.append(of(one, boxes={}))
        else:
            lines.append(of(one, boxes=every_frame(header, ratio=one.ratio)))
    write_submission(out, lines=lines)
    console = terminal.console()
    frames = sum(len(line.boxes) for line in lines)
    console.print(f"{out}: {len(lines)} videos, {frames} frames", soft_wrap=True)
    for problem in unread:
        console.print(f"no frames: {problem}", markup=False, soft_wrap=True)
    if unread:
        console.print(f"{len(unread)} of {len(lines)} videos could not be read and have no frames")
        raise typer.Exit(1)
