"""QVHighlights pairs → its evaluator's figures, official and exact: `score_highlights(pairs)`.

Windows and clip scores of detectors are taken as they are. A text answer that reads as highlights
becomes clip scores; any other becomes windows in the order of the text, unless highlights were
asked for: then it could not be read. Between `jobs.evaluation.scoring.matching` and
`jobs.evaluation.scoring.moment_detr`.

Official is what the published evaluation of text answers does: whatever cannot be used is a vector
of zeros, and a vector of zeros is not worth 0. Exact gives an unreadable answer 0, and leaves clip
and engine failures out, as the `exact` protocol does.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.answers.reading import read_spans
from jobs.evaluation.scoring.highlights_text import clip_scores
from jobs.evaluation.scoring.matching import Pair, Question
from jobs.evaluation.scoring.moment_detr import Metrics, Submission, Truth, evaluate
from jobs.evaluation.scoring.predictions import Prediction
from jobs.evaluation.scoring.protocols import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class HighlightScore:
    """What the evaluator says about a file."""

    official: Metrics
    exact: Metrics | None
    """None when every prediction failed."""
    failures: Mapping[str, int]
    """Predictions without a window or highlight, by kind: parse, video, engine."""
    parse_rate: float | None
    """Share of answers that could be read, in [0, 1]; failures are no answers."""

    @property
    def unreadable(self) -> int:
        """Answers without a window or highlight."""
        return self.failures["parse"]

    @property
    def has_moments(self) -> bool:
        """Whether a window was predicted for any query."""
        return "full" in self.official


def score_highlights(pairs: Sequence[Pair]) -> HighlightScore:
    """Both readings of QVHighlights predictions.

    Raises:
        ValueError: an annotation has no duration or no window, or rates a clip it has not.
    """
    truths = {question.id: truth_of(question) for _, question in pairs}
    found = {
        question.id: _submission(prediction, truths[question.id]) for prediction, question in pairs
    }
    moments = any(submission.windows for submission in found.values())
    highlights = any(submission.saliency is not None for submission in found.values()) or any(
        prediction.ratings is not None for prediction, _ in pairs
    )
    kinds = Counter(_kind(prediction, found[question.id]) for prediction, question in pairs)
    num_answers = kinds["answered"] + kinds["parse"]
    failed = {question.id for prediction, question in pairs if prediction.failure is not None}
    answered = {qid: truth for qid, truth in truths.items() if qid not in failed}
    return HighlightScore(
        official=evaluate(
            truths,
            submissions={qid: _filled(submission) for qid, submission in found.items()},
            moments=moments,
            highlights=highlights,
        ),
        exact=evaluate(
            answered,
            submissions={qid: found[qid] for qid in answered},
            moments=moments,
            highlights=highlights,
        )
        if answered
        else None,
        failures={kind: kinds[kind] for kind in ("parse", "video", "engine")},
        parse_rate=kinds["answered"] / num_answers if num_answers else None,
    )


def truth_of(question: Question) -> Truth:
    """An annotation as the evaluator takes it.

    Raises:
        ValueError: it has no duration.
    """
    if question.duration_s is None:
        raise ValueError(f"annotation {question.id!r}: found no duration, wanted it to count clips")
    return Truth(
        windows=question.spans,
        duration_s=question.duration_s,
        clip_ids=question.clip_ids,
        saliency=question.saliency,
    )


def _submission(prediction: Prediction, truth: Truth) -> Submission:
    if prediction.failure is not None:
        return Submission()
    if prediction.windows is not None or prediction.saliency is not None:
        return Submission(windows=prediction.windows or (), saliency=prediction.saliency)
    text = prediction.text or ""
    if clips := clip_scores(text, duration_s=truth.duration_s):
        return Submission(saliency=clips.scores)
    if prediction.ratings is not None:
        return Submission()
    spans = read_spans(text).used if prediction.spans is None else prediction.spans
    return Submission(windows=[(start, end, 0.0) for start, end in spans])


def _kind(prediction: Prediction, submission: Submission) -> Kind:
    if prediction.failure is not None:
        return prediction.failure
    return "answered" if submission.windows or submission.saliency is not None else "parse"


def _filled(submission: Submission) -> Submission:
    if submission.saliency is not None:
        return submission
    return Submission(windows=submission.windows, saliency=(0.0,))
