"""What such a server answers instead of a completion: HTTP status and body → errors by kind.

    httpx.Response -> problem_of() -> Problem -> .error(): what to do about it, with the knob

Errors are those of replicas (`jobs.asking.refusals`), so that a fleet retries, waits and gives up
alike. Neighbour: `jobs.asking.openai.endpoint`, which may leave a field out and ask again.
"""

import re
from dataclasses import dataclass
from typing import Any

import httpx

from common.errors import EngineError
from common.secrets import OPENAI_KEY
from jobs.asking.refusals import Broken, Busy, NotReady, Refused, retry_after_s
from jobs.local.terminal import one_line

SHOWN_CHARS = 300
UNAUTHORIZED = (401, 403)
UNAVAILABLE = (502, 503, 504)
FILTERED = ("content_filter", "content_policy_violation")
NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached")
HINTS = (
    (
        r"media_io_kwargs|trust-request-mm-kwargs",
        "vLLM takes exact times if it is started with --trust-request-mm-kwargs; --frames-as video "
        "does without",
    ),
    (
        r"video_url|video\b.{0,40}not (?:support|allow)|not support.{0,40}\bvideo",
        "--frames-as images sends pictures",
    ),
    (r"frames_indices|total_num_frames|VideoMetadata", "--frames-as video sends a file"),
    (
        r"context.{0,10}length|context window|max_model_len|maximum model length|too many tokens"
        r"|prompt.{0,20}too long|maximum.{0,30}tokens|tokens.{0,40}exceed|exceed.{0,40}tokens",
        "--config with a smaller shared.video.total_pixels or shared.video.max_frames, or a "
        "smaller --max-tokens",
    ),
    (
        r"(?:at most|too many|maximum|limit|exceed).{0,60}(?:image|picture|video|frame)"
        r"|(?:image|picture|frame)s?.{0,60}(?:at most|too many|maximum|limit|exceed)",
        "--config with a smaller shared.video.max_frames, or another --frames-as",
    ),
)
"""Words of a refusal → the knob; the first that fits."""
TOO_LARGE = "--config with a smaller shared.video.total_pixels or shared.video.max_frames"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One answer that is no completion."""

    where: str
    status: int
    message: str
    """Its own words, or the start of its body."""
    code: str
    param: str
    """Field of the request that it names; empty if it names none."""
    retry_after: str | None

    @property
    def is_filtered(self) -> bool:
        """Whether a content filter held the request back: a way to answer."""
        return self.code in FILTERED

    @property
    def may_be_a_field(self) -> bool:
        """Whether the request itself is at fault."""
        return self.status in (400, 422)

    def names(self, field: str) -> bool:
        """Whether a field of the request is what it complains about."""
        return self.may_be_a_field and (
            self.param.split(".")[0] == field
            or re.search(rf"(?<![\w.]){re.escape(field)}(?![\w])", self.message) is not None
        )

    def error(self) -> EngineError:
        """What to do: Refused (this question), Busy, NotReady and Broken (come again), and any
        other EngineError ends the run."""
        said = f"{self.where}: found status {self.status}: {self.message}"
        if self.status in UNAUTHORIZED:
            return EngineError(f"{said}; set {OPENAI_KEY} to a key that it knows")
        if self.status == httpx.codes.NOT_FOUND:
            return EngineError(f"{said}; --openai is its base URL, --served-model the model's name")
        if self.code in NO_CREDIT:
            return EngineError(said)
        if self.status == httpx.codes.TOO_MANY_REQUESTS:
            return Busy(said, retry_after_s=retry_after_s(self.retry_after))
        if self.status in UNAVAILABLE:
            return NotReady(said)
        if self.status >= httpx.codes.INTERNAL_SERVER_ERROR or self.status == 408:
            return Broken(said)
        hint = TOO_LARGE if self.status == 413 else _hint(f"{self.code} {self.message}")
        return Refused(f"{said}{'; ' if hint else ''}{hint}")


def problem_of(answer: httpx.Response) -> Problem:
    """Read OpenAI's error object, or one of the forms that others give it."""
    told = _error_object(answer)
    message = told.get("message") or told.get("detail") or answer.text
    return Problem(
        where=str(answer.url.copy_with(query=None)),
        status=answer.status_code,
        message=one_line(str(message), most_chars=SHOWN_CHARS),
        code=str(told.get("code") or told.get("type") or ""),
        param=str(told.get("param") or ""),
        retry_after=answer.headers.get("Retry-After"),
    )


def _error_object(answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        return {}
    if isinstance(document, list) and document:  # Gemini's
        document = document[0]
    if not isinstance(document, dict):
        return {}
    inner = document.get("error", document)
    return inner if isinstance(inner, dict) else {"message": inner}


def _hint(said: str) -> str:
    return next((hint for words, hint in HINTS if re.search(words, said, re.IGNORECASE)), "")
