"""Highlight detection: which 2-s clips stand out, and how much (SPEC B2 with its decisions).

    R = 0.6 * F2 + 0.4 / (1 + WMSE)      reward = shape(R) + format_weight * format
    F2 = 5 P R / (4 P + R)               over clips, floor(time / 2); the first score of a clip wins
    WMSE = sum w (s' - s)^2 / sum w      w = s^2, s the true score, s' the predicted one

The support of WMSE is open in the paper: `all` true clips, a missing one counting as 0 (default),
or the `matched` ones, where one perfect clip earns 0.54. Without a match the saliency term is 0.
"""

import math
from typing import Any, NamedTuple

from common.answers.reading import find_answer, highlight_answer, read_highlights
from common.messages import Highlight, HighlightsTarget, Target, TextTarget
from common.rest.reward_api import ScoreItem, ScoreRequest, WmseSupport
from services.reward.scorers.formatting import has_format
from services.reward.scorers.targets import (
    ScoreOne,
    TargetError,
    UnrenderableTarget,
    latest,
    penalized,
)
from services.reward.shaping import score_shaper

SUMMARY = "shape(0.6 F2 + 0.4 / (1 + WMSE)) + format_weight x format"
CLIP_S = 2.0
"""Grid of the clips in seconds."""
MAX_SCORE = 1000.0

ClipScores = dict[int, float]
"""Clip number → saliency."""


class HighlightScore(NamedTuple):
    """R and what it is made of."""

    total: float
    f2: float
    wmse: float


def clip_scores(highlights: tuple[Highlight, ...]) -> ClipScores:
    """Scores per clip of the 2-s grid; the first one of a clip wins."""
    clips: ClipScores = {}
    for highlight in highlights:
        clips.setdefault(math.floor(highlight.time_s / CLIP_S), highlight.score)
    return clips


def highlight_score(
    predicted: ClipScores, truth: ClipScores, *, support: WmseSupport = "all"
) -> HighlightScore:
    """R in [0, 1], F2 in [0, 1] and WMSE >= 0 of a prediction; R is 0 when no clip matches."""
    matched = predicted.keys() & truth.keys()
    wmse = _wmse(predicted, truth, matched if support == "matched" else truth.keys())
    if not matched:
        return HighlightScore(0.0, 0.0, wmse)
    precision, recall = len(matched) / len(predicted), len(matched) / len(truth)
    f2 = 5 * precision * recall / (4 * precision + recall)
    return HighlightScore(0.6 * f2 + 0.4 / (1.0 + wmse), f2, wmse)


def _wmse(predicted: ClipScores, truth: ClipScores, clips: Any) -> float:
    weight = sum(truth[clip] ** 2 for clip in clips)
    if weight == 0:
        return 0.0
    error = sum(truth[clip] ** 2 * (predicted.get(clip, 0.0) - truth[clip]) ** 2 for clip in clips)
    return error / weight


def ground_truth(target: Target, *, duration_s: float | None) -> tuple[Highlight, ...]:
    """Highlights of a target.

    Raises:
        TargetError: not highlights, unreadable, past the end of the video, or a score out of range.
    """
    if isinstance(target, HighlightsTarget):
        highlights, field = target.highlights, "target.highlights"
    elif isinstance(target, TextTarget):
        highlights, field = read_highlights(target.text), "target.text"
        if not highlights:
            raise UnrenderableTarget(field, f"found no highlights in {target.text[:80]!r}")
    else:
        raise TargetError("target", "wanted highlights or text for highlight_detection")
    end_max_s, bound = latest(duration_s)
    for index, highlight in enumerate(highlights):
        if highlight.time_s > end_max_s:
            raise TargetError(
                f"{field}.{index}.time_s",
                f"found {highlight.time_s}, wanted <= {bound}",
            )
        if abs(highlight.score) > MAX_SCORE:
            raise TargetError(
                f"{field}.{index}.score", f"found {highlight.score}, wanted at most {MAX_SCORE}"
            )
    return highlights


def bind(item: ScoreItem, request: ScoreRequest) -> ScoreOne:
    """A function that scores one response of this item; `request.parser` plays no part.

    Raises:
        TargetError: as `ground_truth`.
    """
    truth = clip_scores(ground_truth(item.target, duration_s=item.duration_s))
    shape, weight = score_shaper(request.shaping), request.format_weight
    mode, rule, support = item.mode, request.format, request.wmse_support
    penalty = request.parse_penalty

    def score(response: str) -> dict[str, Any]:
        highlights = read_highlights(response)
        result = highlight_score(clip_scores(highlights), truth, support=support)
        readable = bool(highlights) and find_answer(response).tagged
        form = float(has_format(response, mode=mode, rule=rule, readable=readable))
        shaped = shape(result.total)
        reward = shaped + weight * form
        parts = {
            "highlight": result.total,
            "highlight_shaped": shaped,
            "f2": result.f2,
            "wmse": result.wmse,
            "format": form,
        }
        if penalty:
            reward = penalized(reward, parts, penalty=penalty, is_answer=bool(highlights))
        return {
            "kind": "scored",
            "reward": reward,
            "parts": parts,
            "parsed": _parsed(highlights),
        }

    return score


def answer(target: Target, *, duration_s: float | None, decimals: int) -> str:
    """The ground truth as the paper's sentence.

    Raises:
        TargetError: as `ground_truth`.
    """
    return highlight_answer(ground_truth(target, duration_s=duration_s), decimals=decimals)


def _parsed(highlights: tuple[Highlight, ...]) -> dict[str, Any] | None:
    if not highlights:
        return None
    return {"highlights": [{"time_s": h.time_s, "score": h.score} for h in highlights]}
