"""The replica's view of the reward service: a prompt's answers in, verdicts and the GT answer out.

Transport errors and 5xx are retried, bounded; then every answer is `Unscored` with the reason. A
reward service that is down is never a reward of zero.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from common.config import Rollout, Shared
from common.errors import RewardError
from common.messages import (
    HighlightsTarget,
    PromptRequest,
    SpansTarget,
    Unscored,
    Verdict,
)
from common.rest.reward_api import ScoreItem, ScoreRequest, Shaping, to_message
from common.rest.reward_client import AsyncRewardClient

logger = logging.getLogger(__name__)

LONGEST_WAIT_S = 5.0


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
        self._attempts = rollout.reward_attempts
        self._client = AsyncRewardClient(
            shared.reward_url,
            shared.tokens.of("score"),
            rollout.reward_timeout_s,
            transport=transport,
        )

    async def score(self, request: PromptRequest, *, texts: Sequence[str]) -> Scoring:
        """Never raises for the reward service's sake: see `Unscored`."""
        body = self._body(request, texts)
        try:
            async for attempt in self._retrying(request.prompt_id):
                with attempt:
                    result = (await self._client.score(body)).items[0]
        except RewardError as error:
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

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _body(self, request: PromptRequest, texts: Sequence[str]) -> ScoreRequest:
        scoring = self._shared.scoring
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
                kind="nonlinear" if self._shared.strategy == "shaping" else "none",
                threshold=scoring.threshold,
                alpha1=scoring.alpha1,
                alpha2=scoring.alpha2,
            ),
            parser=scoring.parser,
            format_weight=scoring.format_weight,
            injection=self._shared.injects,
            decimals=scoring.answer_decimals,
            think_injection=scoring.think_injection,
        )

    def _retrying(self, prompt_id: str) -> AsyncRetrying:
        def log(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            logger.warning(
                "scoring again",
                extra={
                    "prompt_id": prompt_id,
                    "attempt": state.attempt_number,
                    "error": str(error),
                },
            )

        return AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(self._attempts),
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT_S),
            before_sleep=log,
            reraise=True,
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


def _may_pass(error: BaseException) -> bool:
    """Whether trying again can help: a broken connection or the server's own failure."""
    cause = error.__cause__
    if isinstance(cause, httpx.HTTPStatusError):
        return cause.response.status_code >= 500
    return isinstance(cause, httpx.TransportError)
