"""Answers to one question → `Candidate`s, each with a confidence. Pure.

    Reply of jobs.asking -> ground -> Grounding -> jobs.ground.command shows it

With one greedy answer, its confidence is the geometric mean of its tokens' probabilities; a server
that gives none leaves it unknown. With samples, it is the share of them that agree: answers whose
spans overlap with IoU >= `SAME_IOU` are one candidate, shown by the answer that all samples agree
on best. Every sample counts, so an unreadable one lowers the confidence of all candidates; nothing
is clipped or dropped.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from pydantic import BaseModel, ConfigDict

from common.answers.reading import read_spans
from common.answers.spans import Span, union_iou
from common.messages import ClipRef, Mode, Window
from common.video.windows import window_in_words
from jobs.asking.answers import Answer as Given
from jobs.asking.answers import Reply, one_version
from jobs.evaluation.scoring.modes import answer_logprob

SAME_IOU = 0.5
"""Answers that overlap this much are one candidate."""
ROUNDING_S = 0.005
"""Half of the last printed digit: an answer that leaves the video by less is not marked."""
SHARE = (
    f"share of all samples whose spans overlap these with IoU >= {SAME_IOU}; an unreadable one "
    "counts against it"
)
AGREEMENT = "mean IoU with the other samples"
PROBABILITY = "geometric mean of the probabilities of the answer's tokens under the model"
UNKNOWN = "unknown: the server gives no log-probabilities; samples (--n 8) would say how many agree"
ODD = {"refusal": "the model refused", "content_filter": "held back by a content filter"}


class Token(BaseModel):
    """A piece of an answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    """Empty for a stop token, or a part of a character that a later one ends."""
    logprob: float
    """Nats, <= 0."""


class Answer(BaseModel):
    """One answer of the model, read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    is_greedy: bool
    spans: tuple[Span, ...]
    """As written, in seconds, a reversed one put in order; empty if it cannot be read."""
    token_probability: float | None
    """Geometric mean over the tokens of its answer block, or of all its text without one; 0 to 1.
    None where the server does not give it."""
    notes: tuple[str, ...]
    """What is odd about it: outside the video, reversed, cut off."""
    tokens: tuple[Token, ...] = ()
    """All of its text; empty where the server does not say where its tokens end."""


class Candidate(BaseModel):
    """Answers that agree."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spans: tuple[Span, ...]
    """Of the answer that agrees best with all samples."""
    confidence: float | None
    """0 to 1; what it is, and why it may be None, stands in `Grounding.confidence_is`."""
    num_samples: int
    """Samples among its answers; 0 for a greedy answer that no sample agrees with."""
    agreement: float | None
    """Mean IoU with the other samples, an unreadable one counting 0; None without samples."""
    is_greedy: bool
    """Whether the greedy answer is among its answers."""
    notes: tuple[str, ...]


class Grounding(BaseModel):
    """Everything that was asked and answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    video: str
    query: str
    mode: Mode
    duration_s: float
    """Of what was asked about."""
    window_s: Window | None = None
    """Part of the video that was asked about, from which spans count; None is all of it."""
    policy_version: int | None
    """None of a server that is no replica."""
    served_model: str | None = None
    """What such a server calls the model."""
    num_samples: int
    """Samples beside the greedy answer."""
    num_unreadable: int
    """Of all answers."""
    confidence_is: str
    candidates: tuple[Candidate, ...]
    """The most confident first."""
    answers: tuple[Answer, ...]
    """The greedy one first."""

    def in_file(self, spans: Sequence[Span]) -> list[Span]:
        """Spans of candidates, counted from the first frame of the file."""
        start_s = 0.0 if self.window_s is None else self.window_s[0]
        return [(start_s + start, start_s + end) for start, end in spans]

    @property
    def asked_in_words(self) -> str:
        """`10.00 s`, or `2.75 s (1.50 to 4.25 s of it)`."""
        part = "" if self.window_s is None else f" ({window_in_words(self.window_s)} of it)"
        return f"{self.duration_s:.2f} s{part}"


def ground(
    clip: ClipRef,
    *,
    query: str,
    mode: Mode,
    replies: Sequence[Reply],
    served_model: str | None = None,
) -> Grounding:
    """Answers → candidates, the most confident first.

    Args:
        clip: what was asked about.
        query: what was looked for.
        mode: of the prompt.
        replies: to the greedy request and, if there was one, to the request for samples.
        served_model: of a server that is no replica.

    Raises:
        EngineError: the replies are of different weights.
    """
    greedy, *samples = [
        _answer(made, is_greedy=number == 0, duration_s=clip.duration_s)
        for number, made in enumerate(made for reply in replies for made in reply.answers)
    ]
    return Grounding(
        video=clip.uri,
        query=query,
        mode=mode,
        duration_s=clip.duration_s,
        window_s=clip.window_s,
        policy_version=one_version(replies) if served_model is None else None,
        served_model=served_model,
        num_samples=len(samples),
        num_unreadable=sum(not answer.spans for answer in (greedy, *samples)),
        confidence_is=_confidence_is(greedy, samples),
        candidates=tuple(_agreeing(greedy, samples) if samples else _alone(greedy)),
        answers=(greedy, *samples),
    )


def _confidence_is(greedy: Answer, samples: Sequence[Answer]) -> str:
    if samples:
        return SHARE
    return UNKNOWN if greedy.token_probability is None else PROBABILITY


def _answer(made: Given, *, is_greedy: bool, duration_s: float) -> Answer:
    reading = read_spans(made.text)
    notes = list(dict.fromkeys(_outside(reading.spans, duration_s=duration_s)))
    if reading.reversed:
        notes.append("written end first")
    if made.ending == "length":
        after = "" if made.logprobs is None else f" after {len(made.logprobs)} tokens"
        notes.append(f"cut off{after} (--max-tokens)")
    if made.ending in ODD:
        notes.append(ODD[made.ending])
    return Answer(
        text=made.text,
        is_greedy=is_greedy,
        spans=reading.spans,
        token_probability=_probability(made),
        notes=tuple(notes),
        tokens=tuple(_tokens(made)),
    )


def _probability(made: Given) -> float | None:
    if not made.logprobs:
        return None
    in_block = answer_logprob(made)
    return math.exp(fmean(made.logprobs) if in_block is None else in_block)


def _tokens(made: Given) -> Iterator[Token]:
    if not made.logprobs or len(made.token_ends) != len(made.logprobs):
        return
    starts = (0, *made.token_ends[:-1])
    for start, end, logprob in zip(starts, made.token_ends, made.logprobs, strict=True):
        yield Token(text=made.text[start:end], logprob=logprob)


def _outside(spans: Sequence[Span], *, duration_s: float) -> Iterator[str]:
    """What is odd about spans of a video of this length."""
    for start_s, end_s in spans:
        if start_s >= duration_s or end_s <= 0:
            yield f"outside the video of {duration_s:.2f} s"
            continue
        if start_s < -ROUNDING_S:
            yield f"starts {-start_s:.2f} s before the video"
        if end_s > duration_s + ROUNDING_S:
            yield f"ends {end_s - duration_s:.2f} s after the video"
        if start_s == end_s:
            yield "empty span"


def _alone(greedy: Answer) -> Iterator[Candidate]:
    """The greedy answer as the only candidate, if it can be read."""
    if greedy.spans:
        yield Candidate(
            spans=greedy.spans,
            confidence=greedy.token_probability,
            num_samples=0,
            agreement=None,
            is_greedy=True,
            notes=greedy.notes,
        )


def _agreeing(greedy: Answer, samples: Sequence[Answer]) -> list[Candidate]:
    """Candidates from samples: the best agreeing answer gathers its like, then the next one.

    A greedy answer that no candidate resembles is one of its own, with a confidence of 0.
    """
    readable = [answer for answer in samples if answer.spans]
    left = sorted(readable, key=lambda answer: -_agreement(answer, samples))
    candidates: list[Candidate] = []
    greedy_is_free = bool(greedy.spans)
    while left:
        centre = left[0]
        alike = [answer for answer in left if _iou(answer, centre) >= SAME_IOU]
        left = [answer for answer in left if _iou(answer, centre) < SAME_IOU]
        holds_greedy = greedy_is_free and _iou(greedy, centre) >= SAME_IOU
        greedy_is_free = greedy_is_free and not holds_greedy
        candidates.append(
            Candidate(
                spans=centre.spans,
                confidence=len(alike) / len(samples),
                num_samples=len(alike),
                agreement=_agreement(centre, samples),
                is_greedy=holds_greedy,
                notes=centre.notes,
            )
        )
    if greedy_is_free:
        unlike = {"confidence": 0.0, "agreement": _agreement(greedy, samples)}
        candidates += [candidate.model_copy(update=unlike) for candidate in _alone(greedy)]
    return sorted(candidates, key=_most_confident_first)


def _most_confident_first(candidate: Candidate) -> tuple[float, float, bool, int]:
    """Of equals the greedy answer, then the one with less that is odd about it."""
    agreement = candidate.agreement or 0.0
    return -(candidate.confidence or 0.0), -agreement, not candidate.is_greedy, len(candidate.notes)


def _agreement(answer: Answer, samples: Sequence[Answer]) -> float:
    """Mean IoU with the samples but itself."""
    others = [other for other in samples if other is not answer]
    return fmean(_iou(answer, other) for other in others) if others else 0.0


def _iou(one: Answer, other: Answer) -> float:
    """0 if either cannot be read; equal answers agree even if they cover no time."""
    if one.spans and one.spans == other.spans:
        return 1.0
    return union_iou(one.spans, other.spans)
