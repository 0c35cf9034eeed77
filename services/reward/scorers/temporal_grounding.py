"""Temporal grounding: the spans of a response against those of the target (SPEC A6, C).

    iou                reward = shape(IoU) + format_weight * format
    iou+wasserstein    reward = shape(tiou) + twass + format_weight * format, or with shaped = "sum"
                                2 shape((tiou + twass) / 2) + format_weight * format

One or several spans: IoU of the unions; a single span on both sides is plain IoU. The sum has twice
the range that the shaping curve is made for, so its half is bent. With a parse penalty an answer
that is none (`_is_answer`) gets minus that and nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any

from common.answers.presets import STANDALONE_NUMBER
from common.answers.reading import (
    NOTHING,
    PARSERS,
    Reading,
    answer_style,
    grounding_answer,
    read_spans,
)
from common.answers.spans import Span, union_iou
from common.answers.tags import MAX_READ_CHARS
from common.messages import AnswerStyle, Mode, SpansTarget, Target, TextTarget
from common.rest.reward_api import ScoreItem, ScoreRequest
from services.reward.scorers import interval_sets
from services.reward.scorers.formatting import has_format, has_seed_format, has_timezero_format
from services.reward.scorers.targets import (
    ScoreOne,
    TargetError,
    UnrenderableTarget,
    check_times,
    penalized,
)
from services.reward.shaping import score_shaper

Parts = dict[str, float]
Grade = Callable[[Reading], tuple[float, Parts]]
"""What was read → the reward without the format part, and the parts that it is made of."""

SUMMARY = "shape(union IoU of time spans) + format_weight x format"
IMAGE_BOX_NUMBERS = 4
"""Numbers in a ground-truth text from which on the public code takes it for an image box."""


def ground_truth(target: Target, *, duration_s: float | None, parser: str) -> tuple[Span, ...]:
    """Spans of a target; empty when `seed_train` cannot use it, which scores 0 in every part.

    Raises:
        TargetError: not spans, negative, reversed, empty, or past the end of the video.
    """
    if isinstance(target, SpansTarget):
        check_times(target.spans, duration_s=duration_s, field="target.spans")
        return () if parser == "seed_train" and len(target.spans) > 1 else target.spans
    if not isinstance(target, TextTarget):
        raise TargetError("target", "wanted spans or text for temporal_grounding")
    if parser == "seed_train":
        return seed_ground_truth(target.text)
    reading = read_spans(target.text)
    if not reading.spans:
        raise UnrenderableTarget("target.text", f"found no time span in {target.text[:80]!r}")
    if reading.reversed:
        raise TargetError(
            "target.text", f"found a span that ends before it starts: {target.text[:80]!r}"
        )
    check_times(reading.spans, duration_s=duration_s, field="target.text")
    return reading.spans


def seed_ground_truth(text: str | None) -> tuple[Span, ...]:
    """Ground truth as the public code reads it: none with the numbers of an image box (SPEC A6)."""
    text = (text or "")[:MAX_READ_CHARS]
    if len(STANDALONE_NUMBER.findall(text)) >= IMAGE_BOX_NUMBERS:
        return ()
    return read_spans(text, parser="seed_train").used


def bind(item: ScoreItem, request: ScoreRequest) -> ScoreOne:
    """A function that scores one response of this item.

    Raises:
        TargetError: as `ground_truth`.
    """
    truth = ground_truth(item.target, duration_s=item.duration_s, parser=request.parser)
    grade = (_set_grade if request.reward == "iou+wasserstein" else _iou_grade)(truth, request)
    if not truth:
        nothing = dict.fromkeys((*grade(NOTHING)[1], "format"), 0.0)
        return lambda _response: _verdict(0.0, dict(nothing), parsed=None)
    read = PARSERS[request.parser]
    formatted = _format_check(item, request)
    weight, penalty = request.format_weight, request.parse_penalty

    def score(response: str) -> dict[str, Any]:
        reading = read(response)
        task_reward, parts = grade(reading)
        parts["format"] = float(formatted(response, reading))
        reward = task_reward + weight * parts["format"]
        if penalty:
            reward = penalized(reward, parts, penalty=penalty, is_answer=_is_answer(reading))
        return _verdict(reward, parts, parsed=_parsed(reading))

    return score


def _iou_grade(truth: Sequence[Span], request: ScoreRequest) -> Grade:
    shape = score_shaper(request.shaping)

    def grade(reading: Reading) -> tuple[float, Parts]:
        raw = union_iou(reading.used, truth) if reading.used else 0.0
        shaped = shape(raw)
        return shaped, {"iou": raw, "iou_shaped": shaped}

    return grade


def _set_grade(truth: Sequence[Span], request: ScoreRequest) -> Grade:
    """The set reward; an answer with a span that does not end after its start scores 0 (SPEC C)."""
    shape, beta, bends_sum = score_shaper(request.shaping), request.beta, request.shaped == "sum"

    def grade(reading: Reading) -> tuple[float, Parts]:
        spans = reading.used if _is_answer(reading) else ()
        tiou = interval_sets.tiou(spans, truth)
        twass = interval_sets.twass(spans, truth, beta=beta)
        iou_shaped = tiou if bends_sum else shape(tiou)
        reward = 2 * shape((tiou + twass) / 2) if bends_sum else iou_shaped + twass
        return reward, {
            "iou": union_iou(reading.used, truth) if reading.used else 0.0,
            "iou_shaped": iou_shaped,
            "tiou": tiou,
            "twass": twass,
            "ngiou": interval_sets.ngiou(spans, truth),
            "set_shaped": reward,
        }

    return grade


def _is_answer(reading: Reading) -> bool:
    """Whether every span that was read ends after its start, and there is one."""
    in_order = bool(reading.used) and not reading.reversed
    return in_order and all(end > start for start, end in reading.used)


def answer(
    target: Target,
    *,
    duration_s: float | None,
    parser: str,
    decimals: int,
    mode: Mode = "answer",
) -> str:
    """The ground truth as an answer (SPEC A6, `build_gt_response`), in the row's own style.

    Published parsers read one style, and in think mode the prompt asks for it.

    Raises:
        TargetError: as `ground_truth`.
        UnrenderableTarget: no span, or one that vanishes at this number of decimals.
    """
    if parser == "seed_train" and isinstance(target, TextTarget):
        reading = read_spans(target.text, parser=parser)
        if not reading.used:
            raise UnrenderableTarget("target.text", "the target holds no time span")
        return grounding_answer(reading.used, decimals=decimals)
    spans = ground_truth(target, duration_s=duration_s, parser=parser)
    if not spans:
        raise UnrenderableTarget("target.spans", "found several spans, seed_train knows one")
    for start, end in spans:
        if f"{start:.{decimals}f}" == f"{end:.{decimals}f}":
            raise UnrenderableTarget(
                "target",
                f"the span {start} to {end} is empty at {decimals} decimals: raise decimals",
            )
    style = _style(target) if parser == "default" and mode == "answer" else None
    return grounding_answer(spans, decimals=decimals, style=style)


def _style(target: Target) -> AnswerStyle | None:
    if isinstance(target, SpansTarget):
        return target.style
    return answer_style(target.text) if isinstance(target, TextTarget) else None


def _format_check(item: ScoreItem, request: ScoreRequest) -> Callable[[str, Reading], bool]:
    mode, rule = item.mode, request.format
    if request.parser in ("seed_train", "seed_eval"):
        return lambda response, _reading: has_seed_format(response, rule=rule)
    if request.parser == "timezero":
        return lambda response, _reading: has_timezero_format(response)
    if request.parser == "timelens":
        return lambda _response, _reading: False
    return lambda response, reading: has_format(
        response,
        mode=mode,
        rule=rule,
        readable=reading.tagged and bool(reading.spans) and not reading.reversed,
    )


def _verdict(reward: float, parts: Parts, *, parsed: dict[str, Any] | None) -> dict[str, Any]:
    return {"kind": "scored", "reward": reward, "parts": parts, "parsed": parsed}


def _parsed(reading: Reading) -> dict[str, Any] | None:
    if not reading.spans:
        return None
    parsed: dict[str, Any] = {"spans": reading.spans}
    if reading.reversed:
        parsed["reversed"] = True
    if reading.used != reading.spans:
        parsed["used"] = reading.used
    return parsed
