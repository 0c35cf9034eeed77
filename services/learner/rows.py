"""Trainer rows: JSONL file (SPEC A1.1) → checked `Row`s; what cannot be used → `RejectedRows`.

`feed.py` turns rows into prompts. Reading touches no video, so a file of 100,000 rows is ready in
seconds; clips are probed when their row is fed.
"""

import logging
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.answers import read_highlights, read_spans
from common.errors import ConfigError
from common.messages import (
    ChatMessage,
    ClipRef,
    Highlight,
    HighlightsTarget,
    Mode,
    SpansTarget,
)
from common.prompts import VIDEO_TAG, chat_messages, grounding_problem

log = logging.getLogger(__name__)

LOGGED_PER_REASON = 20
"""Log lines per reason; the file has all of them."""
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
    """Path of the clip, resolved against `learner.video_root`."""
    problem: str | None
    """The row's whole instruction, `<video>` included; None when only the query is given."""
    query: str | None
    target: SpansTarget | HighlightsTarget

    @property
    def task(self) -> str:
        """Name of the scorer that judges answers to it."""
        return (
            "temporal_grounding" if isinstance(self.target, SpansTarget) else "highlight_detection"
        )

    def messages(self, mode: Mode) -> tuple[ChatMessage, ...]:
        """The chat that asks for the target; in think mode the instruction is built from the query.

        Raises:
            UnusableRowError: no single `<video>` in the problem, no query for think mode, or no
                think instruction for this task.
        """
        if mode == "answer" and self.problem is not None:
            problem = self.problem
        elif isinstance(self.target, HighlightsTarget):
            raise UnusableRowError("no prompt", f"highlight rows have no {mode} instruction")
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
        problem = (self.problem or "").replace(VIDEO_TAG, "").strip()
        for pattern in _QUERY_IN_PROBLEM:
            if found := pattern.search(problem):
                return found[1]
        question, *instruction = _INSTRUCTION.split(problem, maxsplit=1)
        if question and instruction:
            return question
        raise UnusableRowError("no query", f"found none in {problem[:80]!r}")


class Rejection(BaseModel):
    """Why a row is not trained on; a line of `rejected_rows.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row_id: str
    reason: str
    detail: str


class RejectedRows:
    """Counts, logs and files what is rejected; starts the file anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_row: dict[str, Rejection] = {}
        self.counts: Counter[str] = Counter()
        """Rejected rows by reason."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")

    def add(self, rejection: Rejection) -> None:
        """Once a row; a second reason for the same row changes nothing."""
        if rejection.row_id in self._by_row:
            return
        self._by_row[rejection.row_id] = rejection
        self.counts[rejection.reason] += 1
        with self._path.open("a", encoding="utf-8") as file:
            file.write(rejection.model_dump_json() + "\n")
        if self.counts[rejection.reason] <= LOGGED_PER_REASON:
            log.warning("row rejected", extra=rejection.model_dump())

    @property
    def all(self) -> tuple[Rejection, ...]:
        """In the order they came."""
        return tuple(self._by_row.values())

    def __contains__(self, row_id: object) -> bool:
        return row_id in self._by_row

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in self.counts.most_common())
        return f"{reasons or 'none'} (listed in {self._path})"


class _Line(BaseModel):
    """The keys we read of a line; others are somebody else's."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    videos: Annotated[list[str], Field(min_length=1, max_length=1)]
    problem: str | None = None
    query: str | None = None
    answer: str | None = None
    spans: Annotated[list[tuple[float, float]], Field(min_length=1)] | None = None
    highlights: Annotated[list[Highlight], Field(min_length=1)] | None = None


def load_rows(
    path: str | os.PathLike[str],
    *,
    video_root: str | os.PathLike[str],
    rejected: RejectedRows,
) -> list[Row]:
    """Read all usable rows; the others go to `rejected`. Blank lines are nothing.

    The target is `spans`, else `highlights`, else what `answer` says.

    Raises:
        ConfigError: the file cannot be read, or no row of it is usable; names the reasons.
    """
    rows = []
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    rows.append(_read_line(line, row_id=str(number), video_root=Path(video_root)))
                except UnusableRowError as error:
                    rejected.add(
                        Rejection(row_id=str(number), reason=error.reason, detail=error.detail)
                    )
    except OSError as error:
        raise ConfigError(f"learner.rows: {path}: {error.strerror or error}") from error
    if not rows:
        raise ConfigError(f"learner.rows: {path}: no usable row; rejected: {rejected}")
    if rejected.all:
        log.warning("rows rejected", extra={"counts": dict(rejected.counts), "kept": len(rows)})
    return rows


def _read_line(text: bytes, *, row_id: str, video_root: Path) -> Row:
    try:
        line = _Line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = "bad JSON" if first["type"] == "json_invalid" else "bad row"
        raise UnusableRowError(reason, f"{where}: {first['msg']}".removeprefix(": ")) from error
    if line.problem is None and line.query is None:
        raise UnusableRowError("bad row", "found neither problem nor query")
    row = Row(
        row_id=row_id,
        video=os.fspath(video_root / line.videos[0]),
        problem=line.problem,
        query=line.query,
        target=_target(line),
    )
    if row.problem is not None:
        row.messages("answer")
    return row


def _target(line: _Line) -> SpansTarget | HighlightsTarget:
    if line.spans is not None:
        return _spans_target(line.spans)
    highlights = tuple(line.highlights or read_highlights(line.answer or ""))
    if highlights:
        return HighlightsTarget(highlights=highlights)
    reading = read_spans(line.answer or "")
    if not reading.spans:
        raise UnusableRowError(
            "no target", f"found answer {line.answer!r}, wanted spans, highlights or an answer"
        )
    if reading.reversed:
        raise UnusableRowError("bad span", f"found answer {line.answer!r}, wanted start before end")
    return _spans_target(list(reading.spans))


def _spans_target(spans: list[tuple[float, float]]) -> SpansTarget:
    for start_s, end_s in spans:
        if not 0 <= start_s < end_s:
            raise UnusableRowError(
                "bad span", f"found {start_s} to {end_s} s, wanted 0 <= start < end"
            )
    return SpansTarget(spans=tuple(spans))
