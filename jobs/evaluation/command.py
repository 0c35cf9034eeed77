"""`tempsamp eval`: checkpoint or running replicas → the tables of the field (SPEC A5, A9, B4).

    options -> Plan -> jobs.evaluation.session -> answers, summary.json, terminal tables

With --endpoint, running replicas answer, with --openai any server of that interface; without, a
replica of our own is started and ended in any case.
"""

import asyncio
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import SecretStr

from common import config
from common.config import Run, Video
from common.errors import ConfigError
from common.model.folder import fetched
from common.queue.disk import check_folder
from common.secrets import tokens
from jobs.asking.endpoints import check_endpoints
from jobs.asking.openai.media import FramesAs
from jobs.asking.openai.options import (
    FramesAsOption,
    OpenAIUrl,
    ServedModel,
    check_options,
    fewer_as_pictures,
    opened,
)
from jobs.asking.replicas import FLEET_TIMEOUT, RETRY_S, Asker, connected, served
from jobs.asking.replicas import ask as ask_replica
from jobs.evaluation.benchmarks import BENCHMARKS, benchmarks_named
from jobs.evaluation.questions import parse_shard
from jobs.evaluation.settings import (
    Checkpoint,
    Model,
    OpenAIServer,
    RunSettings,
    Served,
    answer_sampling,
    checkpoint_digest,
)
from jobs.local import terminal
from jobs.local.processes import interruptible
from jobs.local.waiting import shown, waiting

if TYPE_CHECKING:
    from rich.console import Console

    from jobs.asking.openai.endpoint import Endpoint
    from jobs.evaluation.session import Plan, Prepared
    from jobs.local.replica import LocalReplica


BY_SAMPLES = "--selector agreement chooses by samples instead"


class TaskName(StrEnum):
    """`--task`."""

    moments = "moments"
    highlights = "highlights"


class ModeName(StrEnum):
    """`--mode`."""

    answer = "answer"
    think = "think"
    mixed_selected = "mixed_selected"
    mixed_oracle = "mixed_oracle"


class SelectorName(StrEnum):
    """`--selector`."""

    logprob = "logprob"
    agreement = "agreement"


class PromptName(StrEnum):
    """`--protocol-prompt`: those of `jobs.evaluation.questions.PROMPTS`."""

    ours = "ours"
    published = "published"
    paper = "paper"
    timelens = "timelens"


def command(
    context: typer.Context,
    bench: Annotated[
        str | None,
        typer.Option(
            help=f"Comma-separated: {', '.join(BENCHMARKS)}, or paths of trainer rows (JSONL). "
            "Required."
        ),
    ] = None,
    video_root: Annotated[
        Path | None, typer.Option(help="Folder of the videos, in any usual layout. Required.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="One folder a benchmark; an interrupted run goes on. Required."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=r"Folder or ORG/NAME\[@revision] of the hub; with --endpoint, what the replicas "
            "started from; with --openai, whose patches frames fit."
        ),
    ] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option(help="URL of a running replica; may be repeated.")
    ] = None,
    openai: OpenAIUrl = None,
    served_model: ServedModel = None,
    frames_as: FramesAsOption = None,
    bench_dir: Annotated[Path | None, typer.Option(help="Folder of annotation files.")] = None,
    run_config: Annotated[
        Path | None, typer.Option("--config", "-c", help=r"Run file, for \[shared] and \[rollout].")
    ] = None,
    task: Annotated[
        TaskName,
        typer.Option(help="What is asked for; highlights are clips and scores, of qvhighlights."),
    ] = TaskName.moments,
    mode: Annotated[
        ModeName, typer.Option(help="mixed_oracle looks at the truth: an upper bound, no result.")
    ] = ModeName.answer,
    selector: Annotated[
        SelectorName, typer.Option(help="How mixed_selected chooses, without the truth.")
    ] = SelectorName.logprob,
    samples: Annotated[
        int | None,
        typer.Option(min=0, help="Further answers a query at temperature 1, for agreement."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest answer; default: the run file's, else 512, 1024 highlights, 2048 think.",
        ),
    ] = None,
    protocol_prompt: Annotated[
        PromptName, typer.Option(help="Words of the question.")
    ] = PromptName.ours,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", help="Go on without videos and annotations that are not usable."
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first queries.")] = None,
    shard: Annotated[str, typer.Option(help="i/n: the i-th of n parts.")] = "1/1",
    concurrency: Annotated[
        int, typer.Option(min=1, help="Questions in work in each replica.")
    ] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of --samples.")] = 0,
    report: Annotated[
        bool, typer.Option(help="Write report.html and tables as Markdown, LaTeX and CSV.")
    ] = True,
) -> None:
    """Answer benchmarks and score the answers under every protocol."""
    if context.invoked_subcommand is not None:
        return
    from jobs.evaluation.session import Plan

    if bench is None:
        raise ConfigError(f"--bench: found nothing, wanted one of {', '.join(BENCHMARKS)}, or rows")
    if video_root is None:
        raise ConfigError("--video-root: found nothing, wanted the folder of the videos")
    if out is None:
        raise ConfigError("--out: found nothing, wanted a folder for answers and figures")
    sent_as = check_options(
        openai, served_model=served_model, frames_as=frames_as, endpoint=endpoint
    )
    if model is None and not endpoint and openai is None:
        raise ConfigError(
            "found neither --model nor --endpoint nor --openai, wanted somebody who answers"
        )
    if selector is SelectorName.agreement and not mode.startswith("mixed"):
        raise ConfigError(
            f"--selector: found agreement with --mode {mode}, wanted mixed_selected or "
            "mixed_oracle: one mode leaves nothing to choose; --samples takes samples alone"
        )
    check_folder(out, knob="--out")
    console = terminal.console()
    run = config.load(run_config) if run_config is not None else None
    plan = Plan(
        benchmarks=benchmarks_named(bench),
        bench_dir=bench_dir,
        video_root=video_root.resolve(),
        out=out,
        task=task.value,
        mode=mode.value,
        selector=selector.value,
        prompt=protocol_prompt.value,
        sampling=answer_sampling(
            task=task.value,
            max_tokens=max_tokens or (None if run is None else run.shared.sampling.max_tokens),
            samples=samples,
            by_agreement=selector is SelectorName.agreement,
            seed=seed,
        ),
        video=_video(run, model=model, frames_as=sent_as, console=console),
        allow_missing=allow_missing,
        limit=limit,
        shard=parse_shard(shard),
        concurrency=concurrency,
    )
    try:
        with interruptible():
            if openai is not None:
                assert sent_as is not None
                server = opened(
                    openai,
                    served_model=served_model,
                    frames_as=sent_as,
                    wants_logprobs=True,
                    needs_logprobs=BY_SAMPLES if plan.chooses_by_logprob else "",
                    say=_said_on(console),
                )
                _with_server(plan, server, console=console)
            elif endpoint:
                check_endpoints(endpoint)
                _with_endpoints(plan, endpoint, model=model, console=console)
            else:
                assert model is not None
                _with_own_replica(plan, model, run_file=run_config, console=console)
            if report:
                _write_outputs(plan, console=console)
    except KeyboardInterrupt:
        console.print(f"interrupted; {out} keeps every answer, and the same command goes on")
        raise typer.Exit(130) from None


def _with_endpoints(
    plan: "Plan", endpoints: Sequence[str], *, model: str | None, console: "Console"
) -> None:
    from jobs.evaluation.session import prepare

    prepared = prepare(plan)
    digest = None
    if model is not None:
        digest = checkpoint_digest(fetched(model, knob="--model", say=_said_on(console)).path)
    token = tokens().of("generate")

    async def weights() -> tuple[int, str | None]:
        async with connected(endpoints, token=token) as clients:
            return await served(clients)

    with waiting(console, f"waiting for a replica at {' or '.join(endpoints)}"):
        version, run_tag = asyncio.run(weights())
    weights_served = Served(version=version, run_tag=run_tag, sha256=digest)
    runs = _open_all(plan, prepared, model=weights_served)
    _ask_all(plan, runs, endpoints=endpoints, token=token, console=console)


def _with_server(plan: "Plan", server: "Endpoint", *, console: "Console") -> None:
    from jobs.evaluation.session import prepare

    model = OpenAIServer(url=server.url, served_model=server.model, frames_as=server.frames_as)
    runs = _open_all(plan, prepare(plan), model=model)
    _ask_all(
        plan, runs, endpoints=[server.url], token=server.token, console=console, asker=server.ask
    )


def _with_own_replica(
    plan: "Plan", model: str, *, run_file: Path | None, console: "Console"
) -> None:
    from jobs.evaluation.session import prepare
    from jobs.local.replica import started

    prepared = prepare(plan)
    found = fetched(model, knob="--model", say=_said_on(console))
    with waiting(console, "reading the checkpoint"):
        checkpoint = Checkpoint(
            name=found.name, commit=found.commit, sha256=checkpoint_digest(found.path)
        )
    runs = _open_all(plan, prepared, model=checkpoint)
    if not any(left for _, _, left in runs):
        console.print("every question is answered already")
        _finish_all(plan, runs, console=console)
        return
    with started(found.path, run_file=run_file, folder=plan.out / "replica") as replica:
        with waiting(console, f"loading {found.name}, log in {replica.child.log}"):
            replica.wait_until_ready()
        _ask_all(
            plan,
            runs,
            endpoints=[replica.url],
            token=replica.token,
            console=console,
            replica=replica,
        )


Runs = Sequence[tuple["Prepared", RunSettings, int]]
"""Benchmarks, their settings, and how much is left to ask."""


def _open_all(
    plan: "Plan", prepared: Sequence["Prepared"], *, model: Model
) -> list[tuple["Prepared", RunSettings, int]]:
    from jobs.evaluation.session import open_run

    return [(one, *open_run(plan, one, model=model)) for one in prepared]


def _ask_all(
    plan: "Plan",
    runs: Runs,
    *,
    endpoints: Sequence[str],
    token: SecretStr | None,
    console: "Console",
    replica: "LocalReplica | None" = None,
    asker: Asker = ask_replica,
) -> None:
    from jobs.evaluation.session import LOCAL_RETRY_S, ask
    from jobs.evaluation.terminal import Bar

    async def ask_each() -> None:
        async with connected(endpoints, token=token, patience=FLEET_TIMEOUT) as clients:
            for prepared, settings, _ in runs:
                await ask(
                    plan,
                    prepared,
                    settings=settings,
                    clients=clients,
                    tally=Bar(progress, prepared.benchmark.name, settings.modes),
                    watch=None if replica is None else replica.watch,
                    retry_s=RETRY_S if replica is None else LOCAL_RETRY_S,
                    asker=asker,
                )

    with shown(terminal.bar(console)) as progress:
        asyncio.run(ask_each())
    _finish_all(plan, runs, console=console)


def _finish_all(plan: "Plan", runs: Runs, *, console: "Console") -> None:
    from jobs.evaluation.session import finish
    from jobs.evaluation.terminal import show

    for prepared, settings, _ in runs:
        summary = finish(plan, prepared, settings=settings)
        show(summary, bench=prepared.benchmark.name, console=console)
        console.print(f"written: {prepared.folder / 'summary.json'}")


def _write_outputs(plan: "Plan", *, console: "Console") -> None:
    from jobs.evaluation.benchmarks import find_video
    from jobs.evaluation.showing.outputs import write_outputs

    subsets = {benchmark.name: benchmark.subset for benchmark in plan.benchmarks}

    def find(bench: str, video: str) -> Path | None:
        return find_video(video, root=plan.video_root, subset=subsets.get(bench, ""))

    with waiting(console, "writing the report"):
        written = write_outputs(plan.out, find=find)
    for path in written:
        console.print(f"written: {path}")


def _said_on(console: "Console") -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, soft_wrap=True)


def _video(
    run: Run | None, *, model: str | None, frames_as: FramesAs | None, console: "Console"
) -> Video:
    """Frames as the run has them, else as SPEC A9 evaluates; any file may be sampled.

    A model that is not there is told here, before annotations are read; its weights, which may take
    minutes to fetch, come after them.
    """
    from jobs.local.replica import evaluation_sampling, sampling_of

    settings = None
    if model is not None:
        say = _said_on(console)
        settings = fetched(model, knob="--model", say=say, with_weights=False).path
    if run is not None:
        return run.shared.video.model_copy(update={"roots": (Path("/"),)})
    sampling = evaluation_sampling() if settings is None else sampling_of(settings)
    sampling = fewer_as_pictures(sampling, frames_as=frames_as)
    return Video(**sampling.model_dump(), roots=(Path("/"),))
