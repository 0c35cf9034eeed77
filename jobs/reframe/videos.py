"""Videos of a folder by id: `<video_id>.mp4` → a header, or a film that is asked about.

place(folder, id) -> where it should be; find(folder, id) -> path, it is there
read_headers(folder, ids) -> {id: VideoHeader | VideoError}
open_film(path, sampling=…) -> Film, whole() and frame() are its clips
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError, VideoError
from common.messages import ClipRef
from common.video.names import as_on_disk, near_files
from common.video.sampling import VideoSampling, frame_size
from jobs.reframe.crop import Size

if TYPE_CHECKING:
    from common.video.index import VideoHeader
    from common.video.pyav_reader import VideoIndex

SUFFIX = ".mp4"
FAR_S = 1e9
"""Past the end of every video; larger times, which replies may hold, overflow."""
READERS = 8
"""Headers read at once: on a network mount each is a few waits for the server."""


class MissingVideoError(VideoError):
    """No file of that id."""


def check_folder(folder: Path) -> None:
    """Raises: ConfigError: there is no such folder."""
    if not folder.is_dir():
        raise ConfigError(f"--video-dir: found no folder {folder}, wanted the folder of the videos")


def place(folder: Path, video_id: str) -> Path:
    """Where the file of a video should be."""
    return as_on_disk(folder / f"{video_id}{SUFFIX}")


def find(folder: Path, video_id: str) -> Path:
    """The file of a video.

    Raises:
        MissingVideoError: it is not there.
    """
    path = place(folder, video_id)
    if not path.is_file():
        raise MissingVideoError(f"found no {path}{near_files(path)}")
    return path


def read_headers(folder: Path, video_ids: Iterable[str]) -> dict[str, "VideoHeader | VideoError"]:
    """Of each video, or why there is none; in the order of the ids."""
    from common.video.index import read_header

    def read(video_id: str) -> "VideoHeader | VideoError":
        try:
            path = find(folder, video_id)
            return read_header(path)
        except MissingVideoError as error:
            return error
        except (VideoError, OSError) as error:
            return VideoError(f"{folder / (video_id + SUFFIX)}: {error}")

    ids = list(video_ids)
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(ids, pool.map(read, ids), strict=True))


@dataclass(frozen=True, kw_only=True)
class Film:
    """A video whose frames have been listed."""

    whole: ClipRef
    """The frames that stand for it."""
    index: "VideoIndex"
    sampling: VideoSampling

    @property
    def size(self) -> Size:
        """In pixels, as displayed."""
        return Size(self.index.width_px, self.index.height_px)

    @property
    def total_frames(self) -> int:
        """Of the file."""
        return self.index.total_frames

    def frame(self, number: int) -> ClipRef:
        """One frame as a clip: twice, as models of frame pairs take pictures."""
        time_s = round(float(self.index.times_s[number]), 6)
        height_px, width_px = self.size.height, self.size.width
        return self.whole.model_copy(
            update={
                "frame_indices": (number, number),
                "frame_times_s": (time_s, time_s),
                "frame_hw": frame_size((height_px, width_px), frames=2, sampling=self.sampling),
            }
        )

    def frame_at(self, time_s: float) -> int:
        """The frame nearest to a time, `total_frames` or more past the end.

        At an even rate `round(time_s * fps)`, as SPEC A11 has it; else by the frames' own times.
        """
        import numpy as np

        index = self.index
        time_s = min(time_s, FAR_S)
        if not index.variable_frame_rate:
            return round(time_s * index.source_fps)
        times_s = index.times_s
        between_s = (times_s[:-1] + times_s[1:]) / 2
        end_s = float(times_s[-1]) + 0.5 / index.source_fps
        return int(np.searchsorted(np.append(between_s, end_s), time_s, side="right"))


def open_film(path: Path, *, sampling: VideoSampling) -> Film:
    """List the frames of a file and choose those that stand for it.

    Raises:
        VideoError: it is no video, or too short.
    """
    from common.video.frames import sample_clip
    from common.video.index import index_frames

    path = path.absolute()
    return Film(
        whole=sample_clip(path, sampling=sampling), index=index_frames(path), sampling=sampling
    )
