"""Strips of frames: those of the window that was asked about."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.messages import Window
from jobs.evaluation.showing.timelines import NUM_FRAMES, frame_strip
from tests.fixtures.clips import make_clip


def mean_greys(strip: str) -> list[float]:
    """Mean level of each frame of a strip."""
    picture = Image.open(io.BytesIO(base64.b64decode(strip.partition(",")[2])))
    frames = np.array_split(np.asarray(picture.convert("L"), np.float64), NUM_FRAMES, axis=1)
    return [float(frame.mean()) for frame in frames]


@pytest.mark.parametrize("window", [None, (1.0, 3.0), (2.0, None)])
def test_strip_shows_the_middles_of_equal_parts_of_the_window(
    tmp_path: Path, window: Window | None
) -> None:
    """The clip gets lighter frame by frame, by 190 levels in 6 s."""
    video = make_clip(tmp_path / "a.mp4", num_frames=48)
    strip = frame_strip(video, window=window)
    assert strip is not None
    start_s, end_s = (0.0, None) if window is None else window
    length_s = (6.0 if end_s is None else end_s) - start_s
    whole = frame_strip(video)
    assert whole is not None
    level_a_second = 190 / 6
    darkest = mean_greys(whole)[0] - 0.5 * 6 / NUM_FRAMES * level_a_second
    wanted = [
        darkest + (start_s + (k + 0.5) / NUM_FRAMES * length_s) * level_a_second
        for k in range(NUM_FRAMES)
    ]
    assert mean_greys(strip) == pytest.approx(wanted, abs=8)


def test_window_that_the_file_does_not_have_has_no_strip(tmp_path: Path) -> None:
    video = make_clip(tmp_path / "a.mp4", num_frames=16)
    assert frame_strip(video, window=(39.0, 84.7)) is None
