"""Videos of a folder by id, and what their headers say: `<video_id>.mp4` → size, frames.

find(folder, id) -> path; read_headers(folder, ids) -> {id: VideoHeader | VideoError}
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError, VideoError

if TYPE_CHECKING:
    from common.video.pyav_reader import VideoHeader

SUFFIX = ".mp4"
READERS = 8
"""Headers read at once: on a network mount each is a few waits for the server."""


class MissingVideoError(VideoError):
    """No file of that id."""


def check_folder(folder: Path) -> None:
    """Raises: ConfigError: there is no such folder."""
    if not folder.is_dir():
        raise ConfigError(f"--video-dir: found no folder {folder}, wanted the folder of the videos")


def find(folder: Path, video_id: str) -> Path:
    """The file of a video.

    Raises:
        MissingVideoError: it is not there.
    """
    path = folder / f"{video_id}{SUFFIX}"
    if not path.is_file():
        raise MissingVideoError(f"found no {path}")
    return path


def read_headers(folder: Path, video_ids: Iterable[str]) -> dict[str, "VideoHeader | VideoError"]:
    """Of each video, or why there is none; in the order of the ids."""
    from common.video.pyav_reader import read_header

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
