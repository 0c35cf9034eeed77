"""One question about one video, put to one or two models at once: `Question` -> a stream of events.

    waits   {model, says}                       what is waited for
    found   {model, asked, grounding, versions} spans, answers, their tokens
    failed  {model, says}                       the line that `tempsamp ground` ends with
    end     {}

Whoever listens may leave: then nobody is waited for any more. Neighbours: `.routes` streams it,
`.models` answer, `jobs.ground.candidates` reads the answers.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict

from common.answers.spans import Span
from common.errors import ConfigError, TempSampError, last_words
from common.messages import Mode, Window
from common.prompts import chat_messages, grounding_problem
from common.rest.problems import FieldError, Problem
from jobs.dash.playground.clips import Clip
from jobs.dash.playground.models import VERSION, ListedModel, Model
from jobs.ground.asking import Settings, sample_video
from jobs.ground.candidates import Answer, Candidate, Grounding

logger = logging.getLogger(__name__)

MOST_SAMPLES = 256
MOST_TOKENS = 65_536
MOST_MODELS = 2
LONGEST_QUERY = 2_000
MOST_SHOWN_TOKENS = 4_096
"""Of an answer, with their probabilities."""

EventName = Literal["waits", "found", "failed", "end"]
Event = tuple[EventName, dict[str, Any]]


class Question(BaseModel):
    """What the page asks; `check` has the bounds."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    run: str = ""
    clip: str
    query: str
    mode: Mode = "answer"
    samples: int = 1
    """1 asks for one greedy answer, more for so many samples beside it."""
    seed: int = 0
    max_tokens: int | None = None
    """Longest answer; None: the model's."""
    start_s: float = 0.0
    """Of the part that is asked about; spans count from the start of the video all the same."""
    end_s: float | None = None
    """None: to its end."""
    models: list[str]

    def check(self) -> None:
        """Refuse what cannot be asked.

        Raises:
            Problem: 422, naming every field.
        """
        errors = [FieldError(field, said) for field, said in self._faults()]
        if errors:
            raise Problem(422, "; ".join(error.detail for error in errors), errors=errors)

    def _faults(self) -> list[tuple[str, str]]:
        count = len(self.query)
        faults = {
            ("query", "query: found no words, wanted what to look for"): not self.query.strip(),
            ("query", f"query: found {count:,} characters, wanted at most {LONGEST_QUERY:,}"): (
                count > LONGEST_QUERY
            ),
            ("samples", f"samples: found {self.samples}, wanted 1 to {MOST_SAMPLES}"): (
                not 1 <= self.samples <= MOST_SAMPLES
            ),
            ("seed", f"seed: found {self.seed}, wanted 0 or more"): self.seed < 0,
            ("max_tokens", f"longest answer: found {self.max_tokens} tokens, wanted 1 or more"): (
                self.max_tokens is not None and not 1 <= self.max_tokens <= MOST_TOKENS
            ),
            ("start_s", f"from: found {self.start_s:g} s, wanted 0 or more"): self.start_s < 0,
            ("end_s", f"to: found {self.end_s} s, wanted more than from, {self.start_s:g} s"): (
                self.end_s is not None and not self.start_s < self.end_s
            ),
            ("models", f"models: found {len(self.models)}, wanted 1 or {MOST_MODELS}"): (
                not 1 <= len(set(self.models)) == len(self.models) <= MOST_MODELS
            ),
        }
        found = [fault for fault, holds in faults.items() if holds]
        return found or [("query", said) for said in self._unaskable()]

    def _unaskable(self) -> list[str]:
        try:
            chat_messages(grounding_problem(self.query, mode=self.mode))
        except ValueError as error:
            return [f"query: {error}"]
        return []

    @property
    def window(self) -> Window | None:
        """The part that is asked about; None: all of it."""
        whole = self.start_s == 0 and self.end_s is None
        return None if whole else (self.start_s, self.end_s)

    def settings(self, model: Model) -> Settings:
        """How one model is asked."""
        changed = {"seed": self.seed} | (
            {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        )
        return Settings(
            mode=self.mode,
            num_samples=0 if self.samples == 1 else self.samples,
            sampling=model.sampling.model_copy(update=changed),
            video=model.frames,
            window=self.window,
            wording=model.wording if self.mode == "answer" else None,
        )


class Asked(BaseModel):
    """The question, as what is exported says it."""

    query: str
    mode: Mode
    samples: int
    seed: int
    max_tokens: int
    video: str
    video_sha256: str
    duration_s: float
    """Of what was asked about."""
    window_s: Window | None
    """Part of the video that it was; None: all."""
    num_frames: int
    """That the model saw."""
    frame_hw: tuple[int, int]
    prompt: str
    in_words_of: Literal["ground", "run"]
    """Whose instruction that is."""


class Found(BaseModel):
    """What one model answered."""

    model: ListedModel
    asked: Asked
    grounding: Grounding
    versions: dict[str, Any]
    spans: list[list[Span]]
    """Of each candidate, the most confident first."""


async def answered(
    question: Question, *, clip: Clip, models: Sequence[Model]
) -> AsyncIterator[Event]:
    """Events until every model has answered or failed; closing it ends what is in work."""
    events: asyncio.Queue[Event] = asyncio.Queue()
    asked = [asyncio.create_task(_ask(question, clip, model, events)) for model in models]
    try:
        ended = 0
        while ended < len(asked):
            name, content = await events.get()
            ended += name in ("found", "failed")
            yield name, content
        yield "end", {}
    finally:
        for task in asked:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*asked, return_exceptions=True)


async def _ask(
    question: Question, clip: Clip, model: Model, events: "asyncio.Queue[Event]"
) -> None:
    """What one model says; never raises but to be cancelled."""
    listed, said = model.listed(), ""

    def tell(says: str) -> None:
        nonlocal said
        if says == said:
            return
        said = says
        events.put_nowait(("waits", {"model": listed.key, "says": says}))

    try:
        found = await _found(question, clip, model, tell)
    except (TempSampError, ConfigError, httpx.HTTPError, OSError) as error:
        events.put_nowait(("failed", {"model": listed.key, "says": _said(error, clip)}))
    except Exception as error:
        logger.exception("question not answered", extra={"model": listed.name})
        events.put_nowait(("failed", {"model": listed.key, "says": last_words(error)[0].strip()}))
    else:
        events.put_nowait(("found", found.model_dump(mode="json")))


async def _found(question: Question, clip: Clip, model: Model, tell: Any) -> Found:
    model.refuse(clip.path)
    settings = question.settings(model)
    tell(f"reading {clip.name}")
    ref = await asyncio.to_thread(
        sample_video, clip.path, settings=settings, window_knobs="from and to"
    )
    answers = await model.ask(ref, query=question.query, settings=settings, tell=tell)
    grounding = _shown(answers, clip)
    asked = Asked(
        query=question.query,
        mode=question.mode,
        samples=question.samples,
        seed=question.seed,
        max_tokens=settings.sampling.max_tokens,
        video=clip.name,
        video_sha256=ref.sha256,
        duration_s=ref.duration_s,
        window_s=ref.window_s,
        num_frames=len(ref.frame_indices),
        frame_hw=ref.frame_hw,
        prompt=settings.problem(question.query),
        in_words_of="ground" if settings.wording is None else "run",
    )
    return Found(
        model=model.listed(),
        asked=asked,
        grounding=grounding,
        versions={
            "tempsamp": VERSION,
            "weights": grounding.policy_version,
            "served_model": grounding.served_model,
            **model.versions(),
        },
        spans=[list(candidate.spans) for candidate in grounding.candidates],
    )


def _shown(grounding: Grounding, clip: Clip) -> Grounding:
    """Without where an upload lies, spans from the start of the file, and no more tokens than a
    page can show."""

    def spans(one: Answer | Candidate) -> dict[str, Any]:
        return {"spans": tuple(grounding.in_file(one.spans))}

    answers = tuple(
        one.model_copy(update={**spans(one), "tokens": one.tokens[:MOST_SHOWN_TOKENS]})
        for one in grounding.answers
    )
    candidates = tuple(one.model_copy(update=spans(one)) for one in grounding.candidates)
    changed = {"video": clip.name, "window_s": None, "answers": answers, "candidates": candidates}
    return grounding.model_copy(update=changed)


def _said(error: Exception, clip: Clip) -> str:
    """As a command says it, without its name."""
    is_ours = isinstance(error, TempSampError | ConfigError)
    return clip.named(str(error) if is_ours else last_words(error)[0].strip())
