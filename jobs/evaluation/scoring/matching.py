"""Which annotation does a prediction answer? `match(predictions, questions=…)` → `Matched`.

By the annotation's id where the file uses such ids, else by video (`common.video.names.video_key`:
folders, suffixes and how letters are composed do not count) and by query, as sentences are commonly
rewritten: letter case, composition, spaces and outer dots do not count. Between
`jobs.evaluation.scoring.predictions`, `jobs.data.annotations` and
`jobs.evaluation.scoring.protocols`.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from itertools import pairwise

from common.answers.spans import Span
from common.messages import Window
from common.video.names import nearest, video_key
from jobs.evaluation.scoring.predictions import Prediction

SHOWN = 5
"""Names in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One annotated query."""

    id: str
    video: str
    query: str
    spans: tuple[Span, ...]
    """True spans in seconds."""
    duration_s: float | None = None
    window: Window | None = None
    """Part of the file that is asked about; spans and duration are the part's. None: all of it, or
    unknown where only predictions are scored."""
    clip_ids: tuple[int, ...] = ()
    """QVHighlights: rated clips of two seconds, counted from 0."""
    saliency: tuple[tuple[float, ...], ...] = ()
    """QVHighlights: ratings of each of `clip_ids`, 0 to 4."""


Pair = tuple[Prediction, Question]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """Predictions beside what they answer."""

    pairs: tuple[Pair, ...]
    """In the order of the file."""
    unknown: int
    """Predictions without an annotation, left out."""
    unanswered: int
    """Annotations without a prediction, left out."""
    nearest: Mapping[str, str | None] = field(default_factory=dict)
    """The first of `unknown` → what they may have been meant for."""


def own_questions(predictions: Sequence[Prediction]) -> list[Question]:
    """The truth that our files and TimeLens' carry with each prediction.

    Raises:
        ValueError: a prediction carries none.
    """
    if without := [prediction.key for prediction in predictions if not prediction.truth]:
        raise ValueError(
            f"found no true span with prediction {without[0]!r}, wanted an annotation file: --gt"
        )
    return [
        Question(
            id=prediction.key,
            video=prediction.video or "",
            query=prediction.query or "",
            spans=prediction.truth,
            duration_s=prediction.duration_s,
            window=prediction.window,
            clip_ids=tuple(prediction.ratings or ()),
            saliency=tuple((prediction.ratings or {}).values()),
        )
        for prediction in predictions
    ]


def match(
    predictions: Iterable[Prediction], *, questions: Sequence[Question], partial: bool = False
) -> Matched:
    """Pair every prediction with its annotation.

    Args:
        predictions: of one file.
        questions: of the benchmark.
        partial: leave out what only one side has, instead of refusing it.

    Raises:
        ValueError: an annotation id stands twice, two predictions answer one annotation, an id
            belongs to another query, or one side has what the other lacks.
    """
    index = _Index(questions)
    pairs, answered = [], set[str]()
    unknown: list[Prediction] = []
    for prediction in predictions:
        question = index.find(prediction)
        if question is None:
            unknown.append(prediction)
            continue
        if question.id in answered:
            raise ValueError(f"found two predictions for annotation {question.id!r}, wanted one")
        answered.add(question.id)
        if question.duration_s is None:
            question = replace(question, duration_s=prediction.duration_s)
        if prediction.window is not None and question.window is None:
            question = replace(question, window=prediction.window)
        pairs.append((prediction, question))
    unanswered = [question.id for question in questions if question.id not in answered]
    near = {one.key: index.nearest(one) for one in unknown[:SHOWN]}
    if not partial:
        _refuse(near, len(unknown), "predictions without an annotation")
        _refuse(dict.fromkeys(unanswered), len(unanswered), "annotations without a prediction")
    if not pairs:
        raise ValueError(
            f"found no prediction for any of {len(questions)} annotations, wanted at least one: "
            f"are --bench and --gt those that were asked? The file has {_shown(near)}"
        )
    return Matched(
        pairs=tuple(pairs), unknown=len(unknown), unanswered=len(unanswered), nearest=near
    )


class _Index:
    """Annotations by id and by name; what several share is handed out in order."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._by_id = {question.id: question for question in questions}
        if len(self._by_id) < len(questions):
            ids = sorted(question.id for question in questions)
            twice = next(one for one, two in pairwise(ids) if one == two)
            raise ValueError(f"found annotation {twice!r} twice, wanted every id once")

    @cached_property
    def _by_name(self) -> dict[tuple[str, str], list[Question]]:
        """Made when the first prediction has no id that is known here."""
        named: dict[tuple[str, str], list[Question]] = {}
        for question in self._by_id.values():
            name = (video_key(question.video), _query(question.query))
            named.setdefault(name, []).append(question)
        return named

    def find(self, prediction: Prediction) -> Question | None:
        if prediction.id is not None and (found := self._by_id.get(prediction.id)):
            _check_same_query(prediction, found)
            return found
        name = (video_key(prediction.video or ""), _query(prediction.query or ""))
        candidates = self._by_name.get(name, [])
        same = [question for question in candidates if question.spans == prediction.truth]
        if not (same or candidates):
            return None
        chosen = (same or candidates)[0]
        if len(candidates) > 1:
            candidates.remove(chosen)
        return chosen

    def nearest(self, prediction: Prediction) -> str | None:
        """What a prediction that was not found may have been meant for, in words."""
        if not prediction.video:
            found = get_close_matches(prediction.key, self._by_id, n=1)
            return f"id {found[0]!r}" if found else None
        queries = self._queries.get(video_key(prediction.video))
        if queries is None:
            near = nearest(prediction.video, self._queries)
            return f"video {near[0]!r}" if near else None
        near = get_close_matches(_query(prediction.query or ""), queries, n=1, cutoff=0.3)
        return f"query {near[0]!r} of this video" if near else "other queries of this video"

    @cached_property
    def _queries(self) -> dict[str, list[str]]:
        """Queries by video."""
        found: dict[str, list[str]] = {}
        for question in self._by_id.values():
            found.setdefault(video_key(question.video), []).append(_query(question.query))
        return found


def _check_same_query(prediction: Prediction, question: Question) -> None:
    if prediction.query is None or prediction.query == question.query:
        return
    if _query(prediction.query) != _query(question.query):
        raise ValueError(
            f"{prediction.key!r}: found an answer to {prediction.query!r}, wanted one to "
            f"{question.query!r}: are --bench and --gt those that were asked?"
        )


def _refuse(near: Mapping[str, str | None], count: int, what: str) -> None:
    if count:
        more = ", …" if count > SHOWN else ""
        raise ValueError(
            f"found {count} {what}, wanted none: {_shown(near)}{more}; --partial leaves them out "
            "and counts them"
        )


def _shown(near: Mapping[str, str | None]) -> str:
    """Names, each with what is nearest."""
    named = list(near.items())[:SHOWN]
    return ", ".join(f"{name!r}" + (f" (nearest: {hint})" if hint else "") for name, hint in named)


def _query(sentence: str) -> str:
    plain = unicodedata.normalize("NFC", sentence)
    return " ".join(plain.split()).strip(" .").casefold()
