"""What a run came to: records of one benchmark → `summary.json`, and the mixed predictions.

    journals of both modes -> mix() -> predictions.jsonl -> summarize() -> Summary

Neighbours: `jobs.evaluation.command` calls; `jobs.evaluation.scoring.score` computes the figures.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from pydantic import BaseModel, ConfigDict, Field

from common.queue.disk import write_file
from jobs.evaluation.journal import ALL_KEPT, PATTERN
from jobs.evaluation.questions import Questions
from jobs.evaluation.scoring.matching import match
from jobs.evaluation.scoring.modes import (
    ORACLE_LABEL,
    SELECTORS,
    Selector,
    better,
    label_of,
    oracle,
    select,
    true_iou,
)
from jobs.evaluation.scoring.predictions import PredictionFile, PredictionRecord, read_predictions
from jobs.evaluation.scoring.score import Score, score_matched
from jobs.evaluation.settings import RunSettings

FILE = "summary.json"

Pairs = Sequence[tuple[PredictionRecord, PredictionRecord]]
"""Both answers to each query: without thought, with it."""


class Mixed(BaseModel):
    """Ways to choose between two answers, on the queries that both modes answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queries: int
    miou: Mapping[str, float]
    """Percent, by what is used: answer, think, a selector, or the oracle."""
    think_chosen: Mapping[str, float]
    """Share of queries for which the thought's answer was taken, in [0, 1]."""


class Summary(BaseModel):
    """`summary.json` of one benchmark."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    """What the figures are; says so where the truth was looked at."""
    fingerprint: str
    settings: RunSettings
    queries: int
    """That could be asked, over all shards."""
    answered: int
    """Of these, with an answer or a counted failure."""
    missing_videos: Mapping[str, int]
    """Queries by video that was not there; in no figure."""
    unusable_annotations: tuple[str, ...]
    """In no figure."""
    endings: Mapping[str, int] = Field(default_factory=dict)
    """Answers that did not end by themselves: cut off (length), refused, held back by a filter."""
    prompt_tokens: int | None = None
    """Of all requests that were answered; None where a server does not count them."""
    completion_tokens: int | None = None
    """Of all answers."""
    score: Score | None
    """None as long as nothing was asked."""
    mixed: Mixed | None = None


def summarize(
    folder: Path,
    *,
    settings: RunSettings,
    questions: Questions,
    scored_as: str,
    records: Sequence[PredictionRecord],
    mixed: Pairs,
    knob: str = "--out",
) -> Summary:
    """Score everything that all shards have answered, and write it down.

    Args:
        folder: of the benchmark.
        settings: of the run.
        questions: of all shards.
        scored_as: key of `jobs.evaluation.scoring.score.BENCHES`.
        records: everything that was answered, in every mode.
        mixed: both answers of each query; empty unless the mode mixes.
        knob: what names the folder.

    Raises:
        OutputError: it cannot be written.
    """
    files = [path for path in sorted(folder.glob(PATTERN)) if path.stat().st_size]
    predictions = tuple(one for path in files for one in read_predictions(path).predictions)
    score = None
    if predictions:
        truths = [asked.question for asked in questions.asked]
        score = score_matched(
            match(predictions, questions=truths, partial=True),
            file=PredictionFile(
                format="tempsamp", predictions=predictions, truncated_lines=0, mode=settings.mode
            ),
            bench=scored_as,
        )
    summary = Summary(
        label=label_of(settings.mode),
        fingerprint=settings.fingerprint,
        settings=settings,
        queries=len(questions.asked),
        answered=0 if score is None else score.predictions - score.unknown,
        missing_videos=questions.missing,
        unusable_annotations=questions.unusable,
        endings=dict(Counter(one.ending for one in records if one.ending is not None)),
        prompt_tokens=_sum(record.prompt_tokens for record in records),
        completion_tokens=_sum(record.completion_tokens for record in records),
        score=score,
        mixed=compare_choices(mixed),
    )
    write_file(folder / FILE, summary.model_dump_json(indent=1) + "\n", knob=knob, kept=ALL_KEPT)
    return summary


def compare_choices(pairs: Pairs) -> Mixed | None:
    """mIoU of each way to choose, where both modes answered; None where they nowhere did.

    `agreement` is there only if further samples were taken, `logprob` only if a server gave any.
    """
    both = [pair for pair in pairs if pair[0].failure is None and pair[1].failure is None]
    if not both:
        return None
    sampled = all(one.samples and two.samples for one, two in both)
    weighed = any(record.answer_logprob is not None for pair in both for record in pair)
    usable = {"agreement": sampled, "logprob": weighed}
    ways: dict[str, Callable[[PredictionRecord], float]] = {
        name: way for name, way in SELECTORS.items() if usable[name]
    }
    ways[ORACLE_LABEL] = true_iou
    chosen = {
        "answer": [answer for answer, _ in both],
        "think": [think for _, think in both],
        **{
            name: [better(answer, think=think, by=way) for answer, think in both]
            for name, way in ways.items()
        },
    }
    return Mixed(
        queries=len(both),
        miou={name: 100 * fmean(map(true_iou, records)) for name, records in chosen.items()},
        think_chosen={
            name: fmean(record is think for record, (_, think) in zip(records, both, strict=True))
            for name, records in chosen.items()
        },
    )


def mix(
    answers: Sequence[PredictionRecord],
    *,
    thoughts: Sequence[PredictionRecord],
    by: Selector | None,
) -> list[PredictionRecord]:
    """One record a query that both modes have.

    Args:
        answers: without thought.
        thoughts: with it.
        by: the selector; None is the oracle.
    """
    return [
        oracle(answer, think=think) if by is None else select(answer, think=think, by=by)
        for answer, think in paired(answers, thoughts=thoughts)
    ]


def paired(answers: Sequence[PredictionRecord], *, thoughts: Sequence[PredictionRecord]) -> Pairs:
    """Records of both modes by query, in the order of `answers`."""
    by_id = {record.id: record for record in thoughts}
    return [(record, by_id[record.id]) for record in answers if record.id in by_id]


def _sum(counts: Iterable[int | None]) -> int | None:
    """None where nobody counted."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
