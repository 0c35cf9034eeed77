"""A server of OpenAI's chat completions: `GenerateRequest` → `Reply`, as replicas are asked.

    model_at(url, name=…), Endpoint(url, model=…) -> .ask, an `Asker` of jobs.asking.replicas' Fleet

Such a server sees no videos of ours, so frames are decoded here and travel in the request
(`.media`). What it does not take is found out by asking: log-probabilities, several answers at
once, a seed, the older name of the longest answer; it is left out from then on, and said once where
it costs something. `.problems` are what goes wrong, `.completion` reads what comes back.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import httpx
from pydantic import SecretStr, ValidationError

from common.config import bearer
from common.errors import ConfigError, EngineError
from common.messages import ClipRef, GenerateRequest, VideoPart
from common.rest import direct
from common.secrets import OPENAI_KEY, has_credentials
from jobs.asking.answers import Answer, Reply, usage_of
from jobs.asking.openai.completion import Completion, held_back
from jobs.asking.openai.media import FramesAs, Media, media_of
from jobs.asking.openai.problems import Problem, problem_of
from jobs.asking.refusals import Broken

TIMEOUT_S = 10.0
REMEMBERED_CLIPS = 4
"""Packed frames that are kept: queries of one clip are asked together, and each may be 50 MB."""
SHOWN_MODELS = 8
SEED_STEP = 7_919
"""Between the seeds of answers that a server gives one at a time."""
WANTED_URL = (
    "wanted the base URL of a server with /models and /chat/completions, such as "
    "http://127.0.0.1:8000/v1"
)


class Endpoint:
    """One model of one server."""

    def __init__(
        self,
        url: str,
        *,
        model: str,
        token: SecretStr | None = None,
        frames_as: FramesAs = "images",
        wants_logprobs: bool = False,
        needs_logprobs: str = "",
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing is asked yet.

        Args:
            url: base URL.
            model: its name there.
            token: the key, if it wants one.
            frames_as: how a clip travels.
            wants_logprobs: whether anybody reads log-probabilities.
            needs_logprobs: why nothing works without them, and the way out; empty: it does.
            say: told once about each thing that the server does not do.
        """
        self.url = url
        self.model = model
        self.token = token
        self.frames_as: FramesAs = frames_as
        self._say = say
        self._asks_logprobs = wants_logprobs
        self._needs_logprobs = needs_logprobs
        self._takes_many = True
        self._takes_seed = True
        self._length_field = "max_tokens"
        self._left_out: set[str] = set()
        """Fields of `Media` that it refuses."""
        self._media: OrderedDict[ClipRef, asyncio.Task[Media]] = OrderedDict()

    async def ask(self, client: httpx.AsyncClient, *, request: GenerateRequest) -> Reply:
        """One request, in as many pieces as the server wants.

        Raises:
            Refused: it cannot be served.
            NotReady, Busy, Broken, EngineError: as `Problem.error`.
            VideoError: the clip cannot be decoded here.
            httpx.TransportError: it could not be reached.
        """
        media = await self._media_of(request.clip)
        replies: list[Reply] = []
        answers: tuple[Answer, ...] = ()
        while (left := request.num_samples - len(answers)) > 0:
            replies.append(await self._complete(client, request, media, left, len(answers)))
            answers += replies[-1].answers[:left]
        return Reply(answers=answers, usage=usage_of(replies))

    async def _complete(
        self,
        client: httpx.AsyncClient,
        request: GenerateRequest,
        media: Media,
        wanted: int,
        given: int,
    ) -> Reply:
        """`wanted` answers or fewer, of which `given` are there; what it does not take left out."""
        while True:
            body = self._body(request, media=media, wanted=wanted, given=given)
            content = await asyncio.to_thread(_as_json, body)
            answer = await client.post(
                "/chat/completions",
                content=content,
                headers={"Content-Type": "application/json"},
            )
            if answer.status_code == httpx.codes.OK:
                return self._read(answer)
            problem = problem_of(answer)
            if problem.is_filtered:
                return held_back(wanted)
            if not self._leaves_out(problem, body, media.without):
                raise problem.error()

    def _read(self, answer: httpx.Response) -> Reply:
        try:
            reply = Completion.model_validate_json(answer.content).reply()
        except ValidationError as error:
            raise Broken(
                f"{answer.url}: found {answer.text[:80]!r}, wanted a chat completion"
            ) from error
        if self._asks_logprobs and any(map(_lacks_logprobs, reply.answers)):
            self._no_logprobs()
        return reply

    def _body(
        self, request: GenerateRequest, *, media: Media, wanted: int, given: int
    ) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages_of(request, media.parts),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self._length_field: sampling.max_tokens,
            **{name: media.fields[name] for name in media.fields if name not in self._left_out},
        }
        if self._takes_many:
            body["n"] = wanted
        if self._takes_seed and sampling.seed is not None:
            body["seed"] = sampling.seed + given * SEED_STEP
        if self._asks_logprobs:
            body["logprobs"] = True
        return body

    def _leaves_out(
        self, problem: Problem, body: Mapping[str, Any], without: Mapping[str, str]
    ) -> bool:
        """Whether the request may be tried again without what the server does not take."""
        field = next((one for one in without if one in body and problem.names(one)), None)
        if field is not None:
            self._leave_out(field, loss=without[field])
            return True
        if "logprobs" in body and problem.names("logprobs"):
            self._no_logprobs()
        elif "max_tokens" in body and problem.names("max_completion_tokens"):
            self._length_field = "max_completion_tokens"
        elif "seed" in body and problem.names("seed"):
            self._no_seed()
        elif "n" in body and problem.names("n"):
            self._takes_many = False
        else:
            return False
        return True

    def _leave_out(self, field: str, *, loss: str) -> None:
        if field not in self._left_out and loss:
            self._say(f"{self.url} takes no {field}: {loss}")
        self._left_out.add(field)

    def _no_logprobs(self) -> None:
        """From now on; several requests in the air may find it out."""
        found = f"{self.url} gives no log-probabilities of tokens"
        if self._needs_logprobs:
            raise EngineError(f"{found}; {self._needs_logprobs}")
        if self._asks_logprobs:
            self._asks_logprobs = False
            self._say(f"{found}: what needs them is left out")

    def _no_seed(self) -> None:
        """As `_no_logprobs`."""
        if self._takes_seed:
            self._takes_seed = False
            self._say(f"{self.url} takes no seed: samples will differ if they are asked for again")

    async def _media_of(self, clip: ClipRef) -> Media:
        """Packed once, however many requests share it and wait for it."""
        if clip not in self._media:
            packing = asyncio.to_thread(media_of, clip, frames_as=self.frames_as)
            self._media[clip] = asyncio.create_task(packing)
            if len(self._media) > REMEMBERED_CLIPS:
                self._media.popitem(last=False)
        self._media.move_to_end(clip)
        return await asyncio.shield(self._media[clip])


def _lacks_logprobs(answer: Answer) -> bool:
    """A refusal, or what a filter left, need not have any."""
    return bool(answer.text) and not answer.logprobs and answer.ending in ("stop", "length")


def _as_json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


def messages_of(
    request: GenerateRequest, clip_parts: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Chat messages in OpenAI's form, the clip's parts in its place."""
    return [
        {
            "role": message.role,
            "content": [
                part
                for one in message.content
                for part in (
                    clip_parts
                    if isinstance(one, VideoPart)
                    else [{"type": "text", "text": one.text}]
                )
            ],
        }
        for message in request.messages
    ]


def model_at(url: str, *, name: str | None, token: SecretStr | None) -> str:
    """The model to ask for: `name` if the server has it, or lists none, else its only one.

    Raises:
        ConfigError: nobody answers there as such a server does, it does not let us in, or it has
            no such model.
    """
    served = _served(url, token=token)
    if served is None:
        if name is not None:
            return name
        raise ConfigError(f"--openai: found {url} without /models, {WANTED_URL}; or --served-model")
    if name is None and len(served) == 1:
        return served[0]
    if name is not None and name in served:
        return name
    shown = ", ".join(served[:SHOWN_MODELS]) + (", \u2026" if len(served) > SHOWN_MODELS else "")
    near = [] if name is None else get_close_matches(name, served, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise ConfigError(
        f"--served-model: found {'none' if name is None else repr(name)}, wanted one of "
        f"{shown or 'none at all'} at {url}{hint}"
    )


def _served(url: str, *, token: SecretStr | None) -> list[str] | None:
    """Names that /models lists; None where a gateway has no such page."""
    _check_url(url)
    try:
        with direct.client(headers=bearer(token), timeout=TIMEOUT_S) as client:
            answer = client.get(f"{url.rstrip('/')}/models")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"--openai: found {url}: {error!r}, {WANTED_URL}") from error
    if answer.status_code in (404, 405):
        return None
    if answer.status_code in (401, 403):
        raise ConfigError(
            f"--openai: found {url}: status {answer.status_code}: {problem_of(answer).message}; "
            f"set {OPENAI_KEY} to a key that it knows"
        )
    try:
        return [str(one["id"]) for one in answer.raise_for_status().json()["data"]]
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--openai: found {url}: status {answer.status_code}: {problem_of(answer).message!r}, "
            f"{WANTED_URL}"
        ) from error


def _check_url(url: str) -> None:
    """What is written beside answers, and in messages, holds no key."""
    if has_credentials(url):
        raise ConfigError(f"--openai: found credentials in a URL, wanted them in {OPENAI_KEY}")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"--openai: found {url!r}: {error}, {WANTED_URL}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"--openai: found {url!r}, {WANTED_URL}")
    if parsed.query or parsed.fragment:
        shown = str(parsed.copy_with(query=None, fragment=None))
        raise ConfigError(f"--openai: found {shown} with a query or a fragment, {WANTED_URL}")
