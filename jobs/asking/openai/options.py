"""`--openai URL --served-model NAME` of `eval`, `ground` and `reframe qwen` → `Endpoint`.

    options -> check_options() -> opened() -> Endpoint

One file, so that three commands say the same. The key comes from the environment alone
(`common.secrets`): an option would show it to everybody on the machine.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from common.errors import ConfigError
from common.secrets import OPENAI_KEY, secret
from common.video.sampling import VideoSampling
from jobs.asking.openai.endpoint import Endpoint, model_at
from jobs.asking.openai.media import MAX_PICTURES, FramesAs

OpenAIUrl = Annotated[
    str | None,
    typer.Option(
        "--openai",
        help="Base URL, with its /v1, of a server of OpenAI's chat completions; its key is "
        f"{OPENAI_KEY}.",
    ),
]
ServedModel = Annotated[
    str | None, typer.Option(help="With --openai: its name there. Default: the only one served.")
]


FramesAsOption = Annotated[
    FramesAs | None,
    typer.Option(
        help="With --openai: video (default) is an mp4 as video_url, sequence the same with exact "
        "times for vLLM, images are pictures after their times, for any server that sees."
    ),
]


def check_options(
    openai: str | None,
    *,
    served_model: str | None,
    frames_as: FramesAs | None = None,
    endpoint: Sequence[str] | None,
) -> FramesAs | None:
    """Refuse what has no effect, and two who would both answer.

    Returns:
        How frames go; None without --openai.

    Raises:
        ConfigError: names the option.
    """
    if openai is None and served_model is not None:
        raise ConfigError(f"--served-model: found {served_model!r} without --openai, wanted both")
    if openai is None and frames_as is not None:
        raise ConfigError(f"--frames-as: found {frames_as} without --openai, wanted both")
    if openai is not None and endpoint:
        raise ConfigError("--openai: found it with --endpoint, wanted one of them")
    return None if openai is None else frames_as or "video"


def opened(
    url: str,
    *,
    served_model: str | None,
    frames_as: FramesAs,
    wants_logprobs: bool = False,
    needs_logprobs: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Endpoint:
    """A server that answers and has the model.

    Raises:
        ConfigError: it does not, or the key cannot be read.
    """
    token = secret(OPENAI_KEY)
    return Endpoint(
        url,
        model=model_at(url, name=served_model, token=token),
        token=token,
        frames_as=frames_as,
        wants_logprobs=wants_logprobs,
        needs_logprobs=needs_logprobs,
        say=say,
    )


def fewer_as_pictures(sampling: VideoSampling, *, frames_as: FramesAs | None) -> VideoSampling:
    """At most `MAX_PICTURES` frames where each is a picture of the request."""
    if frames_as != "images":
        return sampling
    most = min(MAX_PICTURES, sampling.max_frames)
    return sampling.model_copy(update={"max_frames": most})
