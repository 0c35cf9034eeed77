"""What a run of two stages keeps beside its submission: replies, then what became of each video.

    sub.jsonl -> sub.journal.jsonl: {"reply": …} a question, {"video": …} a video at the end

A reply is known by everything that decides it, so a run that was killed, or that is repeated with
other `--smooth` or `--every`, asks only what is new. Failures are not kept: they are asked again.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from common.messages import GenerateRequest
from jobs.asking.journal import Lines

Stage = Literal["highlights", "subject"]
Outcome = Literal["followed", "middle", "centred", "empty"]
"""Boxes follow a subject; highlights are known, but no subject in them; every frame is kept and
cropped in the middle; the video cannot be read and has no frames."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reply(_Record):
    """What a model said."""

    video_id: str
    stage: Stage
    frame: int | None = None
    """Of the stage subject."""
    question: str
    """Digest of what decides the answer."""
    text: str


class VideoEnd(_Record):
    """What became of a video."""

    video_id: str
    outcome: Outcome
    faults: dict[str, int]
    """How often what went wrong, by kind."""
    error: str | None = None
    """The first message, where there is one."""


class Line(_Record):
    """One of the two."""

    reply: Reply | None = None
    video: VideoEnd | None = None


class Journal:
    """The file, open for appending; a second process that opens it is refused."""

    def __init__(self, out: Path) -> None:
        """Open or make the journal of a submission.

        Raises:
            ConfigError: a line that is none, or another process writes.
        """
        self.path = journal_path(out)
        self._lines = Lines(
            self.path,
            Line,
            wanted="a line of a re-framing journal",
            keep=_replies,
            several="give each its own --out",
        )
        self._texts = {
            line.reply.question: line.reply.text for line in self._lines.kept if line.reply
        }

    def text(self, question: str) -> str | None:
        """The reply to a question, if it is known."""
        return self._texts.get(question)

    def add(self, reply: Reply) -> None:
        """A reply that came."""
        self._texts[reply.question] = reply.text
        self._lines.append(Line(reply=reply))

    def end(self, videos: Sequence[VideoEnd]) -> None:
        """What became of each."""
        for video in videos:
            self._lines.append(Line(video=video))

    def close(self) -> None:
        """Let the next process write."""
        self._lines.close()


def journal_path(out: Path) -> Path:
    """Beside the submission."""
    return out.with_name(f"{out.stem}.journal.jsonl")


def question_digest(request: GenerateRequest, *, model: str) -> str:
    """Hex digest of everything that decides a reply; not of where the video lies.

    Args:
        request: the video's content is part of its clip.
        model: names the weights that answer.
    """
    asked = request.model_copy(update={"clip": request.clip.model_copy(update={"uri": ""})})
    return hashlib.sha256(f"{model}\n{asked.model_dump_json()}".encode()).hexdigest()[:24]


def _replies(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.reply is not None]
