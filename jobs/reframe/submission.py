"""A submission: one line a video, all wanted ids, boxes of the frames that are kept.

    {"video_id": …, "targetRatioWH": [w, h], "predictions": [{"frame": f, "bboxes": [x, y, w]}, …]}

Frames count from 0 and ascend; no predictions means no highlight. Writing is exact to the byte:
equal boxes give equal files. `jobs.reframe.check` reads what anybody wrote, this only sound lines.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.queue.disk import write_file
from jobs.reframe.crop import Box, Size
from jobs.reframe.index import Wanted, is_ratio

LINE_KEYS = ("video_id", "targetRatioWH", "predictions")


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """One line."""

    video_id: str
    ratio: Size
    boxes: Mapping[int, Box]
    """By frame, ascending."""


def write_submission(path: Path, *, lines: Iterable[Submitted]) -> None:
    """The whole file, or what was there before.

    Raises:
        OutputError: it cannot be written; names --out.
    """
    write_file(path, "".join(map(_line, lines)), knob="--out")


def read_submission(path: Path, *, knob: str) -> dict[str, Submitted]:
    """Lines by video id.

    Raises:
        ConfigError: the file cannot be read, or a line is not sound; names `knob` and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{knob}: {path}: {error}, wanted lines of a submission") from error
    found: dict[str, Submitted] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            one = _submitted(json.loads(line))
        except ValueError as error:
            raise ConfigError(
                f"{knob}: {path}:{number}: found {line[:80]!r}, wanted a line of a submission "
                f"({error}); `tempsamp reframe check` lists what is wrong"
            ) from error
        if one.video_id in found:
            raise ConfigError(
                f"{knob}: {path}:{number}: found {one.video_id!r} again, wanted an id once"
            )
        found[one.video_id] = one
    return found


def of(wanted: Wanted, *, boxes: Mapping[int, Box]) -> Submitted:
    """The line that answers an entry of the index."""
    return Submitted(video_id=wanted.video_id, ratio=wanted.ratio, boxes=boxes)


def _line(one: Submitted) -> str:
    boxes = [{"frame": frame, "bboxes": list(box)} for frame, box in one.boxes.items()]
    line = {
        "video_id": one.video_id,
        "targetRatioWH": list(one.ratio),
        "predictions": boxes,
    }
    return json.dumps(line, ensure_ascii=False) + "\n"


def _submitted(line: Any) -> Submitted:
    """Raises: ValueError: says in a word or two what is not sound."""
    if not isinstance(line, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - of what is read, as all the rest
    video_id, ratio, predictions = (line.get(name) for name in LINE_KEYS)
    if not isinstance(video_id, str) or not is_ratio(ratio) or not isinstance(predictions, list):
        raise ValueError("video_id, targetRatioWH or predictions")
    boxes: dict[int, Box] = {}
    for prediction in predictions:
        frame, box = _box(prediction)
        if boxes and frame <= next(reversed(boxes)):
            raise ValueError(f"frame {frame} does not ascend")
        boxes[frame] = box
    return Submitted(video_id=video_id, ratio=Size(*ratio), boxes=boxes)


def _box(prediction: Any) -> tuple[int, Box]:
    """Frame and box. Raises: ValueError: it is no prediction."""
    match prediction:
        case {"frame": frame, "bboxes": [x, y, w]}:
            if all(type(number) is int for number in (frame, x, y, w)) and w >= 1:
                return frame, Box(x, y, w)
    raise ValueError(f"prediction {prediction}")
