"""Two answers to one query, with and without thought → the one to use. Pure.

`mixed_selected` chooses without the truth: by `logprob` (mean over the tokens of the answer) or by
`agreement` (how much further samples of a mode overlap each other). `mixed_oracle` looks at the
truth, as the paper's Mixed CoT does (SPEC B4): an upper bound, and called so wherever it is shown.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Literal

from common.answers.reading import read_spans
from common.answers.spans import union_iou
from common.answers.tags import ANSWER_CLOSE, ANSWER_OPEN, find_answer, fold
from jobs.asking.answers import Answer
from jobs.evaluation.scoring.predictions import AnswerMode, PredictionRecord

Selector = Literal["logprob", "agreement"]
ORACLE_LABEL = "oracle (uses the truth)"


def label_of(mode: AnswerMode) -> str:
    """What a mode is called wherever its figures are shown."""
    return f"mixed {ORACLE_LABEL}" if mode == "mixed_oracle" else mode


def answer_logprob(answer: Answer) -> float | None:
    """Mean log-probability of the tokens inside the answer block, nats, <= 0.

    A token belongs to the block if any of its characters does. None without a closed block, or
    when the server did not say where its tokens end, or how probable they are.
    """
    inside = _answer_range(answer.text)
    if inside is None or not answer.token_ends or answer.logprobs is None:
        return None
    begin, end = inside
    starts = (0, *answer.token_ends[:-1])
    chosen = [
        logprob
        for start, stop, logprob in zip(starts, answer.token_ends, answer.logprobs, strict=True)
        if start < end and stop > begin and stop > start
    ]
    return fmean(chosen) if chosen else None


def self_agreement(samples: Sequence[str]) -> float:
    """Mean IoU over all pairs of sampled answers, in [0, 1]; an unreadable one agrees with none.

    Raises:
        ValueError: fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError(f"found {len(samples)} samples, wanted at least 2: --samples")
    read = [read_spans(text).used for text in samples]
    return fmean(
        union_iou(one, other) if one and other else 0.0
        for one, other in itertools.combinations(read, 2)
    )


def true_iou(record: PredictionRecord) -> float:
    """IoU with the truth as the `exact` protocol has it; 0 for a failure or an unreadable text."""
    spans = read_spans(record.text or "").used
    return union_iou(spans, record.gt) if spans else 0.0


def select(answer: PredictionRecord, *, think: PredictionRecord, by: Selector) -> PredictionRecord:
    """The better of two answers as far as can be known without the truth.

    Readable wins over unreadable, an answer over a failure; of equals, the one without thought,
    which costs less.
    """
    chosen = better(answer, think=think, by=SELECTORS[by])
    return chosen.model_copy(update={"mode": "mixed_selected"})


def oracle(answer: PredictionRecord, *, think: PredictionRecord) -> PredictionRecord:
    """The better of two answers by their IoU with the truth: an upper bound, no result."""
    chosen = better(answer, think=think, by=true_iou)
    return chosen.model_copy(update={"mode": "mixed_oracle"})


def better(
    answer: PredictionRecord, *, think: PredictionRecord, by: Callable[[PredictionRecord], float]
) -> PredictionRecord:
    """One of the two themselves: the more usable one, of these the one with more of `by`."""
    return max((answer, think), key=lambda record: (_usable(record), by(record)))


def _logprob(record: PredictionRecord) -> float:
    return -float("inf") if record.answer_logprob is None else record.answer_logprob


def _agreement(record: PredictionRecord) -> float:
    return self_agreement(record.samples) if record.failure is None else 0.0


SELECTORS: Mapping[Selector, Callable[[PredictionRecord], float]] = {
    "logprob": _logprob,
    "agreement": _agreement,
}
"""Confidence in an answer; only comparisons between the two answers to one query mean anything."""


def _usable(record: PredictionRecord) -> int:
    """2 readable, 1 unreadable, 0 no answer."""
    if record.failure is not None:
        return 0
    return 2 if read_spans(record.text or "").used else 1


def _answer_range(text: str) -> tuple[int, int] | None:
    """Where the inside of the answer block that is read begins and ends."""
    found = find_answer(text)
    if not found.tagged:
        return None
    folded = fold(text)
    # A thought may hold a block of its own; the one that is read comes after it.
    begin = folded.rfind(ANSWER_OPEN + fold(found.text) + ANSWER_CLOSE)
    if begin < 0:
        return None
    begin += len(ANSWER_OPEN)
    return begin, begin + len(found.text)
