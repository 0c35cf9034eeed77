"""What a server answers to one request, whoever it is: `Reply` of `Answer`s.

    [replica] GenerateResponse -> of_replica() -> Reply <- jobs.asking.openai [any other server]

Evaluation, grounding and re-framing read these alone. What a server does not say is None, never a
made-up number. Neighbours: `jobs.asking.replicas` and `jobs.asking.openai` make them.
"""

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from common.errors import EngineError
from common.messages import GenerateResponse

Ending = Literal["stop", "length", "abort", "refusal", "content_filter"]
"""stop: as the model meant it · length: cut off at the longest answer · abort: by the server ·
refusal: the model would not answer · content_filter: the server held it back."""
IN_WORDS: Mapping[Ending, str] = MappingProxyType(
    {
        "length": "cut off at --max-tokens",
        "abort": "broken off by the server",
        "refusal": "refused by the model",
        "content_filter": "held back by a content filter",
    }
)
"""Of answers that did not end by themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer with what is known of its tokens."""

    text: str
    """A refusal's words, if that is all there is; empty where a filter left nothing."""
    ending: Ending
    logprobs: Sequence[float] | None = None
    """[tokens] nats, <= 0, a stop token's included; None where the server gives none."""
    token_ends: Sequence[int] = ()
    """[tokens] characters of `text` up to and with each token; empty where that is not known."""
    thought: str | None = None
    """What was thought before it, where the server gives that apart; else it is part of `text`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a request cost, in tokens, as the server counts them."""

    prompt_tokens: int
    completion_tokens: int
    """Of all answers together."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Answers to one request."""

    answers: tuple[Answer, ...]
    versions: frozenset[int] = frozenset()
    """Weight versions that wrote them; empty where the server does not say."""
    usage: Usage | None = None
    """None where the server does not say."""


def of_replica(response: GenerateResponse) -> Reply:
    """A replica says everything; probabilities over what truncated sampling kept of a token's
    distribution are not the model's, and left out."""
    return Reply(
        answers=tuple(
            Answer(
                text=made.text,
                ending=made.sample.finish_reason,
                logprobs=made.sample.logprobs if made.sample.kept is None else None,
                token_ends=made.token_ends,
            )
            for made in response.answers
        ),
        versions=frozenset(
            span.version for made in response.answers for span in made.sample.version_spans
        ),
        usage=Usage(
            prompt_tokens=len(response.prompt_token_ids),
            completion_tokens=sum(len(made.sample.token_ids) for made in response.answers),
        ),
    )


def one_version(replies: Iterable[Reply], *, wanted: int | None = None) -> int:
    """The weight version that wrote all answers.

    A replica that restarted serves older weights until the learner finds it.

    Raises:
        EngineError: several versions answered, or another one than `wanted`.
    """
    versions = {version for reply in replies for version in reply.versions}
    if len(versions) != 1 or wanted not in (None, *versions):
        raise EngineError(
            f"found answers of weight versions {sorted(versions)}, wanted "
            f"{'one' if wanted is None else wanted}: weights changed or a replica restarted; "
            "wait until every replica serves the last version and evaluate again"
        )
    return versions.pop()


def endings_in_words(endings: Mapping[str, int]) -> list[str]:
    """`3 cut off at --max-tokens`, …; of answers by how they ended."""
    return [f"{endings[kind]:,} {words}" for kind, words in IN_WORDS.items() if endings.get(kind)]


def usage_of(replies: Sequence[Reply]) -> Usage | None:
    """Of all together; None where one of them does not say."""
    known = [reply.usage for reply in replies if reply.usage is not None]
    if not known or len(known) < len(replies):
        return None
    return functools.reduce(operator.add, known)
