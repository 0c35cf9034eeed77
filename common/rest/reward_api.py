"""The REST contract of the reward service as types: requests, responses, problems.

Client and service share it; `common.rest.reward_client` sends it, `services.reward` answers it.
Times are in seconds. Numbers are finite; unknown fields are refused. Lists stop at their first
wrong member: naming each of two million takes gigabytes.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, FailFast, Field, Tag

from common.answers.times import MAX_TIME_S
from common.config import ThinkInjection
from common.config.fields import Alpha1, Alpha2, FormatWeight, Threshold
from common.messages import (
    GroundingReward,
    HighlightsTarget,
    Message,
    Mode,
    Scored,
    ShapedPart,
    SpansTarget,
    TextTarget,
    Unscored,
    Verdict,
)

TARGET_KEYS = ("spans", "highlights", "text")
MAX_SHAPED = 65_536
"""Rewards in one call of /v1/shape; its schema has no bound: too many are 413, not 422."""


def _target_key(value: Any) -> str | None:
    if isinstance(value, dict):
        return next((key for key in TARGET_KEYS if key in value), None)
    return next((key for key in TARGET_KEYS if hasattr(value, key)), None)


def _whole_number(value: Any) -> Any:
    """JSON has one kind of number: 2.0 is an integer to JSON Schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


RewardTarget = Annotated[
    Annotated[SpansTarget, Tag("spans")]
    | Annotated[HighlightsTarget, Tag("highlights")]
    | Annotated[TextTarget, Tag("text")],
    Discriminator(
        _target_key,
        custom_error_type="target_kind",
        custom_error_message='wanted one of {"spans": …}, {"highlights": …}, {"text": …}',
    ),
]
FormatRule = Literal["loose", "strict"]
WmseSupport = Literal["all", "matched"]
Duration = Annotated[float, Field(gt=0, le=MAX_TIME_S)]
Decimals = Annotated[int, Field(ge=0, le=6), BeforeValidator(_whole_number)]
TaskName = Annotated[str, Field(min_length=1, max_length=128)]


class Shaping(Message):
    """What happens to a task score before the format reward is added (docs/rewards.md)."""

    kind: Literal["none", "nonlinear", "downscale"] = "none"
    """nonlinear: paper eq. 4 on every score; downscale: the injected answer's reward shrinks."""
    threshold: Threshold = 0.8
    """tau of nonlinear."""
    alpha1: Alpha1 = 0.01
    """Slope above tau at tau."""
    alpha2: Alpha2 = 1.0
    """Curvature below tau; 0 is the public code's special case max(0, r)."""
    scale: Annotated[float, Field(ge=0, le=1)] = 0.8
    """downscale: factor of the injected answer's reward."""
    cap: Annotated[float, Field(ge=-10, le=10)] | None = None
    """downscale: upper bound applied after the factor."""


class ScoreItem(Message):
    """One prompt's answers and what they are compared with."""

    task: TaskName
    mode: Mode = "answer"
    target: RewardTarget
    duration_s: Duration | None = None
    """Length of the video; target spans past it are refused."""
    responses: Annotated[tuple[str, ...], Field(min_length=1), FailFast()]
    injection: bool = True
    """False: no injected answer for this item, whatever the request says."""


class ScoreRequest(Message):
    """Body of POST /v1/score."""

    items: Annotated[tuple[ScoreItem, ...], Field(min_length=1), FailFast()]
    shaping: Shaping = Shaping()
    parser: str = "default"
    format: FormatRule = "loose"
    format_weight: FormatWeight = 0.1
    injection: bool = False
    """Whether the ground truth is also rendered as an answer and scored."""
    decimals: Decimals = 2
    """Decimals of the times in the injected answer."""
    think_injection: ThinkInjection = "splice"
    """What is injected in think mode (SPEC B3)."""
    wmse_support: WmseSupport = "all"
    """highlight_detection: all true clips, missing ones with score 0, or the matched ones."""
    reward: GroundingReward = "iou"
    """temporal_grounding: IoU of the unions, or tiou + twass of TimeLens2 (SPEC C)."""
    beta: Annotated[float, Field(gt=0, le=100)] = 1.0
    """iou+wasserstein: twass = exp(-beta W1 / length of the truth)."""
    shaped: ShapedPart = "iou"
    """iou+wasserstein: whether `shaping` bends tiou alone, or the sum."""
    parse_penalty: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Built-in tasks: above 0, an answer that cannot be read, or of which a span does not end after
    its start, gets minus this and nothing else; 0 scores it like any other."""


class ScoredAnswer(Scored):
    """A verdict with what was read from the answer."""

    parsed: dict[str, Any] | None = None

    def to_message(self) -> Scored:
        """The verdict as it travels in a ScoredGroup."""
        return Scored(reward=self.reward, parts=self.parts)


AnswerVerdict = Annotated[ScoredAnswer | Unscored, Field(discriminator="kind")]


def to_message(verdict: ScoredAnswer | Unscored) -> Verdict:
    """A verdict of the service as a verdict of the ring."""
    return verdict.to_message() if isinstance(verdict, ScoredAnswer) else verdict


class Injected(Message):
    """The ground truth as an answer and its verdict, or why there is none."""

    text: str | None
    reason: str | None = None
    """Why there is no text."""
    verdict: AnswerVerdict | None = None


class ItemResult(Message):
    """Verdicts in the order of the item's responses."""

    verdicts: tuple[AnswerVerdict, ...]
    injected: Injected | None = None
    """None when no injection was asked for."""


class ScoreResponse(Message):
    """Answer of POST /v1/score, items in the order of the request."""

    items: tuple[ItemResult, ...]


class InjectionRequest(Message):
    """Body of POST /v1/injection."""

    task: TaskName = "temporal_grounding"
    mode: Mode = "answer"
    target: RewardTarget
    duration_s: Duration | None = None
    parser: str = "default"
    decimals: Decimals = 2
    think_injection: ThinkInjection = "splice"
    rollout: str | None = None
    """think mode, splice: the response whose thought is kept."""


class InjectionResponse(Message):
    """Answer of POST /v1/injection."""

    text: str | None
    reason: str | None = None
    """Why there is no text."""


class ShapeRequest(Message):
    """Body of POST /v1/shape."""

    rewards: Annotated[
        tuple[Annotated[float, Field(ge=-10, le=10)], ...],
        Field(min_length=1),
        FailFast(),
    ]
    shaping: Shaping = Shaping()


class ShapeResponse(Message):
    """Answer of POST /v1/shape, in the order of the request."""

    shaped: tuple[float, ...]


class ScorerInfo(Message):
    """One task the service can score."""

    task: str
    origin: Literal["built-in", "entry point"]
    distribution: str | None = None
    """Package of an entry point, with its version."""
    summary: str
    injects: bool | None
    """Whether the ground truth can be rendered as an answer; None: known at the first call."""


class ScorersResponse(Message):
    """Answer of GET /v1/scorers."""

    scorers: tuple[ScorerInfo, ...]
    parsers: tuple[str, ...]
