"""One line of a trainer file (SPEC A1.1) → `TrainerRow` → a checked `Row`: question and truth.

`tempsamp data convert` writes trainer rows; the learner, evaluation and the Stage B jobs read them.
Reading touches no video, so a file of 100,000 rows is ready in seconds.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.answers.reading import answer_style, read_highlights, read_spans
from common.messages import (
    AnswerStyle,
    ChatMessage,
    ClipRef,
    Highlight,
    HighlightsTarget,
    Mode,
    SpansTarget,
    Window,
)
from common.prompts import VIDEO_TAG, chat_messages, grounding_problem, highlight_problem

CLIP_END_TOLERANCE_S = 1.0
"""Annotations are rounded and containers trimmed: a target may end this much after its clip."""

_QUERY_IN_PROBLEM = (
    re.compile(
        r'(?:pinpoint|locate|find)\s+(?:the\s+)?(?:event|clip|moment)\s+"(.+?)"\s+in the video',
        re.IGNORECASE | re.DOTALL,
    ),
    re.compile(
        r'(?:pinpoint|locate|find)\s+(?:the\s+)?(?:event|clip|moment)\s+"([^"]+)"', re.IGNORECASE
    ),
    re.compile(
        "(?:pinpoint|locate|find)\\s+(?:the\\s+)?(?:event|clip|moment)\\s+\u201c([^\u201d]+)\u201d",
        re.IGNORECASE,
    ),
    re.compile(r"the sentence query: '(.+)'\. Please return", re.DOTALL),
)


_INSTRUCTION = re.compile(
    r"\s*(?:provide the start|please provide|determine the precise)", re.IGNORECASE
)
"""Where the instruction starts in a problem that does not quote its query (SPEC A2)."""


class UnusableRowError(ValueError):
    """A row that cannot become a prompt; `reason` is what is counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Row:
    """One usable line: a question about a clip and its ground truth."""

    row_id: str
    """Line number, from 1."""
    video: str
    """Path of the clip, resolved against the video root."""
    problem: str | None
    """The row's whole instruction, `<video>` included; None when only the query is given."""
    query: str | None
    target: SpansTarget | HighlightsTarget
    difficulty: float | None = None
    """As annotated, 0 (easy) to 1."""
    window: Window | None = None
    """Part of the file that is the clip; times of query and target count from its start."""

    @property
    def task(self) -> str:
        """Name of the scorer that judges answers to it."""
        return (
            "temporal_grounding" if isinstance(self.target, SpansTarget) else "highlight_detection"
        )

    def messages(self, mode: Mode) -> tuple[ChatMessage, ...]:
        """The chat that asks for the target; in think mode the instruction is built from the query.

        Raises:
            UnusableRowError: no single `<video>` in the problem, or no query for think mode.
        """
        if mode == "answer" and self.problem is not None:
            problem = self.problem
        elif isinstance(self.target, HighlightsTarget):
            problem = highlight_problem(self._query(), mode=mode)
        else:
            problem = grounding_problem(self._query(), mode=mode)
        try:
            return chat_messages(problem)
        except ValueError as error:
            raise UnusableRowError("no video tag", str(error)) from error

    def check_against(self, clip: ClipRef) -> None:
        """Refuse a target that lies outside its clip.

        Raises:
            UnusableRowError: it starts at or after the end, or ends over a second after it.
        """
        duration_s = clip.duration_s
        if isinstance(self.target, SpansTarget):
            first_s = max(start for start, _ in self.target.spans)
            last_s = max(end for _, end in self.target.spans)
        else:
            first_s = last_s = max(highlight.time_s for highlight in self.target.highlights)
        if first_s >= duration_s or last_s > duration_s + CLIP_END_TOLERANCE_S:
            raise UnusableRowError(
                "target outside the clip",
                f"found {self.target.model_dump_json()}, wanted it inside {duration_s:.2f} s",
            )

    def _query(self) -> str:
        if self.query is not None:
            return self.query
        found = query_of(self.problem or "")
        if found is None:
            raise UnusableRowError("no query", f"found none in {(self.problem or '')[:80]!r}")
        return found


def query_of(problem: str) -> str | None:
    """The query that a published instruction quotes, or that stands before it (SPEC A2)."""
    problem = problem.replace(VIDEO_TAG, "").strip()
    for pattern in _QUERY_IN_PROBLEM:
        if found := pattern.search(problem):
            return found[1]
    question, *instruction = _INSTRUCTION.split(problem, maxsplit=1)
    return question if question and instruction else None


class TrainerRow(BaseModel):
    """The published schema, plus typed targets; keys that are not ours ride along unchanged."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    problem: str | None = None
    """The whole instruction, with one `<video>`; without it, `query` is needed."""
    answer: str | None = None
    """The truth as text, such as `<answer> 98.0 to 103.0 </answer>`."""
    problem_type: str | None = None
    """`temporal grounding` or `highlight detection`; for other trainers, we look at the target."""
    data_type: str | None = None
    """`video`; for other trainers."""
    videos: Annotated[list[str], Field(min_length=1, max_length=1)]
    duration: float | None = None
    """Seconds of the clip, as annotated."""
    start_s: float | None = None
    """Where in its file the clip starts; times count from there. None: at the start."""
    end_s: float | None = None
    """Where in its file it ends; None: at the end."""
    difficulty: float | None = None
    """0 (easy) to 1."""
    gt_len: float | None = None
    """Total length of the true spans in seconds."""
    query: str | None = None
    spans: Annotated[list[tuple[float, float]], Field(min_length=1)] | None = None
    """True `(start_s, end_s)` pairs; they win over `answer`."""
    highlights: Annotated[list[Highlight], Field(min_length=1)] | None = None

    @classmethod
    def parse(cls, line: str | bytes) -> "TrainerRow":
        """Read one JSON line.

        Raises:
            UnusableRowError: not JSON ("bad JSON"), or a value of a wrong type ("bad row").
        """
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            reason = "bad JSON" if first["type"] == "json_invalid" else "bad row"
            raise UnusableRowError(reason, f"{where}: {first['msg']}".removeprefix(": ")) from error

    def dump(self) -> str:
        """As a JSON line without its newline; what is None is left out."""
        return self.model_dump_json(exclude_none=True)

    @property
    def target(self) -> SpansTarget | HighlightsTarget:
        """The truth: `spans`, else `highlights`, else what `answer` says.

        It is written like `answer` where the row brings the instruction that asks for that.

        Raises:
            UnusableRowError: there is none, or a span is reversed, empty or negative.
        """
        style = None if self.problem is None else answer_style(self.answer or "")
        if self.spans is not None:
            return _spans_target(self.spans, style)
        highlights = tuple(self.highlights or read_highlights(self.answer or ""))
        if highlights:
            return HighlightsTarget(highlights=highlights)
        reading = read_spans(self.answer or "")
        if not reading.spans:
            raise UnusableRowError(
                "no target", f"found answer {self.answer!r}, wanted spans, highlights or an answer"
            )
        if reading.reversed:
            raise UnusableRowError(
                "bad span", f"found answer {self.answer!r}, wanted start before end"
            )
        return _spans_target(list(reading.spans), style)

    @property
    def window(self) -> Window | None:
        """The part of the file that is the clip; None is all of it.

        Raises:
            UnusableRowError: it starts before the file, or does not end after its start.
        """
        return window_of(self.start_s, self.end_s)

    def check(self, *, row_id: str, video_root: str | os.PathLike[str]) -> Row:
        """The row as a question that can be asked.

        Args:
            row_id: its line number, from 1.
            video_root: folder that a relative path of `videos` starts from.

        Raises:
            UnusableRowError: no question, no truth, an impossible window, or a problem without
                exactly one `<video>`.
        """
        if self.problem is None and self.query is None:
            raise UnusableRowError("bad row", "found neither problem nor query")
        row = Row(
            row_id=row_id,
            video=_located(self.videos[0], video_root=video_root),
            problem=self.problem,
            query=self.query,
            target=self.target,
            difficulty=self.difficulty,
            window=self.window,
        )
        if row.problem is not None:
            row.messages("answer")
        return row


def window_of(start_s: float | None, end_s: float | None) -> Window | None:
    """A window as annotations write it: either end may be left out, and infinity is no end.

    Raises:
        UnusableRowError: it starts before the file, or does not end after its start.
    """
    if start_s is None and end_s is None:
        return None
    start_s = 0.0 if start_s is None else start_s
    end_s = None if end_s is None or end_s == math.inf else end_s
    if not (0 <= start_s < math.inf and (end_s is None or start_s < end_s)):
        raise UnusableRowError(
            "bad window",
            f"found start_s {start_s} and end_s {end_s}, wanted 0 <= start_s < end_s",
        )
    return start_s, end_s


def _located(video: str, *, video_root: str | os.PathLike[str]) -> str:
    """A path from the root; an address stays one."""
    return video if "://" in video else os.fspath(Path(video_root) / video)


def _spans_target(spans: list[tuple[float, float]], style: AnswerStyle | None) -> SpansTarget:
    for start_s, end_s in spans:
        if not 0 <= start_s < end_s:
            raise UnusableRowError(
                "bad span", f"found {start_s} to {end_s} s, wanted 0 <= start < end"
            )
    return SpansTarget(spans=tuple(spans), style=style)
