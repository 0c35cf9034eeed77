"""A prediction file and its annotations → every figure that is said about them; no model, no GPU.

    predictions + annotations -> match -> judge under every protocol -> Score

The figures of `exact`, which are ours, stand beside those of the protocols that others publish by.
Nothing is left out or counted as wrong without being counted by kind. Neighbours:
`jobs.data.annotations` reads truths, `jobs.evaluation.showing.tables` makes tables of a `Score`.
"""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict, Field

from jobs.data.annotations.reading import read
from jobs.data.annotations.records import Annotation, BadRecord
from jobs.evaluation.scoring.breakdown import Breakdown, breakdowns
from jobs.evaluation.scoring.intervals import Interval, mean_interval, mean_intervals
from jobs.evaluation.scoring.matching import Matched, Pair, Question, match, own_questions
from jobs.evaluation.scoring.modes import label_of
from jobs.evaluation.scoring.predictions import AnswerMode, Format, PredictionFile, read_predictions
from jobs.evaluation.scoring.protocols import PROTOCOLS, THRESHOLDS, Judgement, Readings, judge
from jobs.evaluation.scoring.published import Published, rows_for
from jobs.evaluation.scoring.qvhighlights import HighlightScore, score_highlights
from jobs.local.collector import nothing_collected

BENCHES: Mapping[str, str] = MappingProxyType(
    {
        "charades-timelens": "timelens",
        "activitynet-timelens": "timelens",
        "qvhighlights-timelens": "timelens",
        "charades-sta": "timezero",
        "activitynet-captions": "timezero",
        "qvhighlights": "moment_detr",
        "tvgbench": "timezero",
        "rows": "seed",
    }
)
"""Benchmark → the protocol its published figures mostly follow; `rows` is any trainer file."""
QVHIGHLIGHTS = "qvhighlights"


class ProtocolScore(BaseModel):
    """One protocol's figures, in percent with 95 % intervals; None when nothing is scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scored: int
    """Predictions that count: the denominator."""
    parse_rate: float | None
    """Share of answers that could be read, in [0, 1]; failures are no answers."""
    failures: Mapping[str, int]
    """Predictions without a span, by kind."""
    reversed: int
    """Answers with a span written end first."""
    collapsed: int
    """Predictions that a later one of the same key replaced."""
    miou: Interval | None
    recall: Mapping[str, Interval]
    """R1 by threshold."""


class Score(BaseModel):
    """Everything that is said about one prediction file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bench: str
    official: str
    """The protocol that the benchmark's published figures mostly follow."""
    format: Format
    mode: AnswerMode | None = None
    """In which our files were answered; None when the file does not say."""
    label: str | None = None
    """What that mode is called; says so where the truth was looked at."""
    predictions: int
    """In the file."""
    truncated_lines: int
    """Cut while being written, dropped."""
    unknown: int
    """Predictions without an annotation, left out."""
    unknown_nearest: Mapping[str, str | None] = Field(default_factory=dict)
    """The first of them, each with the video, query or id of an annotation that is nearest."""
    unanswered: int
    """Annotations without a prediction, left out."""
    bad_annotations: int
    """Records of the annotation file that could not be read, left out."""
    without_duration: int
    """Scored annotations that do not say how long their clip is."""
    impossible_truths: int
    """Scored annotations with a span that ends before it starts: no answer can be right."""
    protocols: Mapping[str, ProtocolScore]
    not_computed: Mapping[str, str]
    """Protocols that do not apply, and why."""
    highlights: HighlightScore | None
    breakdowns: tuple[Breakdown, ...]
    """Of the exact protocol."""
    published: tuple[Published, ...]


def score_file(path: Path, *, bench: str, gt: Path | None = None, partial: bool = False) -> Score:
    """Score predictions on a benchmark.

    Args:
        path: of one of the formats of `read_predictions`. bench: one of `BENCHES`. gt: annotations
        of any schema of `jobs.data.annotations`; None takes the truths that our files
            and TimeLens' repeat.
        partial: leave out what only one side has, and annotations that cannot be read.

    Raises:
        ValueError: unknown benchmark, or a file that cannot be used; says what, where and the knob.
    """
    _check_bench(bench)
    with nothing_collected():
        file = read_predictions(path)
        if gt is None:
            questions, bad = own_questions(file.predictions), 0
        else:
            questions, bad = read_questions(gt, partial=partial)
        matched = match(file.predictions, questions=questions, partial=partial)
        return score_matched(matched, file=file, bench=bench, bad_annotations=bad)


def score_matched(
    matched: Matched, *, file: PredictionFile, bench: str, bad_annotations: int = 0
) -> Score:
    """Every figure of predictions that have their annotations beside them.

    Raises:
        ValueError: the benchmark is QVHighlights and an annotation lacks what its evaluator needs.
    """
    pairs = matched.pairs
    highlights = score_highlights(pairs) if bench == QVHIGHLIGHTS else None
    if highlights is None or highlights.has_moments:
        judgements, not_computed = _judgements(pairs)
    else:
        judgements, not_computed = {}, dict.fromkeys(PROTOCOLS, "no answer gives a span")
    exact = judgements.get("exact")
    return Score(
        bench=bench,
        official=BENCHES[bench],
        format=file.format,
        mode=file.mode,
        label=None if file.mode is None else label_of(file.mode),
        predictions=len(file.predictions),
        truncated_lines=file.truncated_lines,
        unknown=matched.unknown,
        unknown_nearest=matched.nearest,
        unanswered=matched.unanswered,
        bad_annotations=bad_annotations,
        without_duration=sum(question.duration_s is None for _, question in pairs),
        impossible_truths=sum(_is_impossible(question) for _, question in pairs),
        protocols=_protocol_scores(judgements),
        not_computed=not_computed,
        highlights=highlights,
        breakdowns=() if exact is None else breakdowns(pairs, judgement=exact),
        published=rows_for(bench),
    )


def read_questions(path: Path, *, partial: bool = False) -> tuple[list[Question], int]:
    """Annotated queries of a file, and how many records could not be read.

    Raises:
        ValueError: no file there, a record that cannot be read (unless `partial`), one without a
            true span, or a time that is no number.
    """
    if not path.is_file():
        there = "a folder" if path.is_dir() else "no file there"
        raise ValueError(f"--gt: found {path}, {there}, wanted an annotation file")
    questions, bad = [], 0
    for record in read(path):
        if isinstance(record, Annotation):
            questions.append(question_of(record, path=path))
        elif partial:
            bad += 1
        else:
            raise _unreadable(record, path)
    if not questions:
        raise ValueError(f"{path}: found no annotations, wanted at least one")
    return questions, bad


def question_of(annotation: Annotation, *, path: Path) -> Question:
    """An annotation as something that can be scored; its id is the file's own or its position."""
    where = f"{path}: {annotation.position}"
    if not annotation.spans:
        raise ValueError(f"{where}: found no true span, wanted one: is this a test set's file?")
    if not all(math.isfinite(time_s) for span in annotation.spans for time_s in span):
        raise ValueError(f"{where}: found the true spans {annotation.spans}, wanted numbers")
    return Question(
        id=annotation.qid or annotation.position,
        video=annotation.video,
        query=annotation.query or annotation.problem or "",
        spans=annotation.spans,
        duration_s=annotation.duration_s,
        clip_ids=tuple(annotation.extras.get("relevant_clip_ids", ())),
        saliency=tuple(map(tuple, annotation.extras.get("saliency_scores", ()))),
    )


def _unreadable(record: BadRecord, path: Path) -> ValueError:
    return ValueError(
        f"{path}: {record.position}: {record.reason}: {record.detail}; --partial leaves such "
        "annotations out and counts them"
    )


def _check_bench(name: str) -> None:
    if name not in BENCHES:
        near = get_close_matches(name, BENCHES, n=3, cutoff=0.4)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ValueError(f"--bench: found {name!r}, wanted one of {', '.join(BENCHES)}{hint}")


def _judgements(pairs: Sequence[Pair]) -> tuple[dict[str, Judgement], dict[str, str]]:
    """Every protocol that applies, and why the others do not."""
    several = sum(len(question.spans) != 1 for _, question in pairs)
    found, not_computed, readings = {}, {}, Readings()
    for name, rules in PROTOCOLS.items():
        if several and not rules.all_spans:
            not_computed[name] = f"{several} annotations have several true spans"
        else:
            found[name] = judge(pairs, protocol=name, readings=readings)
    return found, not_computed


def _protocol_scores(judgements: Mapping[str, Judgement]) -> dict[str, ProtocolScore]:
    """Most protocols score the same queries, so that their intervals share the draws."""
    columns = {name: found.scored_ious for name, found in judgements.items()}
    intervals: dict[str, Interval] = {}
    for count in {len(ious) for ious in columns.values()} - {0}:
        names = [name for name, ious in columns.items() if len(ious) == count]
        found = mean_intervals([columns[name] for name in names])
        intervals |= zip(names, found, strict=True)
    return {
        name: _protocol_score(judgement, miou=intervals.get(name))
        for name, judgement in judgements.items()
    }


def _protocol_score(judgement: Judgement, *, miou: Interval | None) -> ProtocolScore:
    thresholds = () if miou is None else THRESHOLDS
    return ProtocolScore(
        scored=len(judgement.scored_ious),
        parse_rate=None if math.isnan(judgement.parse_rate) else judgement.parse_rate,
        failures=judgement.failures,
        reversed=judgement.reversed,
        collapsed=judgement.collapsed,
        miou=None if miou is None else _percent(miou, mean=judgement.miou),
        recall={
            str(at): _percent(mean_interval(judgement.hits(at)), mean=judgement.recall(at))
            for at in thresholds
        },
    )


def _percent(interval: Interval, *, mean: float) -> Interval:
    """The ends of an interval of shares around a mean that is in percent already."""
    return Interval(mean=mean, low=100 * interval.low, high=100 * interval.high)


def _is_impossible(question: Question) -> bool:
    return any(end < start for start, end in question.spans)
