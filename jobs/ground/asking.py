"""One question about one clip, put to whoever answers: `answering(…)` → `Ask` → `Grounding`.

    running replicas (--endpoint), one that is started here (--model, --config), or any server of
    OpenAI's chat completions (--openai)

Neighbours: `jobs.ground.command` has the options, `jobs.ground.candidates` reads the replies.
"""

import asyncio
import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
from pydantic import SecretStr
from rich.console import Console

from common import config
from common.errors import ConfigError
from common.messages import ClipRef, GenerateRequest, Mode, Sampling, Window
from common.model.folder import fetched
from common.prompts import chat_messages, grounding_problem
from common.secrets import tokens
from common.video.sampling import VideoSampling
from jobs.asking.endpoints import check_endpoints
from jobs.asking.openai.endpoint import Endpoint
from jobs.asking.replicas import RETRY_S, Asker, Replicas, connected
from jobs.asking.replicas import ask as ask_replica
from jobs.ground.candidates import Grounding, ground
from jobs.local.processes import interruptible
from jobs.local.replica import LocalReplica, started
from jobs.local.waiting import waiting

PATIENCE = httpx.Timeout(10.0, read=600.0)
"""A thought of 2,048 tokens on a long clip takes minutes."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a question is asked."""

    mode: Mode
    num_samples: int
    """Samples beside the greedy answer."""
    sampling: Sampling
    """Of the samples; the greedy answer may be as long."""
    video: VideoSampling
    """Which frames the model sees."""
    window: Window | None
    """Of which part of the video; None is all of it."""
    wording: tuple[str, str] | None = None
    """What stands before and after the query; None: our own words."""

    def problem(self, query: str) -> str:
        """The whole instruction."""
        if self.wording is None:
            return grounding_problem(query, mode=self.mode)
        before, after = self.wording
        return f"{before}{query}{after}"


class Ask(Protocol):
    """`ask` of replicas that are already known."""

    async def __call__(self, clip: ClipRef, *, query: str, settings: Settings) -> Grounding:
        """See `ask`."""


def sample_video(video: Path, *, settings: Settings, window_knobs: str) -> ClipRef:
    """The clip that is asked about; errors call what its window was named by `window_knobs`.

    Raises:
        VideoError: the file is missing, is no video or does not have the window.
    """
    from common.video.frames import sample_clip

    return sample_clip(
        video.absolute(),
        sampling=settings.video,
        window=settings.window,
        window_knobs=window_knobs,
    )


async def ask(
    clip: ClipRef,
    *,
    query: str,
    settings: Settings,
    endpoints: Sequence[str],
    token: SecretStr | None,
    asker: Asker = ask_replica,
    served_model: str | None = None,
    retry_s: float = RETRY_S,
) -> Grounding:
    """Ask when `query` happens; who does not answer is asked again for `retry_s`.

    Raises:
        Refused: they cannot use the clip or the prompt.
        EngineError: none can be reached, or they serve different weights.
    """
    question = GenerateRequest(
        clip=clip,
        messages=chat_messages(settings.problem(query)),
        sampling=settings.sampling.model_copy(update={"temperature": 0.0, "top_p": 1.0}),
    )
    requests = [question]
    if settings.num_samples:
        asked = {"num_samples": settings.num_samples, "sampling": settings.sampling}
        requests.append(question.model_copy(update=asked))
    async with connected(endpoints, token=token, patience=PATIENCE) as clients:
        replicas = Replicas(clients, concurrency=len(requests), ask=asker, retry_s=retry_s)
        replies = await asyncio.gather(*(replicas.generate(request) for request in requests))
    return ground(clip, query=query, mode=settings.mode, replies=replies, served_model=served_model)


@contextlib.contextmanager
def answering(
    endpoints: Sequence[str],
    *,
    server: Endpoint | None,
    model: str | None,
    run: config.Run | None,
    run_file: Path | None,
    say: Callable[[str], None],
    progress: Console,
) -> Iterator[Ask]:
    """Who is asked: somebody else's server, running replicas, or a replica that is started here and
    ended in any case; `progress` shows what is waited for.

    Raises:
        ConfigError: nobody, or who is no replica.
    """
    if server is not None:
        yield functools.partial(
            ask,
            endpoints=[server.url],
            token=server.token,
            asker=server.ask,
            served_model=server.model,
        )
        return
    if endpoints:
        check_endpoints(endpoints)
        yield functools.partial(ask, endpoints=endpoints, token=tokens().of("generate"))
        return
    checkpoint = checkpoint_of(model, run, with_weights=True, say=say)
    if checkpoint is None:
        raise ConfigError(
            "found neither --endpoint nor --openai nor --model nor --config, wanted one of them"
        )
    with (
        tempfile.TemporaryDirectory(prefix="tempsamp-ground-") as folder,
        interruptible(),
        started(checkpoint, run_file=run_file, folder=Path(folder)) as replica,
    ):
        with waiting(progress, f"loading {checkpoint.name}, log in {replica.child.log}"):
            replica.wait_until_ready()
        asking = functools.partial(ask, endpoints=[replica.url], token=replica.token)
        yield functools.partial(watched, replica, asking)


async def watched(
    replica: LocalReplica, asking: Ask, clip: ClipRef, *, query: str, settings: Settings
) -> Grounding:
    """Ask a replica that is started again when it dies; when it dies too often, its log is told."""
    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(replica.watch())
            found = await asking(clip, query=query, settings=settings)
            watching.cancel()
    except ExceptionGroup as problems:
        raise problems.exceptions[0] from problems
    return found


def checkpoint_of(
    model: str | None, run: config.Run | None, *, with_weights: bool, say: Callable[[str], None]
) -> Path | None:
    """Folder of --model, else of the run's model; None when there is neither."""
    knob = "--model"
    if model is None and run is not None:
        knob, model = "shared.model", run.shared.model
    if model is None:
        return None
    return fetched(model, knob=knob, say=say, with_weights=with_weights).path
