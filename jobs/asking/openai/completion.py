"""A chat completion → `Reply`: texts, how they ended, log-probabilities where it has them.

Neighbour: `jobs.asking.openai.endpoint` asks.
"""

import codecs
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import BaseModel, Field

from jobs.asking.answers import Answer, Ending, Reply, Usage

ENDINGS: dict[str | None, Ending] = {
    "length": "length",
    "content_filter": "content_filter",
    "abort": "abort",
}
"""What `finish_reason` says; everything else is a stop."""


Byte = Annotated[int, Field(ge=0, le=255)]


class _Token(BaseModel):
    token: str
    logprob: float
    raw: list[Byte] | None = Field(default=None, alias="bytes")

    def spelled(self) -> bytes:
        """A token may be a part of a character, which only its bytes say."""
        return self.token.encode() if self.raw is None else bytes(self.raw)


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """What `reasoning` is called by others."""


class _Choice(BaseModel):
    index: int = 0
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int = 0


class Completion(BaseModel):
    """What is read of a completion; servers add to it."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None

    def reply(self) -> Reply:
        """As everybody reads it."""
        usage = self.usage
        return Reply(
            answers=tuple(map(_answer, sorted(self.choices, key=lambda choice: choice.index))),
            usage=None
            if usage is None
            else Usage(
                prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens
            ),
        )


def held_back(count: int) -> Reply:
    """So many answers to a request that a content filter did not let through."""
    return Reply(answers=(Answer(text="", ending="content_filter"),) * count)


def token_ends(tokens: Sequence[bytes], *, text: str) -> tuple[int, ...]:
    """Characters of `text` up to and with each token; empty if they do not spell it.

    A character of several tokens counts with its last one. Servers cut what was generated: stop
    tokens, spaces, a thought before it.
    """
    spelled = list(_spelled(tokens))
    begin = "".join(spelled).rfind(text)
    if begin < 0:
        return ()
    ends = itertools.accumulate(map(len, spelled))
    return tuple(min(max(end - begin, 0), len(text)) for end in ends)


def _answer(choice: _Choice) -> Answer:
    message = choice.message
    text = message.content or message.refusal or ""
    ending = "refusal" if message.refusal else ENDINGS.get(choice.finish_reason, "stop")
    tokens = (choice.logprobs and choice.logprobs.content) or None
    if tokens is not None and not all(math.isfinite(one.logprob) for one in tokens):
        tokens = None  # NaN is no probability: as if none had been said
    return Answer(
        text=text,
        ending=ending,
        logprobs=None if tokens is None else tuple(min(0.0, one.logprob) for one in tokens),
        token_ends=()
        if tokens is None
        else token_ends([one.spelled() for one in tokens], text=text),
        thought=message.reasoning or message.reasoning_content,
    )


def _spelled(tokens: Sequence[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for raw in tokens:
        yield decoder.decode(raw)
