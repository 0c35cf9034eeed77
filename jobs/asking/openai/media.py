"""Frames of a clip → parts of a chat message: `media_of(clip, frames_as) -> Media`.

    images    each frame a JPEG picture after its time in words; any server that sees
    video     one mp4 of exactly these frames, lossless, at their own rate; servers of `video_url`
    sequence  one video of exactly these frames and times, as vLLM takes it

A server that is sent a file would sample it anew, so an mp4 holds what was sampled and no more, and
`Media.fields` tell vLLM to keep all of it. Its times are evenly spaced, as vLLM reads one rate from
a file; those of a sequence are the clip's own. Neighbour: `jobs.asking.openai.endpoint`.
"""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from common.messages import ClipRef

if TYPE_CHECKING:
    from common.video.frames import Frames

FramesAs = Literal["video", "sequence", "images"]
MAX_PICTURES = 64
"""Frames of a clip sent as images, where a run file does not say more: each is a picture of the
request, and servers bound their number."""
JPEG_QUALITY = 90
ALL_FRAMES_FPS = 30
"""vLLM's loaders keep every frame of a file whose rate is lower, Qwen3-VL's up to 768 of them."""
RESIZES = "its processor may resize frames"
WITHOUT: Mapping[str, str] = MappingProxyType(
    {
        "chat_template_kwargs": "a model that thinks unasked will",
        "top_k": "its own top-k applies to samples, if it has one",
        "repetition_penalty": "its own repetition penalty applies, if it has one",
    }
)
FINEST = 1000
"""Parts of a source frame that a time is rounded to where frames are unevenly spaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """What stands for a clip in a request."""

    parts: Sequence[Mapping[str, Any]]
    """In its place in the message."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of the request itself; none of them is OpenAI's, and most servers ignore what they do not
    know."""
    without: Mapping[str, str] = field(default_factory=dict)
    """Fields that may be left out where a server refuses them → what is lost by it; empty: nothing
    worth a word."""


def media_of(clip: ClipRef, *, frames_as: FramesAs) -> Media:
    """Decode a clip and pack it.

    Raises:
        VideoError: it cannot be decoded.
    """
    from common.video.frames import load_frames

    frames = load_frames(clip)
    if frames_as == "images":
        return Media(parts=tuple(_pictures(clip, frames)))
    if frames_as == "video":
        fps = sampled_fps(clip)
        return Media(
            parts=[_video("video/mp4", base64.b64encode(_mp4(frames, fps=fps)).decode())],
            fields=_fields(
                {"num_frames": -1, "fps": max(ALL_FRAMES_FPS, math.ceil(fps))},
                # Older processors take the rate from here, new ones from the file: the same one.
                {"fps": float(fps), "do_sample_frames": False},
            ),
            without={
                "mm_processor_kwargs": f"{RESIZES} and sample frames anew",
                "media_io_kwargs": "it may sample frames anew",
                **WITHOUT,
            },
        )
    # Called JPEG whatever it is: pictures are known by their content, and PNG loses nothing.
    packed = ",".join(_encoded(pixels, "PNG") for pixels in frames)
    return Media(
        parts=[_video("video/jpeg", packed)],
        fields=_fields(_exact_times(clip), {}),
        without={"mm_processor_kwargs": RESIZES, **WITHOUT},
    )


def sampled_fps(clip: ClipRef) -> Fraction:
    """Mean frames per second of the frames that stand for a clip; 1 if they are one frame."""
    first_s, last_s = clip.frame_times_s[0], clip.frame_times_s[-1]
    if last_s <= first_s:
        return Fraction(1)
    spacings = len(clip.frame_times_s) - 1
    return Fraction(spacings / (last_s - first_s)).limit_denominator(10_000)


def _pictures(clip: ClipRef, frames: "Frames") -> Iterator[dict[str, Any]]:
    """Of one frame twice, which is how a still picture is asked about, one and without a time."""
    is_picture = len(set(clip.frame_indices)) == 1
    shown = list(zip(clip.frame_times_s, frames, strict=True))[: 1 if is_picture else None]
    for time_s, pixels in shown:
        if not is_picture:
            yield {"type": "text", "text": f"<{time_s:.1f} seconds>"}
        packed = _encoded(pixels, "JPEG", quality=JPEG_QUALITY)
        yield {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{packed}"}}


def _encoded(pixels: Any, format_: str, **options: Any) -> str:
    from PIL import Image

    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, format_, **options)
    return base64.b64encode(packed.getvalue()).decode()


def _video(kind: str, packed: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": f"data:{kind};base64,{packed}"}}


def _fields(loading: Mapping[str, Any], processing: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's fields: how a video is loaded and processed. Frames have their size; a template that
    knows thoughts apart writes an empty one, as replicas do (SPEC A5); and what a checkpoint's
    generation_config.json says of sampling, such as Qwen2.5-VL's penalty of 1.05, does not hold."""
    return {
        "media_io_kwargs": {"video": dict(loading)},
        "mm_processor_kwargs": {"do_resize": False, **processing},
        "chat_template_kwargs": {"enable_thinking": False},
        "top_k": -1,
        "repetition_penalty": 1.0,
    }


def _exact_times(clip: ClipRef) -> dict[str, Any]:
    """What a replica's engine is told of a clip, in whole numbers: unevenly spaced frames have
    fractional places, which become places on a finer grid."""
    from common.video.frames import processor_metadata

    told = processor_metadata(clip)
    places = told["frames_indices"]
    finer = 1 if all(place == int(place) for place in places) else FINEST
    return {
        "num_frames": -1,
        "fps": told["fps"] * finer,
        "frames_indices": [round(place * finer) for place in places],
        "total_num_frames": told["total_num_frames"] * finer,
        "duration": told["duration"],
    }


def _mp4(frames: "Frames", *, fps: Fraction) -> bytes:
    """H.264 in RGB without loss and without frames out of order."""
    import av

    packed = io.BytesIO()
    height, width = frames.shape[1:3]
    with av.open(packed, "w", format="mp4") as container:
        stream = container.add_stream("libx264rgb", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "rgb24"
        stream.options = {"qp": "0", "preset": "veryfast", "bf": "0"}
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return packed.getvalue()
