"""`tempsamp reframe qwen`: two stages through replicas → a submission with a line for every video.

    options -> jobs.reframe.stages -> submission, journal, table of what went wrong

With --endpoint, running replicas answer; with --model, one of our own is started and ended in any
case; with --openai, any server of that interface. Once they have begun, the submission is written
whatever happens to them; exit code 1 says that they were lost on the way, that no video at all got
an answer, or that one cannot be read.
"""

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import httpx
import typer
from pydantic import SecretStr

from common import config
from common.errors import ConfigError, EngineError, TempSampError, VideoError
from common.messages import GenerateRequest
from common.model.folder import fetched
from common.queue.disk import check_file
from common.secrets import tokens
from common.video.sampling import VideoSampling
from jobs.asking.answers import Reply, one_version
from jobs.asking.endpoints import check_endpoints
from jobs.asking.openai.options import (
    OpenAIUrl,
    ServedModel,
    check_options,
    fewer_as_pictures,
    opened,
)
from jobs.asking.replicas import (
    FLEET_TIMEOUT,
    RETRY_S,
    Asker,
    Fleet,
    ask,
    connected,
    served,
)
from jobs.evaluation.session import LOCAL_RETRY_S
from jobs.evaluation.settings import checkpoint_digest
from jobs.local import terminal
from jobs.local.processes import interruptible
from jobs.local.waiting import shown, waiting
from jobs.reframe.center import IndexFile, VideoDir
from jobs.reframe.index import Wanted, read_index
from jobs.reframe.journal import Journal, VideoEnd
from jobs.reframe.submission import write_submission
from jobs.reframe.tracking import EVERY
from jobs.reframe.videos import check_folder, place, read_headers

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from common.video.index import VideoHeader
    from jobs.local.replica import LocalReplica
    from jobs.reframe.stages import Question, Settings, TwoStages

SHOWN_ERRORS = 10


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Who answers."""

    endpoints: Sequence[str]
    token: SecretStr | None
    model: str
    """Names the weights, for the journal."""
    ask: Asker
    """Raises EngineError where other weights wrote the reply."""
    retry_s: float
    watch: Callable[[], Awaitable[None]] | None = None
    """Runs beside the questions; ends them by raising."""


async def _ask_replica(
    client: httpx.AsyncClient, *, request: GenerateRequest, version: int
) -> Reply:
    reply = await ask(client, request=request)
    one_version([reply], wanted=version)
    return reply


def command(
    index: IndexFile,
    video_dir: VideoDir,
    out: Annotated[
        Path,
        typer.Option(help="Submission (JSONL); beside it a journal, from which a run goes on."),
    ],
    endpoint: Annotated[
        list[str] | None, typer.Option(help="URL of a running replica; may be repeated.")
    ] = None,
    openai: OpenAIUrl = None,
    served_model: ServedModel = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=r"Folder or ORG/NAME\[@revision] of the hub: a replica of it is started; with "
            "--endpoint, what the replicas started from."
        ),
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", "-c", help="Run file, for its frames and replica.")
    ] = None,
    segments: Annotated[int, typer.Option(min=1, help="Most highlights of a video.")] = 1,
    every: Annotated[
        int, typer.Option(min=1, help="Frames between keyframes; the last one is always asked.")
    ] = EVERY,
    smooth: Annotated[
        int | None,
        typer.Option(min=1, help="Most pixels a box moves from frame to frame. Default: any."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 256,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Questions in work in each replica.")
    ] = 16,
) -> None:
    """Ask replicas for highlights and subjects, and write boxes that follow them."""
    from jobs.reframe.stages import Settings

    _check_who_answers(endpoint, model=model, openai=openai, served_model=served_model)
    wanted = read_index(index)
    check_folder(video_dir)
    videos = [place(video_dir, one.video_id) for one in wanted]
    check_file(out, knob="--out", inputs=[index, *videos, config_file])
    console = terminal.console()
    settings = Settings(
        video=_sampling(config_file, model=model, is_pictures=openai is not None, console=console),
        segments=segments,
        every=every,
        smooth_px=smooth,
        max_tokens=max_tokens,
    )
    headers = read_headers(video_dir, [one.video_id for one in wanted])
    journal = Journal(out)
    try:
        who = (
            _answering(endpoint, model=model, run_file=config_file, console=console)
            if openai is None
            else _openai(openai, name=served_model)
        )
        with interruptible(), who as answering:
            kit, outage = _asked(
                wanted,
                video_dir=video_dir,
                headers=headers,
                settings=settings,
                journal=journal,
                answering=answering,
                concurrency=concurrency,
                console=console,
            )
        lines, ends = kit.result(outage=None if outage is None else str(outage))
        journal.end(ends)
        write_submission(out, lines=lines)
    except KeyboardInterrupt:
        console.print(f"interrupted; {journal.path} keeps every reply, the same command goes on")
        raise typer.Exit(130) from None
    finally:
        journal.close()
    _show(ends, out=out, journal=journal.path, console=console)
    _raise_if_unasked(ends, outage=outage)


def _check_who_answers(
    endpoint: Sequence[str] | None,
    *,
    model: str | None,
    openai: str | None,
    served_model: str | None,
) -> None:
    """Refuse none, and two that exclude each other."""
    check_options(openai, served_model=served_model, endpoint=endpoint)
    if openai is not None and model is not None:
        raise ConfigError("--openai: found it with --model, wanted one of them")
    if not endpoint and model is None and openai is None:
        raise ConfigError(
            "found neither --endpoint nor --model nor --openai, wanted somebody who answers"
        )


def _sampling(
    config_file: Path | None, *, model: str | None, is_pictures: bool, console: "Console"
) -> VideoSampling:
    """Frames as the run has them, else those of SPEC A9 in the patches of the model."""
    from jobs.local.replica import evaluation_sampling, sampling_of

    folder = None
    if model is not None:
        say = _said_on(console)
        folder = fetched(model, knob="--model", say=say, with_weights=False).path
    if config_file is not None:
        video = config.load(config_file).shared.video
        return VideoSampling(**video.model_dump(include=set(VideoSampling.model_fields)))
    if is_pictures:
        return fewer_as_pictures(evaluation_sampling(), frames_as="images")
    return evaluation_sampling() if folder is None else sampling_of(folder)


@contextlib.contextmanager
def _answering(
    endpoints: Sequence[str] | None, *, model: str | None, run_file: Path | None, console: "Console"
) -> Iterator[Answering]:
    """Running replicas, or one that is started here and ended in any case."""
    from jobs.local.replica import started

    digest, folder = "", None
    if model is not None:
        folder = fetched(model, knob="--model", say=_said_on(console)).path
        digest = checkpoint_digest(folder)
    if endpoints:
        check_endpoints(endpoints)
        token = tokens().of("generate")
        with waiting(console, f"waiting for a replica at {' or '.join(endpoints)}"):
            version, run_tag = asyncio.run(_served(endpoints, token=token))
        yield Answering(
            endpoints=endpoints,
            token=token,
            model=f"version {version} of {run_tag} {digest}",
            ask=functools.partial(_ask_replica, version=version),
            retry_s=RETRY_S,
        )
        return
    assert folder is not None
    import tempfile

    with (
        tempfile.TemporaryDirectory(prefix="tempsamp-reframe-") as logs,
        started(folder, run_file=run_file, folder=Path(logs)) as replica,
    ):
        with waiting(console, f"loading {folder.name}"):
            replica.wait_until_ready()
        yield _own(replica, digest=digest)


@contextlib.contextmanager
def _openai(url: str, *, name: str | None) -> Iterator[Answering]:
    """Somebody else's server; which weights it has, its name for them has to say."""
    server = opened(url, served_model=name, frames_as="images")
    yield Answering(
        endpoints=[url],
        token=server.token,
        model=f"{server.model} at {url}",
        ask=server.ask,
        retry_s=RETRY_S,
    )


def _own(replica: "LocalReplica", *, digest: str) -> Answering:
    return Answering(
        endpoints=[replica.url],
        token=replica.token,
        model=f"checkpoint {digest}",
        ask=functools.partial(_ask_replica, version=0),
        retry_s=LOCAL_RETRY_S,
        watch=replica.watch,
    )


async def _served(endpoints: Sequence[str], *, token: SecretStr | None) -> tuple[int, str | None]:
    async with connected(endpoints, token=token) as clients:
        return await served(clients)


def _asked(
    wanted: Sequence[Wanted],
    *,
    video_dir: Path,
    headers: "dict[str, VideoHeader | VideoError]",
    settings: "Settings",
    journal: Journal,
    answering: Answering,
    concurrency: int,
    console: "Console",
) -> "tuple[TwoStages, TempSampError | None]":
    """Everything that could be asked, and why not everything could."""
    from jobs.reframe.stages import TwoStages

    with shown(terminal.bar(console)) as progress:
        bar = _Bar(progress)
        kit = TwoStages(
            wanted,
            video_dir=video_dir,
            headers=headers,
            settings=settings,
            journal=journal,
            model=answering.model,
            on_done=bar.done,
        )
        try:
            asyncio.run(_both_stages(kit, answering, concurrency=concurrency, bar=bar))
        except TempSampError as error:
            return kit, error
    return kit, None


async def _both_stages(
    kit: "TwoStages", answering: Answering, *, concurrency: int, bar: "_Bar"
) -> None:
    from jobs.evaluation.session import beside

    async with connected(
        answering.endpoints, token=answering.token, patience=FLEET_TIMEOUT
    ) as clients:
        fleet = Fleet(
            clients, concurrency=concurrency, retry_s=answering.retry_s, ask=answering.ask
        )
        bar.begin("highlights", total=len(kit.cases))
        await beside(kit.ask_highlights(fleet), answering.watch)
        questions = kit.subject_questions()
        bar.begin("subjects", total=len(questions))
        await beside(kit.ask_subjects(questions, fleet=fleet), answering.watch)


class _Bar:
    """Progress and time left of the stage that is under way."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._failed = 0
        self._task = progress.add_task("", total=None, visible=False)

    def begin(self, stage: str, *, total: int) -> None:
        """A stage of so many questions."""
        self._failed = 0
        self._task = self._progress.add_task(stage, total=total)

    def done(self, question: "Question") -> None:
        """One more."""
        case = question.case
        if question.frame is None:
            self._failed += case.highlights is None
        else:
            self._failed += question.frame not in case.subjects
        self._progress.update(self._task, advance=1, shown=(f"failed: {self._failed}",))


def _show(ends: Sequence[VideoEnd], *, out: Path, journal: Path, console: "Console") -> None:
    """What became of the videos, by kind; names and messages come from strangers' files."""
    outcomes = Counter(end.outcome for end in ends)
    faults: Counter[str] = Counter()
    for end in ends:
        faults.update(end.faults)
    shown = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    console.print(f"{out}: {len(ends)} videos: {shown}", soft_wrap=True)
    for kind, count in sorted(faults.items()):
        console.print(f"  {count} x {kind}")
    lost = [end for end in ends if end.outcome != "followed"]
    for end in lost[:SHOWN_ERRORS]:
        line = f"  {end.video_id}: {end.outcome}: {', '.join(end.faults)}: {end.error or ''}"
        console.print(line, markup=False, soft_wrap=True)
    if len(lost) > SHOWN_ERRORS:
        console.print(f"  and {len(lost) - SHOWN_ERRORS} more; {journal} has all", soft_wrap=True)


def _raise_if_unasked(ends: Sequence[VideoEnd], *, outage: TempSampError | None) -> None:
    """A submission without a model behind it is no success.

    Raises:
        EngineError: replicas were lost on the way, or no video at all got an answer.
        VideoError: a video cannot be read.
    """
    if outage is not None:
        raise EngineError(
            f"{outage}; the submission is whole, with fall-backs for what was not answered; the "
            "same command asks that alone"
        ) from outage
    if not any(end.outcome in ("followed", "middle") for end in ends):
        raise EngineError(
            f"no highlight of {len(ends)} videos could be read; the submission is all fall-backs"
        )
    if empty := sum(end.outcome == "empty" for end in ends):
        raise VideoError(f"{empty} of {len(ends)} videos could not be read and have no frames")


def _said_on(console: "Console") -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, soft_wrap=True)
