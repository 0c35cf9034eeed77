"""A finished `tempsamp eval` on disk → its tables and its page: `write_outputs(out, find=…)`.

    OUT/<bench>/{summary.json, predictions*.jsonl} -> OUT/tables.{md,tex,csv}, OUT/report.html

Everything is read back from the folder, so that benchmarks of earlier calls are on the page too and
a page can be made again. Imports matplotlib and decoders: commands import this when they write.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from common.errors import ConfigError
from common.messages import Mode
from jobs.asking.answers import endings_in_words
from jobs.evaluation.comparing.runs import read_run
from jobs.evaluation.journal import PATTERN, read_records
from jobs.evaluation.scoring.matching import Pair, Question, match, own_questions
from jobs.evaluation.scoring.modes import label_of
from jobs.evaluation.settings import Checkpoint, OpenAIServer, RunSettings
from jobs.evaluation.showing.grids import Grid
from jobs.evaluation.showing.report import REPORT_FILE, Reported, write_report
from jobs.evaluation.showing.tables import Scored, write_tables
from jobs.evaluation.summary import FILE, Mixed, Summary

MODES: tuple[Mode, ...] = ("answer", "think")

FindVideo = Callable[[str, str], Path | None]
"""(benchmark, video as annotated) → its file, None if it is not there."""


def write_outputs(out: Path, *, find: FindVideo) -> tuple[Path, ...]:
    """Write the tables and the page of all benchmarks of a run that have a score.

    Args:
        out: folder of the run.
        find: where videos are, for the frames of the timelines.

    Returns:
        The files written; none when nothing is scored yet.

    Raises:
        ConfigError: a file of the run cannot be read; says which.
    """
    run = list(_reported_benches(out, find))
    if not run:
        return ()
    settings = [settings for settings, _ in run]
    reported = [reported for _, reported in run]
    tables = write_tables(out, run=[one.scored for one in reported])
    page = out / REPORT_FILE
    title = ", ".join(dict.fromkeys(one.model_name for one in settings))
    write_report(page, run=reported, title=title, facts=_facts(settings[0]))
    return (*tables, page)


def _reported_benches(out: Path, find: FindVideo) -> Iterator[tuple[RunSettings, Reported]]:
    for path in sorted(out.glob(f"*/{FILE}")):
        try:
            summary = Summary.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ConfigError(
                f"{path}: found no summary of a run ({_first(error)}), wanted one: delete it; "
                "the command that wrote it makes it again from the answers beside it"
            ) from error
        if summary.score is not None:
            yield summary.settings, reported(path.parent, summary, find=find)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")


def reported(folder: Path, summary: Summary, *, find: FindVideo) -> Reported:
    """One scored benchmark of a run, read back."""
    assert summary.score is not None
    settings = summary.settings
    # Charts and cases are of spans; the figures of highlights are all in the tables.
    pairs = _pairs(folder) if settings.task == "moments" else ()
    asked = {question.id for _, question in pairs}

    def video(question: Question) -> Path | None:
        return find(settings.bench, question.video)

    return Reported(
        scored=Scored(
            # Both parts of one benchmark are scored by its rules; the tables tell them apart.
            score=summary.score.model_copy(update={"bench": settings.bench}),
            model=settings.model_name,
            mode=settings.mode,
        ),
        pairs=pairs,
        by_mode={
            mode: [pair for pair in _pairs(folder / mode) if pair[1].id in asked]
            for mode in MODES
            if any((folder / mode).glob(PATTERN))
        },
        errors={one.id: one.error for one in read_records(folder) if one.error is not None},
        video=video,
        notes=_notes(summary),
        grids=() if summary.mixed is None else (_choices(summary.mixed, bench=settings.bench),),
    )


def _pairs(folder: Path) -> Sequence[Pair]:
    (answers,) = read_run(folder).benches.values()
    return match(answers.predictions, questions=own_questions(answers.predictions)).pairs


def _facts(settings: RunSettings) -> list[tuple[str, str]]:
    model = settings.model
    commit = model.commit if isinstance(model, Checkpoint) else None
    server = model if isinstance(model, OpenAIServer) else None
    lengths = dict.fromkeys(str(number) for number in settings.sampling.max_tokens.values())
    return [
        *([("commit of the model", commit)] if commit else []),
        *([("server", server.url), ("frames as", server.frames_as)] if server else []),
        ("mode", label_of(settings.mode)),
        ("prompt", settings.prompt),
        ("frames per second", f"{settings.clip.fps:g}"),
        ("longest answer", f"{' and '.join(lengths)} tokens"),
        ("seed", str(settings.sampling.seed)),
    ]


def _notes(summary: Summary) -> list[str]:
    """What is in no figure is said before the figures."""
    notes = [f"{summary.answered:,} of {summary.queries:,} queries done."]
    if missing := summary.missing_videos:
        notes.append(
            f"In no figure: {sum(missing.values()):,} queries of {len(missing):,} missing videos."
        )
    if unusable := summary.unusable_annotations:
        notes.append(f"In no figure: {len(unusable):,} annotations that cannot be used.")
    if endings := endings_in_words(summary.endings):
        notes.append(f"Of the answers, {', '.join(endings)}.")
    return notes


def _choices(mixed: Mixed, *, bench: str) -> Grid:
    return Grid(
        title=f"{bench}, which of two answers, {mixed.queries:,} queries (exact)",
        headings=("choice", "mIoU", "took the thought's, %"),
        rows=tuple(
            (name, miou, 100 * mixed.think_chosen[name]) for name, miou in mixed.miou.items()
        ),
        note="The oracle looks at the truth: an upper bound, no result.",
    )
