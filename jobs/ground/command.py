"""`tempsamp ground VIDEO "query"`: when does it happen? One question, spans with a confidence.

    video + query -> jobs.ground.asking -> jobs.ground.candidates -> table or --json
                                      jobs.ground.contact_sheet (--out), jobs.ground.cut (--cut)

Exit code 1 when no answer can be read, the video cannot be used or nobody answers; 2 for a mistake
in the options.
"""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from common import config
from common.answers.spans import Span
from common.errors import ConfigError, EngineError, VideoError
from common.messages import Sampling, Window
from common.prompts import chat_messages, grounding_problem
from common.queue.disk import check_file, writing
from common.video.sampling import VideoSampling
from jobs.asking.openai.endpoint import Endpoint
from jobs.asking.openai.media import FramesAs
from jobs.asking.openai.options import (
    FramesAsOption,
    OpenAIUrl,
    ServedModel,
    check_options,
    fewer_as_pictures,
    opened,
)
from jobs.ground.asking import Settings, answering, checkpoint_of, sample_video
from jobs.ground.candidates import AGREEMENT, Candidate, Grounding
from jobs.local import terminal
from jobs.local.replica import sampling_of
from jobs.local.waiting import waiting

if TYPE_CHECKING:
    from jobs.ground.cut import Cut

MAX_TOKENS = 512
"""Longest answer without a run file."""
MAX_LANES = 8
"""Candidates on the contact sheet; the table has all."""
SHOWN_CHARS = 200
"""Of an unreadable answer in the terminal; --json has all of it."""

console = terminal.console()
progress = terminal.console(stderr=True)


def command(
    video: Annotated[Path, typer.Argument(help="A video file, as the replica sees it too.")],
    query: Annotated[str, typer.Argument(help="What to look for, in words.")],
    endpoint: Annotated[
        list[str] | None, typer.Option(help="URL of a running replica; may be repeated.")
    ] = None,
    openai: OpenAIUrl = None,
    served_model: ServedModel = None,
    frames_as: FramesAsOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=r"Folder or ORG/NAME\[@revision] of the hub: a replica of it is started unless "
            "--endpoint or --openai is set."
        ),
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Run file, for its model, frames and sampling."),
    ] = None,
    start: Annotated[
        float, typer.Option(min=0, help="Ask about the video from here on, s; spans count from it.")
    ] = 0.0,
    end: Annotated[float | None, typer.Option(help="Ask about it up to here, s.")] = None,
    think: Annotated[bool, typer.Option("--think", help="Let the model reason first.")] = False,
    n: Annotated[
        int, typer.Option("--n", min=1, max=256, help="Samples; 1 asks for one greedy answer.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer. Default: the run file's, or 512.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Contact sheet. Default: NAME-ground.png, in this folder.")
    ] = None,
    cut: Annotated[
        Path | None, typer.Option(help="Also write the best span as a clip (mp4, mov, mkv, webm).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Find when something happens in a video."""
    sheet = Path(f"{video.stem}-ground.png") if out is None else out
    _check_options(query, video=video, sheet=sheet, clip=cut)
    sent_as = check_options(
        openai, served_model=served_model, frames_as=frames_as, endpoint=endpoint
    )
    run = None if config_file is None else config.load(config_file)
    # Weights, which take minutes to fetch, come after all that can be wrong with the video.
    is_read = run is None or not (endpoint or openai)
    checkpoint = checkpoint_of(model, run, with_weights=False, say=_say) if is_read else None
    settings = Settings(
        mode="think" if think else "answer",
        num_samples=0 if n == 1 else n,
        sampling=_sampling(run, seed=seed, max_tokens=max_tokens),
        video=_frames(run, checkpoint=checkpoint, sent_as=sent_as),
        window=_window(start, end),
    )
    try:
        clip = sample_video(video, settings=settings, window_knobs="--start and --end")
    except VideoError as error:  # the same words would meet it again
        raise ConfigError(str(error)) from error
    with answering(
        endpoint or [],
        server=_server(openai, served_model=served_model, sent_as=sent_as),
        model=model,
        run=run,
        run_file=config_file,
        say=_say,
        progress=progress,
    ) as asking:
        where = " and ".join([*(endpoint or []), *filter(None, [openai])]) or "the model"
        with waiting(progress, f"asking {where} when it happens"):
            found = asyncio.run(asking(clip, query=query, settings=settings))
    if as_json:
        _print_json(found, sheet=sheet, clip=cut)
    else:
        _print_table(found, sheet=sheet, clip=cut)
    if not found.candidates:
        raise EngineError(f"none of {len(found.answers)} answers could be read as a span")


def _check_options(query: str, *, video: Path, sheet: Path, clip: Path | None) -> None:
    """Refuse mistakes before a model is loaded."""
    from jobs.ground.cut import check_output

    if not query.strip():
        raise ConfigError("query: found no words, wanted what to look for")
    if sheet.suffix.lower() != ".png":
        raise ConfigError(f"--out: found {sheet}, wanted a .png")
    check_file(sheet, knob="--out", inputs=[video])
    if clip is not None:
        check_output(video, output=clip)
    try:
        chat_messages(grounding_problem(query, mode="answer"))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _window(start_s: float, end_s: float | None) -> Window | None:
    if end_s is not None and not start_s < end_s:
        raise ConfigError(f"--end: found {end_s} s, wanted more than --start, {start_s} s")
    return None if start_s == 0 and end_s is None else (start_s, end_s)


def _sampling(run: config.Run | None, *, seed: int, max_tokens: int | None) -> Sampling:
    sampling = Sampling(max_tokens=MAX_TOKENS) if run is None else run.shared.sampling
    changed = {"seed": seed} | ({} if max_tokens is None else {"max_tokens": max_tokens})
    return sampling.model_copy(update=changed)


def _say(text: str) -> None:
    progress.print(text, markup=False, soft_wrap=True)


def _server(
    url: str | None, *, served_model: str | None, sent_as: FramesAs | None
) -> Endpoint | None:
    if url is None or sent_as is None:
        return None
    return opened(url, served_model=served_model, frames_as=sent_as, wants_logprobs=True, say=_say)


def _frames(
    run: config.Run | None, *, checkpoint: Path | None, sent_as: FramesAs | None
) -> VideoSampling:
    """As the run trains with; else those of SPEC A9, in the patches of the checkpoint."""
    if run is not None:
        return run.shared.video
    sampling = VideoSampling() if checkpoint is None else sampling_of(checkpoint)
    return fewer_as_pictures(sampling, frames_as=sent_as)


def _print_json(found: Grounding, *, sheet: Path, clip: Path | None) -> None:
    """One document, also when sheet or clip cannot be written: the answer is there."""
    shown = found.model_dump(mode="json", exclude={"answers": {"__all__": {"tokens"}}})
    document = shown | {"sheet": None, "clips": []}
    try:
        _write_sheet(found, output=sheet)
        document["sheet"] = str(sheet)
        for made in _clips(found, output=clip):
            document["clips"].append(
                {
                    "path": str(made.path),
                    "start_s": made.start_s,
                    "end_s": made.end_s,
                    "lead_s": made.lead_s,
                    "missing_s": made.missing_s,
                    "has_audio": made.has_audio,
                }
            )
    finally:
        console.print_json(data=document)


def _print_table(found: Grounding, *, sheet: Path, clip: Path | None) -> None:
    console.print(f"[bold]{escape(found.query)}[/bold]")
    console.print(escape(_asked(found)), style="dim")
    if found.candidates:
        console.print(_table(found))
        console.print(f"confidence: {found.confidence_is}", style="dim")
    if found.candidates and found.num_samples:
        console.print(f"agreement: {AGREEMENT}", style="dim")
    unreadable = [answer for answer in found.answers if not answer.spans]
    if unreadable:
        console.print(f"{len(unreadable)} of {len(found.answers)} answers could not be read:")
    for answer in unreadable:
        remarks = ["greedy"] * answer.is_greedy + list(answer.notes)
        text = answer.text[:SHOWN_CHARS] + "\u2026" * (len(answer.text) > SHOWN_CHARS)
        line = f"  {text!r}" + (f" ({', '.join(remarks)})" if remarks else "")
        console.print(escape(line), soft_wrap=True)
    _write_sheet(found, output=sheet)
    console.print(f"sheet: {escape(str(sheet))}", soft_wrap=True)
    for made in _clips(found, output=clip):
        console.print(escape(f"clip: {made.path}, {made.in_words}"), soft_wrap=True)


def _table(found: Grounding) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "span", "confidence", "samples", "agreement", "remarks"):
        table.add_column(name, justify="left" if name in ("span", "remarks") else "right")
    for number, candidate in enumerate(found.candidates, 1):
        of_all = f"{candidate.num_samples} of {found.num_samples}" if found.num_samples else ""
        mean_iou = "" if candidate.agreement is None else f"{candidate.agreement:.2f}"
        remarks = [*["greedy answer"] * candidate.is_greedy, *candidate.notes]
        table.add_row(
            str(number),
            spans_in_words(candidate.spans),
            _percent(candidate.confidence),
            of_all,
            mean_iou,
            "; ".join(remarks),
            style="bold" if number == 1 else "",
        )
    return table


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.0%}"


def spans_in_words(spans: Sequence[Span]) -> str:
    """`1.00 to 2.50, 4.00 to 5.00 s`."""
    return ", ".join(f"{start:.2f} to {end:.2f}" for start, end in spans) + " s"


def _asked(found: Grounding) -> str:
    answers = f"greedy and {found.num_samples} samples" if found.num_samples else "greedy"
    who = found.served_model or f"weights {found.policy_version}"
    return (
        f"{Path(found.video).name} \u00b7 {found.asked_in_words} \u00b7 {found.mode} mode, "
        f"{answers} \u00b7 {who}"
    )


def _write_sheet(found: Grounding, *, output: Path) -> None:
    from jobs.ground.contact_sheet import Lane, Sheet, write_sheet

    notes = [_asked(found)]
    if found.candidates:
        notes.append(f"confidence: {found.confidence_is}")
        best = found.candidates[0]
        headline = f"{spans_in_words(best.spans)} \u00b7 confidence {_percent(best.confidence)}"
    else:
        headline = "no answer could be read"
    if found.num_unreadable:
        notes.append(f"{found.num_unreadable} of {len(found.answers)} answers could not be read")
    shown = found.candidates[:MAX_LANES]
    if unshown := len(found.candidates) - len(shown):
        notes.append(f"{unshown} less confident candidates are not shown")
    lanes = tuple(Lane(spans=c.spans, label=_lane_label(c, found)) for c in shown)
    sheet = Sheet(query=found.query, answer=headline, notes=tuple(notes), lanes=lanes)
    with writing(output, knob="--out"):
        write_sheet(found.video, sheet=sheet, output=output, window=found.window_s)


def _lane_label(candidate: Candidate, found: Grounding) -> str:
    parts = [spans_in_words(candidate.spans)]
    if found.num_samples:
        parts.append(f"{candidate.num_samples} of {found.num_samples} samples")
    if candidate.is_greedy:
        parts.append("greedy answer")
    return " \u00b7 ".join([*parts, *candidate.notes])


def _clips(found: Grounding, *, output: Path | None) -> "Iterator[Cut]":
    """Cut the best candidate; several spans become several numbered files."""
    from jobs.ground.cut import cut

    if output is None or not found.candidates:
        return
    spans = found.in_file(found.candidates[0].spans)
    for number, span in enumerate(spans, 1):
        name = output.name if len(spans) == 1 else f"{output.stem}-{number}{output.suffix}"
        yield cut(found.video, span=span, output=output.with_name(name))
