"""`Annotation` → the trainer row that `jobs.data.convert` writes, or the reason why there is none.

Nothing false is ever written: 0 <= start < end <= duration holds for every span. A record of
several spans is rejected whole if one of them is wrong, because half a truth punishes right
answers.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from common.answers.reading import highlight_answer
from common.answers.spans import Span
from common.messages import AnswerStyle, Highlight, Window
from common.prompts import VIDEO_TAG, grounding_problem, highlight_problem
from common.rows import CLIP_END_TOLERANCE_S, UnusableRowError, query_of, window_of
from common.video.names import video_key
from jobs.data.annotations.durations import is_duration
from jobs.data.annotations.paths import Rerooting
from jobs.data.annotations.records import Annotation, clean_query

AnswerFormat = Literal["tag", "json"]
Task = Literal["grounding", "highlights"]

GROUNDING_TYPE = "temporal grounding"
HIGHLIGHTS_TYPE = "highlight detection"
PAST_THE_END = "span past the end"
_GT_LEN_DECIMALS = 6
"""Differences of decimal times, without the dust of binary ones."""


@dataclass(frozen=True, kw_only=True)
class RowRules:
    """How annotations become rows."""

    answer_format: AnswerFormat = "tag"
    """`<answer> 98.0 to 103.0 </answer>`, or `{"time": [98.0, 103.0]}`; a record that brings its
    own instruction and answers `[[98.0, 103.0]]` keeps that."""
    task: Task = "grounding"
    """What is asked where a file has spans and highlights."""
    place: Callable[[str], str] = field(default_factory=Rerooting)
    """Published path → path to write."""
    end_tolerance_s: float = CLIP_END_TOLERANCE_S
    """A span may end this much after its video; it is cut there."""
    durations: Mapping[str, float] = field(default_factory=dict)
    """Seconds by `video_key`, where the file has none."""
    extract_question: bool = False
    """Whether an instruction that a record brings is replaced by the published one, asked with the
    query found in it (SPEC A2)."""
    keep_extras: bool = False
    """Whether keys that are not ours are written too."""


@dataclass(frozen=True, slots=True)
class MadeRow:
    """A row, and the numbers that filters and samplers look at; None where there is none."""

    fields: Mapping[str, Any]
    """The JSON object, keys in the published order."""
    clipped: bool
    """Whether a span ended after its video and was cut."""
    difficulty: float | None
    duration_s: float | None
    gt_len_s: float | None

    @property
    def coverage(self) -> float | None:
        """Share of the video that the spans take."""
        if self.gt_len_s is None or self.duration_s is None:
            return None
        return self.gt_len_s / self.duration_s

    def dump(self) -> bytes:
        """As a JSON line."""
        return json.dumps(self.fields, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Truth:
    """What a row says is right, as text and typed."""

    answer: str
    problem_type: str
    typed: Mapping[str, Any]
    gt_len_s: float | None = None
    clipped: bool = False


def make_row(annotation: Annotation, *, rules: RowRules) -> MadeRow:
    """The trainer row of an annotation.

    Raises:
        UnusableRowError: it has no question, no truth, or a truth that cannot be true.
    """
    if not annotation.video:
        raise UnusableRowError("no video", "found an empty path")
    window = None if annotation.window is None else window_of(*annotation.window)
    duration_s = _duration_s(annotation, window, rules)
    difficulty = _difficulty(annotation.difficulty)
    asks_highlights = rules.task == "highlights" or not annotation.spans
    if asks_highlights and annotation.highlights:
        truth = _highlights(annotation.highlights, duration_s=duration_s)
    elif annotation.spans and rules.task == "grounding":
        keeps_problem = annotation.problem is not None and not rules.extract_question
        style = annotation.style if keeps_problem else None
        truth = _spans(annotation.spans, duration_s=duration_s, rules=rules, style=style)
    else:
        raise UnusableRowError("no target", f"found none for the task {rules.task}; see --task")
    fields = {
        "problem": _problem(annotation, truth, rules),
        "answer": truth.answer,
        "problem_type": truth.problem_type,
        "data_type": "video",
        "videos": [rules.place(annotation.video)],
        **_present(duration=duration_s, difficulty=difficulty, gt_len=truth.gt_len_s),
        **({} if window is None else _present(start_s=window[0], end_s=window[1])),
        **truth.typed,
        **_present(query=annotation.query if annotation.problem else None),
        **(_extras(annotation) if rules.keep_extras else {}),
    }
    return MadeRow(fields, truth.clipped, difficulty, duration_s, truth.gt_len_s)


def _spans(
    spans: Sequence[Span],
    *,
    duration_s: float | None,
    rules: RowRules,
    style: AnswerStyle | None,
) -> _Truth:
    true = [_true_span(span, duration_s, rules.end_tolerance_s) for span in spans]
    return _Truth(
        answer=_grounding_answer(true, style or rules.answer_format),
        problem_type=GROUNDING_TYPE,
        typed={"spans": true},
        gt_len_s=round(math.fsum(end - start for start, end in true), _GT_LEN_DECIMALS),
        clipped=any(after != before for after, before in zip(true, spans, strict=True)),
    )


def _true_span(span: Span, duration_s: float | None, tolerance_s: float) -> Span:
    """The span, cut at the end of the video.

    Raises:
        UnusableRowError: it cannot be true.
    """
    start, end = span[0] + 0.0, span[1] + 0.0  # plus 0 turns -0.0 into 0.0
    limit_s = math.inf if duration_s is None else duration_s
    if not (math.isfinite(start) and math.isfinite(end)):
        reason = "span not finite"
    elif start < 0:
        reason = "span negative"
    elif start >= end:
        reason = "span empty" if start == end else "span reversed"
    elif start >= limit_s or end - limit_s > tolerance_s:
        reason = PAST_THE_END
    else:
        return start, min(end, limit_s)
    raise UnusableRowError(
        reason,
        f"found {start} to {end} s, wanted 0 <= start < end"
        + ("" if duration_s is None else f" <= {duration_s} s")
        + ("; see --end-tolerance" if reason == PAST_THE_END else ""),
    )


def _grounding_answer(spans: Sequence[Span], written: AnswerFormat | AnswerStyle) -> str:
    """All decimals of every time, as the published rows print them."""
    if written == "json_list":
        return json.dumps(spans)
    if written == "tagged_json_list":
        return f"<answer> {json.dumps(spans)} </answer>"
    if written == "json":
        return json.dumps({"time": list(spans[0]) if len(spans) == 1 else spans})
    return f"<answer> {', '.join(f'{start} to {end}' for start, end in spans)} </answer>"


def _highlights(highlights: Sequence[Highlight], *, duration_s: float | None) -> _Truth:
    last_s = max(highlight.time_s for highlight in highlights)
    if duration_s is not None and last_s >= duration_s:
        raise UnusableRowError(
            "highlight past the end", f"found one at {last_s} s, wanted it before {duration_s} s"
        )
    return _Truth(
        answer=highlight_answer(highlights),
        problem_type=HIGHLIGHTS_TYPE,
        typed={"highlights": [highlight.model_dump() for highlight in highlights]},
    )


def _problem(annotation: Annotation, truth: _Truth, rules: RowRules) -> str:
    """The record's own instruction, else the published one.

    Raises:
        UnusableRowError: there is no query, or not exactly one `<video>`.
    """
    problem, query = annotation.problem, annotation.query
    if problem is not None and rules.extract_question:
        query = query or query_of(problem)
        problem = None
    if problem is None:
        query = clean_query(query or "")
        if not query:
            found = annotation.query or annotation.problem or ""
            raise UnusableRowError("no query", f"found none in {found[:80]!r}")
        ask = highlight_problem if truth.problem_type == HIGHLIGHTS_TYPE else grounding_problem
        problem = ask(query, mode="answer")
    if (tags := problem.count(VIDEO_TAG)) != 1:
        raise UnusableRowError(
            "bad problem", f"found {tags} {VIDEO_TAG} tags in {problem[:80]!r}, wanted 1"
        )
    return problem


def _duration_s(annotation: Annotation, window: Window | None, rules: RowRules) -> float | None:
    """Length of the clip: the annotation's own, else the side file's, else None.

    Of a window, the annotation's own only where that is the window's: some give the file's.
    """
    own_s = annotation.duration_s
    file_s = rules.durations.get(video_key(annotation.video))
    if own_s is not None and not is_duration(own_s) and file_s is None:
        raise UnusableRowError("bad duration", f"found {own_s} s, wanted a finite number above 0")
    if window is None or window[1] is None:
        return own_s if is_duration(own_s) else _rest_s(file_s, window)
    length_s = window[1] - window[0]
    if is_duration(own_s) and abs(own_s - length_s) <= rules.end_tolerance_s:
        return own_s
    return length_s


def _rest_s(file_s: float | None, window: Window | None) -> float | None:
    """What a file has from the start of a window on."""
    if file_s is None or window is None:
        return file_s
    if file_s <= window[0]:
        raise UnusableRowError(
            "bad window", f"found a start of {window[0]} s, wanted one before {file_s} s"
        )
    return file_s - window[0]


def _difficulty(value: float | None) -> float | None:
    if value is None or 0 <= value <= 1:
        return value
    raise UnusableRowError("bad difficulty", f"found {value}, wanted 0 (easy) to 1")


def _extras(annotation: Annotation) -> Mapping[str, Any]:
    """Keys that are not ours; NaN is readable here and in no other program's JSON."""
    try:
        json.dumps(annotation.extras, allow_nan=False)
    except ValueError as error:
        raise UnusableRowError("bad record", f"further keys: {error}") from error
    return annotation.extras


def _present(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}
