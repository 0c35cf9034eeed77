"""`tempsamp reframe check`: is a submission whole and sound? Violations, each with its remedy.

    submission + test_index.json (+ headers of videos) -> [Violation, …] -> list, exit code

What anybody's program wrote is read; nothing about it is assumed. No evaluator is published, so the
bounds are those that every evaluator needs: boxes inside the frame, frames that exist.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard

import typer

from common.errors import ConfigError, VideoError
from jobs.reframe.center import IndexFile
from jobs.reframe.crop import Box, Size, crop_size
from jobs.reframe.index import Wanted, read_index
from jobs.reframe.submission import LINE_KEYS
from jobs.reframe.videos import MissingVideoError, check_folder, read_headers

if TYPE_CHECKING:
    from common.video.index import VideoHeader

    Headers = Mapping[str, VideoHeader | VideoError]

PREDICTION_KEYS = {"frame", "bboxes"}
SHOWN_CHARS = 60


@dataclass(frozen=True, kw_only=True)
class Violation:
    """Something that makes a submission unsound."""

    line: int | None
    """None: of the whole file."""
    video_id: str | None
    kind: str
    found: str
    """What stands there, at the first place."""
    remedy: str
    times: int = 1
    """Predictions of this line with the same fault."""

    def __str__(self) -> str:
        place = "" if self.line is None else f"line {self.line}: "
        name = "" if self.video_id is None else f"{self.video_id}: "
        more = f" ({self.times} predictions of this line)" if self.times > 1 else ""
        return f"{place}{name}{self.found}{more}: {self.remedy}"


def violations(
    text: str, *, index: Iterable[Wanted], headers: "Headers | None" = None
) -> Iterator[Violation]:
    """Everything wrong with a submission, line by line, then what is missing.

    Args:
        text: the file.
        index: what is wanted.
        headers: of the videos, for counts of frames and sizes; None leaves these unchecked.
    """
    wanted = {one.video_id: one for one in index}
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield from _of_line(number, line, wanted=wanted, seen=seen, headers=headers)
    for video_id in wanted:
        if video_id not in seen:
            yield Violation(
                line=None,
                video_id=video_id,
                kind="missing id",
                found="found no line",
                remedy="add one, with empty predictions if the video has no highlight",
            )


def _of_line(
    number: int,
    line: str,
    *,
    wanted: Mapping[str, Wanted],
    seen: dict[str, int],
    headers: "Headers | None",
) -> Iterator[Violation]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        yield _at(number, None, "no JSON", f"found {_shown(line)}", f"write JSON ({error})")
        return
    video_id = fields.get("video_id") if isinstance(fields, dict) else None
    if not isinstance(video_id, str):
        remedy = 'write an object with a string "video_id"'
        yield _at(number, None, "no id", f"found {_shown(fields)}", remedy)
        return
    if video_id not in wanted:
        remedy = "remove the line, or correct the id: it is not in --index"
        yield _at(number, video_id, "unknown id", f"found id {video_id!r}", remedy)
        return
    if video_id in seen:
        remedy = f"keep one line: it stands in line {seen[video_id]} too"
        yield _at(number, video_id, "repeated id", f"found id {video_id!r} again", remedy)
        return
    seen[video_id] = number
    yield from _of_fields(number, fields, one=wanted[video_id], headers=headers)


def _of_fields(
    number: int, fields: dict[str, Any], *, one: Wanted, headers: "Headers | None"
) -> Iterator[Violation]:
    video_id = one.video_id
    if set(fields) != set(LINE_KEYS):
        remedy = f"write exactly {', '.join(sorted(LINE_KEYS))}"
        yield _at(number, video_id, "keys", f"found keys {sorted(fields)}", remedy)
    if fields.get("targetRatioWH") != list(one.ratio):
        found = f"found targetRatioWH {_shown(fields.get('targetRatioWH'))}"
        yield _at(number, video_id, "ratio", found, f"write {list(one.ratio)}, as in --index")
    predictions = fields.get("predictions")
    if not isinstance(predictions, list):
        found = f"found predictions {_shown(predictions)}"
        yield _at(number, video_id, "predictions", found, "write a list")
        return
    header = None if headers is None else headers.get(video_id)
    if isinstance(header, VideoError):
        if predictions:
            remedy = "put the video into --video-dir"
            if not isinstance(header, MissingVideoError):
                remedy = "replace the file, or leave predictions empty"
            yield _at(number, video_id, "video", f"frames cannot be checked, {header}", remedy)
        header = None
    yield from _of_predictions(number, predictions, one=one, header=header)


def _of_predictions(
    number: int, predictions: list[Any], *, one: Wanted, header: "VideoHeader | None"
) -> Iterator[Violation]:
    """One violation a kind: a video may have thousands of frames."""
    first: dict[str, tuple[str, str]] = {}
    times: dict[str, int] = {}
    before: int | None = None
    for prediction in predictions:
        for kind, found, remedy in _of_prediction(prediction, one=one, header=header):
            first.setdefault(kind, (found, remedy))
            times[kind] = times.get(kind, 0) + 1
        frame = prediction.get("frame") if isinstance(prediction, dict) else None
        if not _is_whole(frame):
            continue
        if before is not None and frame <= before:
            first.setdefault(
                "order", (f"found frame {frame} after {before}", "sort frames, each once")
            )
            times["order"] = times.get("order", 0) + 1
        before = frame
    for kind, (found, remedy) in first.items():
        yield Violation(
            line=number,
            video_id=one.video_id,
            kind=kind,
            found=found,
            remedy=remedy,
            times=times[kind],
        )


Problem = tuple[str, str, str]
"""Kind, what was found, remedy."""


def _of_prediction(
    prediction: Any, *, one: Wanted, header: "VideoHeader | None"
) -> Iterator[Problem]:
    if not isinstance(prediction, dict) or set(prediction) != PREDICTION_KEYS:
        remedy = 'write {"frame": F, "bboxes": [X, Y, W]}'
        yield "prediction", f"found {_shown(prediction)}", remedy
        return
    frame, numbers = prediction["frame"], prediction["bboxes"]
    if not _is_whole(frame) or frame < 0:
        yield "frame", f"found frame {_shown(frame)}", "write a whole number from 0 on"
    elif header is not None and frame >= header.total_frames:
        remedy = f"leave it out: the video has frames 0 to {header.total_frames - 1}"
        yield "frame past the end", f"found frame {frame}", remedy
    if not isinstance(numbers, list) or len(numbers) != 3 or not all(map(_is_whole, numbers)):
        found = f"frame {_shown(frame)}: found bboxes {_shown(numbers)}"
        yield "box", found, "write three whole numbers: x, y and width in pixels"
        return
    box = Box(*numbers)
    for kind, remedy in _of_box(box, one=one, header=header):
        yield kind, f"frame {_shown(frame)}: found bboxes {list(box)}", remedy


def _of_box(box: Box, *, one: Wanted, header: "VideoHeader | None") -> Iterator[tuple[str, str]]:
    """A kind and a remedy for each bound that a box breaks."""
    if box.w < 1:
        yield "width", "write a width of at least 1"
    if min(box.x, box.y) < 0:
        yield "outside", "write x and y of at least 0"
    if header is None or box.w < 1:
        return
    frame = Size(header.width_px, header.height_px)
    largest = crop_size(frame, ratio=one.ratio)
    if box.w > largest.width:
        yield "too large", f"write a width of at most {largest.width}: {_fits(frame, one.ratio)}"
    elif box.x + box.w > frame.width:
        yield "outside", f"write x of at most {frame.width - box.w}: {_fits(frame, one.ratio)}"
    else:
        # The largest crop has the frame's height, though its rounded width may stand for more.
        height = largest.height if box.w == largest.width else box.height(one.ratio)
        if box.y + height > frame.height + 0.5:
            lowest = round(frame.height - height)
            yield "outside", f"write y of at most {lowest}: {_fits(frame, one.ratio)}"


def _fits(frame: Size, ratio: Size) -> str:
    return f"the frame has {frame.width}x{frame.height} px, the ratio is {ratio[0]}:{ratio[1]}"


def _at(number: int, video_id: str | None, kind: str, found: str, remedy: str) -> Violation:
    return Violation(line=number, video_id=video_id, kind=kind, found=found, remedy=remedy)


def _is_whole(number: Any) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool)


def _shown(found: Any) -> str:
    text = found if isinstance(found, str) else json.dumps(found)
    return repr(text[:SHOWN_CHARS]) + "\u2026" * (len(text) > SHOWN_CHARS)


def command(
    submission: Annotated[Path, typer.Argument(help="The submission (JSONL).")],
    index: IndexFile,
    video_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of VIDEO_ID.mp4 files, for counts of frames and sizes."),
    ] = None,
) -> None:
    """List what is wrong with a submission; exit code 1 if anything is."""
    from jobs.local import terminal

    wanted = read_index(index)
    headers = None
    if video_dir is not None:
        check_folder(video_dir)
        headers = read_headers(video_dir, [one.video_id for one in wanted])
    try:
        text = submission.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{submission}: {error}, wanted lines of a submission") from error
    console = terminal.console()
    found = list(violations(text, index=wanted, headers=headers))
    for one in found:
        console.print(f"{submission}: {one}", markup=False, soft_wrap=True)
    checked = "ids, ratios, boxes, order"
    checked += "" if headers is None else ", frames and bounds by the videos' headers"
    if found:
        console.print(f"{len(found)} violations ({checked})")
        raise typer.Exit(1)
    console.print(f"{submission}: sound: {len(wanted)} videos ({checked})", soft_wrap=True)
