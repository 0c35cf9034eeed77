"""The replica's view of the reward service: a prompt's answers in, verdicts and the GT answer out.

Answers are dear and wait: a service that is away is asked again until `reward_patience_s` have
passed. What a service that is there refuses, or fails at again and again, is `Unscored` with the
reason: the learner asks that prompt anew. Neither is ever a reward of zero.
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import httpx

from common.config import Rollout, Shared
from common.errors import RewardError
from common.logs import NowAndThen
from common.messages import (
    Grading,
    HighlightsTarget,
    PromptRequest,
    SpansTarget,
    Unscored,
    Verdict,
)
from common.rest.reward_api import ItemResult, ScoreItem, ScoreRequest, Shaping, to_message
from common.rest.reward_client import AsyncRewardClient

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
TRIES_PER_FAILURE = 5
"""Times a service that is there may fail at the same answers before they stay unscored."""
REFUSALS = (400, 404, 405, 413, 415, 422)
"""Statuses that asking again does not change."""


class _UnscorableError(RewardError):
    """The service is there, and these answers get no verdict."""


@dataclass(frozen=True)
class Scoring:
    """Verdicts in the order of the answers, and what is injected."""

    verdicts: tuple[Verdict, ...]
    injected: tuple[str, Verdict] | None
    """Text and verdict of the GT answer; None when nothing is injected."""


class GroupScorer:
    """Scores the groups of one run under its `[shared]` settings."""

    def __init__(
        self,
        shared: Shared,
        *,
        rollout: Rollout,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._shared = shared
        self._patience_s = rollout.reward_patience_s
        self._word = NowAndThen()
        self.trouble: str | None = None
        """Why answers wait for verdicts; None while the service gives them."""
        self._client = AsyncRewardClient(
            shared.reward_url,
            shared.tokens.of("score"),
            rollout.reward_timeout_s,
            transport=transport,
        )

    async def score(self, request: PromptRequest, *, texts: Sequence[str]) -> Scoring:
        """Verdicts, however long the service is away within `reward_patience_s`.

        Raises:
            RewardError: it was away all that time, and still is.
        """
        body = self._body(request, texts)
        try:
            result = await self._result(body, request.prompt_id)
        except _UnscorableError as error:
            logger.warning(
                "answers left unscored",
                extra={"prompt_id": request.prompt_id, "error": str(error)},
            )
            return Scoring(tuple(Unscored(reason=str(error)) for _ in texts), None)
        verdicts = tuple(to_message(verdict) for verdict in result.verdicts)
        injected = result.injected
        if injected is None or injected.text is None or injected.verdict is None:
            if injected is not None and injected.reason:
                logger.info(
                    "nothing injected",
                    extra={"prompt_id": request.prompt_id, "reason": injected.reason},
                )
            return Scoring(verdicts, None)
        return Scoring(verdicts, (injected.text, to_message(injected.verdict)))

    async def check(self) -> None:
        """Raises RewardError unless the service answers."""
        await self._client.scorers()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _body(self, request: PromptRequest, texts: Sequence[str]) -> ScoreRequest:
        scoring = self._shared.scoring
        grading = request.grading or Grading(
            strategy=self._shared.strategy,
            format_weight=scoring.format_weight,
            think_injection=scoring.think_injection,
        )
        return ScoreRequest(
            items=(
                ScoreItem(
                    task=request.task,
                    mode=request.mode,
                    target=request.target,
                    duration_s=_duration_s(request),
                    responses=tuple(texts),
                ),
            ),
            # downscale and anchor act on advantages, in the learner; here only rewards are bent.
            shaping=Shaping(
                kind="nonlinear" if grading.strategy == "shaping" else "none",
                threshold=scoring.threshold,
                alpha1=scoring.alpha1,
                alpha2=scoring.alpha2,
            ),
            parser=scoring.parser,
            format_weight=grading.format_weight,
            injection=grading.strategy != "none",
            decimals=scoring.answer_decimals,
            think_injection=grading.think_injection,
            reward=scoring.reward,
            beta=scoring.beta,
            shaped=scoring.shaped,
            parse_penalty=scoring.parse_penalty,
        )

    async def _result(self, body: ScoreRequest, prompt_id: str) -> ItemResult:
        """The service's answer, asked for again and again.

        Raises:
            RewardError: the service is away and time is up.
            _UnscorableError: it is there, and will not or cannot score these answers.
        """
        give_up_s, pause_s, failures = time.monotonic() + self._patience_s, FIRST_PAUSE_S, 0
        while True:
            try:
                result = (await self._client.score(body)).items[0]
            except RewardError as error:
                status = _status_of(error)
                failures += status == 500
                if status in REFUSALS or failures == TRIES_PER_FAILURE:
                    raise _UnscorableError(str(error)) from error
                if time.monotonic() + pause_s > give_up_s:
                    await self._give_up(error)
                self._note_outage(error, prompt_id)
            else:
                self.trouble = None
                return result
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _give_up(self, error: RewardError) -> NoReturn:
        """Time is up: a service that answers others fails at these answers alone."""
        try:
            await self.check()
        except RewardError as away:
            self.trouble = None  # the answers do not wait any more
            raise RewardError(
                f"{away}; away for {self._patience_s:.0f} s (rollout.reward_patience_s)"
            ) from error
        raise _UnscorableError(str(error)) from error

    def _note_outage(self, error: RewardError, prompt_id: str) -> None:
        self.trouble = f"answers wait for their verdicts: {error}"
        if self._word.is_due():
            logger.warning(
                "waiting for the reward service",
                extra={"prompt_id": prompt_id, "error": str(error)},
            )


def _duration_s(request: PromptRequest) -> float:
    """The clip's length, or the end of a target that the learner let pass (`common.rows`).

    Annotations are rounded, and the service would refuse the whole request.
    """
    target, length_s = request.target, request.clip.duration_s
    if isinstance(target, SpansTarget):
        return max(length_s, *(end for _, end in target.spans))
    if isinstance(target, HighlightsTarget):
        return max(length_s, *(highlight.time_s for highlight in target.highlights))
    return length_s


def _status_of(error: BaseException) -> int | None:
    """HTTP status that the service answered with; None: it did not answer, or not in our words."""
    cause = error.__cause__
    return cause.response.status_code if isinstance(cause, httpx.HTTPStatusError) else None
