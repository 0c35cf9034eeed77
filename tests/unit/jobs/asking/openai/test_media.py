"""How a clip travels: the frames that were sampled, at their times, and nothing that was not."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import av
import numpy as np
import pytest

from common.messages import ClipRef, Window
from common.video.frames import load_frames, processor_metadata, sample_clip
from common.video.sampling import VideoSampling
from jobs.asking.openai.media import MAX_PICTURES, Media, media_of, sampled_fps
from jobs.asking.openai.options import fewer_as_pictures
from tests.fixtures.clips import ffmpeg, make_clip
from tests.fixtures.servers.chat_server import fault_of, pictures_of, texts_of

WINDOW: Window = (1.0, 6.5)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipRef:
    """10 frames of a window of 8 s, unevenly spaced by rounding."""
    video = make_clip(tmp_path_factory.mktemp("media") / "a.mp4", num_frames=64)
    return sample_clip(video, sampling=VideoSampling(min_pixels=1024), window=WINDOW)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> ClipRef:
    """A variable rate: the second half is four times as fast."""
    video = tmp_path_factory.mktemp("media") / "b.mkv"
    speed = r"select=if(lt(t\,2)\,not(mod(n\,4))\,1)"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x64:r=8:d=4", "-vf", speed, "-fps_mode", "vfr", video)
    return sample_clip(video, sampling=VideoSampling(min_pixels=1024))


def body_of(media: Media) -> dict[str, Any]:
    """A request with it."""
    question = {"type": "text", "text": "when?"}
    messages = [{"role": "user", "content": [*media.parts, question]}]
    return {"model": "m", "messages": messages, **media.fields}


def video_of(media: Media) -> tuple[str, str]:
    """Kind and content of its data URL."""
    (part,) = media.parts
    kind, _, packed = part["video_url"]["url"].partition(";base64,")
    return kind, packed


def loading_of(media: Media) -> Mapping[str, Any]:
    found: Mapping[str, Any] = media.fields["media_io_kwargs"]["video"]
    return found


def test_pictures_stand_after_their_times_which_count_from_the_window(clip: ClipRef) -> None:
    media = media_of(clip, frames_as="images")
    body = body_of(media)
    assert fault_of(body) == ""
    assert media.fields == {}  # nothing that OpenAI does not publish
    assert texts_of(body)[:3] == ["<0.0 seconds>", "<0.6 seconds>", "<1.2 seconds>"]
    kinds = [part["type"] for part in media.parts]
    assert kinds == ["text", "image_url"] * len(clip.frame_indices)
    for found, wanted in zip(pictures_of(body), load_frames(clip), strict=True):
        assert np.abs(found.astype(int) - wanted).mean() < 12


def test_a_frame_twice_is_one_picture_without_a_time(clip: ClipRef) -> None:
    still = clip.model_copy(update={"frame_indices": (3, 3), "frame_times_s": (0.375, 0.375)})
    media = media_of(still, frames_as="images")
    assert [part["type"] for part in media.parts] == ["image_url"]
    assert sampled_fps(still) == 1
    assert fault_of(body_of(media_of(still, frames_as="video"))) == ""


def test_a_file_holds_exactly_the_sampled_frames_without_loss_at_their_rate(clip: ClipRef) -> None:
    media = media_of(clip, frames_as="video")
    assert fault_of(body_of(media)) == ""
    kind, packed = video_of(media)
    assert kind == "data:video/mp4"
    with av.open(io.BytesIO(base64.b64decode(packed))) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.average_rate is not None
        assert float(stream.average_rate) == pytest.approx(9 / 5.5)
    assert np.array_equal(frames, load_frames(clip))
    # All of it is kept, whatever the loader's own rate is, and none is sampled from it again.
    assert loading_of(media) == {"num_frames": -1, "fps": 30}
    assert media.fields["mm_processor_kwargs"]["do_sample_frames"] is False


def test_a_file_of_a_higher_rate_is_kept_whole_too(clip: ClipRef) -> None:
    fast = clip.model_copy(
        update={"frame_times_s": tuple(time_s / 40 for time_s in clip.frame_times_s)}
    )
    assert loading_of(media_of(fast, frames_as="video"))["fps"] == 66  # 9 in 5.5 / 40 s


def test_a_sequence_has_the_very_frames_and_times_that_a_replica_sees(clip: ClipRef) -> None:
    media = media_of(clip, frames_as="sequence")
    body = body_of(media)
    assert fault_of(body) == ""
    assert video_of(media)[0] == "data:video/jpeg"  # as vLLM calls pictures of any kind
    assert np.array_equal(pictures_of(body), load_frames(clip))
    told, wanted = loading_of(media), processor_metadata(clip)
    assert told["frames_indices"] == wanted["frames_indices"]
    assert {name: told[name] for name in ("fps", "total_num_frames", "duration")} == {
        name: wanted[name] for name in ("fps", "total_num_frames", "duration")
    }


def test_uneven_times_are_whole_places_on_a_finer_grid(uneven: ClipRef) -> None:
    told = loading_of(media_of(uneven, frames_as="sequence"))
    assert all(isinstance(place, int) for place in told["frames_indices"])
    times_s = [place / told["fps"] for place in told["frames_indices"]]
    assert times_s == pytest.approx(uneven.frame_times_s, abs=0.001)
    assert max(told["frames_indices"]) <= told["total_num_frames"]


def test_as_pictures_a_clip_has_few_frames() -> None:
    sampling = VideoSampling()
    assert fewer_as_pictures(sampling, frames_as="images").max_frames == MAX_PICTURES
    assert fewer_as_pictures(sampling, frames_as="video") == sampling
    assert fewer_as_pictures(sampling, frames_as=None) == sampling
    few = VideoSampling(max_frames=8)
    assert fewer_as_pictures(few, frames_as="images") == few
