"""Who can be asked: `Model`s of the command line, and the replicas of a run.

    --model FOLDER       -> Local: a replica on this machine, loaded when it is first asked
    --endpoint URL       -> Served: a replica that runs
    --openai URL         -> Served: somebody else's server
    a run's registry     -> Served: its newest replica

Each asks as `tempsamp ground` does (`jobs.ground.asking`). Neighbour: `.questions` has the clip and
tells whoever waits.
"""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, SecretStr

from common import config
from common.errors import ConfigError, EngineError
from common.messages import ClipRef, Sampling
from common.model.folder import fetched
from common.secrets import tokens
from common.video.sampling import VideoSampling
from jobs.asking.openai.endpoint import Endpoint
from jobs.asking.openai.media import FramesAs
from jobs.asking.openai.options import fewer_as_pictures
from jobs.asking.replicas import Asker
from jobs.asking.replicas import ask as ask_replica
from jobs.dash.folder import RunFolder
from jobs.dash.playground.loading import Loaded
from jobs.dash.playground.wording import Wording, wording_of
from jobs.evaluation.settings import checkpoint_digest
from jobs.fleet.services import Fleet
from jobs.ground.asking import Settings, ask, watched
from jobs.ground.candidates import Grounding
from jobs.ground.command import MAX_TOKENS
from jobs.local.processes import ChildError
from jobs.local.replica import READY_TIMEOUT_S, sampling_of

Kind = Literal["local", "replica", "openai"]
State = Literal["asleep", "loading", "ready", "failed"]
Tell = Callable[[str], None]
"""What is waited for now, in words."""
MOST_LOCAL = 2
"""The page sets two beside each other."""
RETRY_S = 20.0
"""Somebody watches: who does not answer is not asked for a minute, as by commands."""
WATCH_S = 1.0
CHECKPOINTS = "checkpoints"
"""Of a run: <run_dir>/checkpoints/step-000200/hf."""
VERSION = metadata.version("tempsamp")


class ListedModel(BaseModel):
    """One in the page's choice."""

    key: str
    name: str
    kind: Kind
    state: State
    says: str = ""
    """Of one that failed or is being loaded: the last words."""


class Model(Protocol):
    """One that can be asked."""

    def listed(self) -> ListedModel:
        """For the page's choice."""

    @property
    def frames(self) -> VideoSampling:
        """Which frames it sees."""

    @property
    def sampling(self) -> Sampling:
        """Of samples, where a question does not say."""

    @property
    def wording(self) -> Wording | None:
        """What it was trained to be asked; None: our own words."""

    def refuse(self, path: Path) -> None:
        """Refuse a video that it cannot see, before it is asked.

        Raises:
            ConfigError: names the way out.
        """

    async def ask(self, clip: ClipRef, *, query: str, settings: Settings, tell: Tell) -> Grounding:
        """Answers, as `jobs.ground.asking.ask`.

        Raises:
            TempSampError, ConfigError: nobody answers, or not to this.
        """

    def versions(self) -> dict[str, Any]:
        """What answered, so far as that is known."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server that runs, whoever started it."""

    key: str
    name: str
    kind: Literal["replica", "openai"]
    url: str
    token: SecretStr | None
    frames: VideoSampling
    sampling: Sampling
    asker: Asker = ask_replica
    served_model: str | None = None
    roots: Sequence[Path] | None = None
    """Below which it opens videos; None: not known, it says so itself."""
    wording: Wording | None = None
    """As `Model.wording`."""

    def listed(self) -> ListedModel:
        """As `Model.listed`."""
        return ListedModel(key=self.key, name=self.name, kind=self.kind, state="ready")

    def refuse(self, path: Path) -> None:
        """As `Model.refuse`."""
        if self.roots is None:
            return
        roots = tuple(root.resolve() for root in self.roots)
        if not any(path.is_relative_to(root) for root in roots):
            raise ConfigError(
                f"model: found {self.name}, which opens videos below {', '.join(map(str, roots))} "
                "alone, wanted a video from there: choose one of the run's, or start the dash with "
                "--model FOLDER"
            )

    async def ask(self, clip: ClipRef, *, query: str, settings: Settings, tell: Tell) -> Grounding:
        """As `Model.ask`."""
        tell("asking")
        return await ask(
            clip,
            query=query,
            settings=settings,
            endpoints=[self.url],
            token=self.token,
            asker=self.asker,
            served_model=self.served_model,
            retry_s=RETRY_S,
        )

    def versions(self) -> dict[str, Any]:
        """As `Model.versions`; the weights of a replica stand in its answers."""
        return {"url": self.url}


class Local:
    """A checkpoint, on a replica of our own."""

    def __init__(self, model: str, *, key: str, folder: Callable[[], Path], beside: int) -> None:
        """Look at its settings; weights are fetched when it is asked.

        Args:
            model: folder, or id of the hub.
            key: how the page calls it.
            folder: makes one for its log.
            beside: how many share this machine.

        Raises:
            ConfigError: it is none.
        """
        self._model = model
        self._key = key
        settings = fetched(model, knob="--model", say=lambda _: None, with_weights=False)
        run = _trained_by(settings.path)
        self.frames = sampling_of(settings.path) if run is None else run.shared.video.sampling
        self.sampling = Sampling(max_tokens=MAX_TOKENS) if run is None else run.shared.sampling
        self.wording = None if run is None else wording_of(run.learner.rows)
        self._commit = settings.commit
        self._digest: str | None = None
        self._loaded = Loaded(self._fetch, folder=folder, beside=beside)

    def close(self) -> None:
        """End its replica; from the main thread, without an event loop."""
        self._loaded.close()

    def listed(self) -> ListedModel:
        """As `Model.listed`."""
        state: State = self._loaded.state
        says = self._loaded.says if state in ("loading", "failed") else ""
        return ListedModel(key=self._key, name=self._model, kind="local", state=state, says=says)

    def refuse(self, path: Path) -> None:
        """It opens every video."""

    async def ask(self, clip: ClipRef, *, query: str, settings: Settings, tell: Tell) -> Grounding:
        """As `Model.ask`; loads it, if it is not."""
        replica = await self._loaded.ready(tell)
        tell("asking")
        asking = functools.partial(
            ask, endpoints=[replica.url], token=replica.token, retry_s=READY_TIMEOUT_S
        )
        answer = asyncio.create_task(watched(replica, asking, clip, query=query, settings=settings))
        lives = replica.child.restarts
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=WATCH_S)
                if replica.child.restarts > lives:
                    lives = replica.child.restarts
                    tell("the engine died over it and is loaded again, then asked again")
            return answer.result()
        except ChildError as error:
            await self._loaded.unload(failure=str(error))
            raise
        finally:
            answer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([answer])

    def versions(self) -> dict[str, Any]:
        """As `Model.versions`."""
        return {"commit": self._commit, "checkpoint_sha256": self._digest}

    def _fetch(self, say: Tell) -> Path:
        """Runs in a thread."""
        path = fetched(self._model, knob="--model", say=say, with_weights=True).path
        say("reading the checkpoint")
        self._digest = self._digest or checkpoint_digest(path)
        return path


def _trained_by(checkpoint: Path) -> config.Run | None:
    """Settings of the run in whose folder a checkpoint lies: it is asked as it was trained."""
    folder = checkpoint.resolve().parent.parent
    return (
        RunFolder(folder.parent, folder.parent.name).run() if folder.name == CHECKPOINTS else None
    )


def endpoint(url: str, *, key: str) -> Served:
    """A replica that runs at an address."""
    return Served(
        key=key,
        name=url,
        kind="replica",
        url=url,
        token=tokens().of("generate"),
        frames=VideoSampling(),
        sampling=Sampling(max_tokens=MAX_TOKENS),
    )


def foreign(server: Endpoint, *, key: str, frames_as: FramesAs) -> Served:
    """Somebody else's server."""
    return Served(
        key=key,
        name=f"{server.model} at {server.url}",
        kind="openai",
        url=server.url,
        token=server.token,
        frames=fewer_as_pictures(VideoSampling(), frames_as=frames_as),
        sampling=Sampling(max_tokens=MAX_TOKENS),
        asker=server.ask,
        served_model=server.model,
    )


def of_run(
    run: config.Run | None, fleet: Fleet | None, *, roots: Sequence[Path] | None
) -> Served | None:
    """The replica of a run with the newest weights, those it starts from if its learner has not
    come yet; None where none answers.

    One of them: while a run learns, two may serve different weights. `roots`: below which it opens
    videos, if that is known.
    """
    if run is None or fleet is None:
        return None
    answering = [
        replica.status
        for replica in fleet.replicas
        # A report came from who had proved to know the token.
        if replica.report is not None and replica.status.phase in ("serving", "syncing")
    ]
    if not answering:
        return None
    newest = max(answering, key=lambda status: -1 if status.version is None else status.version)
    what = "as it starts" if newest.version is None else f"version {newest.version}"
    return Served(
        key="run",
        name=f"run {run.shared.run_id}: {newest.replica}, {what}",
        kind="replica",
        url=newest.url,
        token=run.shared.tokens.of("generate"),
        frames=run.shared.video.sampling,
        sampling=run.shared.sampling,
        roots=roots,
        wording=wording_of(run.learner.rows),
    )


def found(models: Sequence[Model], key: str) -> Model:
    """The model of that key.

    Raises:
        EngineError: there is none, or no longer.
    """
    for model in models:
        if model.listed().key == key:
            return model
    raise EngineError(f"model: found none called {key!r}, wanted one of those listed")


def check_models(given: Sequence[str]) -> None:
    """Refuse what has no effect.

    Raises:
        ConfigError: more models than can be set beside each other, or one twice.
    """
    if len(given) > MOST_LOCAL:
        raise ConfigError(f"--model: found {len(given)}, wanted at most {MOST_LOCAL}")
    if len(set(given)) < len(given):
        raise ConfigError(f"--model: found {given[0]} twice, wanted two models")
