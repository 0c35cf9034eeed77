"""Questions to a server of OpenAI's chat completions: `GenerateRequest` → the text of its reply.

Such a server sees no videos of ours, so frames are decoded here and travel as JPEG pictures, each
after its time; a clip of one frame twice is one picture without a time. It gives no token ids and
no log-probabilities, hence no `GenerateResponse`. Errors are those of replicas, so that
`jobs.asking.replicas.Fleet` retries, waits and gives up alike.
"""

import asyncio
import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
from pydantic import BaseModel, Field, SecretStr, ValidationError

from common.config import bearer
from common.errors import ConfigError, EngineError
from common.messages import ClipRef, GenerateRequest, VideoPart
from common.rest import direct
from jobs.asking.refusals import raise_for_status

JPEG_QUALITY = 90
TIMEOUT_S = 10.0


class _Message(BaseModel):
    content: str | None


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    """What is read of a reply; servers add to it."""

    choices: list[_Choice] = Field(min_length=1)


def model_at(url: str, *, name: str | None, token: SecretStr | None) -> str:
    """The model to ask for: `name` if the server has it, else its first one.

    Raises:
        ConfigError: nobody answers there as such a server does, or it has no such model.
    """
    try:
        with direct.client(headers=bearer(token), timeout=TIMEOUT_S) as client:
            answer = client.get(f"{url.rstrip('/')}/models")
        answer.raise_for_status()
        served = [str(one["id"]) for one in answer.json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--openai: found {url}: {error!r}, wanted the base URL of a server with /models and "
            "/chat/completions, such as http://127.0.0.1:8000/v1"
        ) from error
    if not served or name not in (None, *served):
        raise ConfigError(f"--openai-model: found {name!r}, wanted one of {served} at {url}")
    return name or served[0]


async def ask_openai(client: httpx.AsyncClient, *, request: GenerateRequest, model: str) -> str:
    """One request to one server, whose base URL the client has; the text of its first choice.

    Raises:
        Refused: it cannot be served, or the reply is none.
        NotReady, Busy, EngineError: as `jobs.asking.replicas.ask`.
        VideoError: the clip cannot be decoded here.
        httpx.TransportError: it could not be reached.
    """
    body = await asyncio.to_thread(completion_body, request, model=model)
    answer = await client.post("/chat/completions", json=body)
    raise_for_status(answer)
    try:
        completion = _Completion.model_validate_json(answer.content)
    except ValidationError as error:
        raise EngineError(
            f"{answer.url}: found {answer.text[:80]!r}, wanted a chat completion"
        ) from error
    return completion.choices[0].message.content or ""


def completion_body(request: GenerateRequest, *, model: str) -> dict[str, Any]:
    """The request in OpenAI's form, its clip as pictures.

    Raises:
        VideoError: the clip cannot be decoded.
    """
    sampling = request.sampling.model_dump(exclude_none=True)
    return {
        "model": model,
        "messages": [
            {
                "role": message.role,
                "content": [
                    part
                    for one in message.content
                    for part in (
                        _pictures(request.clip)
                        if isinstance(one, VideoPart)
                        else [{"type": "text", "text": one.text}]
                    )
                ],
            }
            for message in request.messages
        ],
        "n": request.num_samples,
        **sampling,
    }


def _pictures(clip: ClipRef) -> Iterator[dict[str, Any]]:
    from PIL import Image

    from common.video.frames import load_frames

    frames = load_frames(clip)
    is_picture = len(set(clip.frame_indices)) == 1
    shown = list(zip(clip.frame_times_s, frames, strict=True))[: 1 if is_picture else None]
    for time_s, pixels in shown:
        if not is_picture:
            yield {"type": "text", "text": f"<{time_s:.1f} seconds>"}
        packed = io.BytesIO()
        Image.fromarray(pixels).save(packed, "JPEG", quality=JPEG_QUALITY)
        encoded = base64.b64encode(packed.getvalue()).decode()
        yield {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded}"}}
