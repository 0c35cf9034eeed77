"""Temporal grounding: IoU between the spans of a response and those of the target (SPEC A6).

    reward = shape(IoU) + format_weight * format

One or several spans: IoU of the unions; a single span on both sides is plain IoU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.answer_presets import STANDALONE_NUMBER
from common.answers import PARSERS, Reading, grounding_answer, read_spans
from common.messages import SpansTarget, Target, TextTarget
from common.reward_api import ScoreItem, ScoreRequest
from common.spans import Span, union_iou
from services.reward.scorers.formatting import has_format, has_seed_format, has_timezero_format
from services.reward.scorers.targets import ScoreOne, TargetError, check_times
from services.reward.shaping import score_shaper

SUMMARY = "shape(union IoU of time spans) + format_weight x format"
IMAGE_BOX_NUMBERS = 4
"""Numbers in a ground-truth text from which on the public code takes it for an image box."""


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Spans to compare with; `seed_train` keeps unusable ones, which score 0 in every part."""

    spans: tuple[Span, ...]
    usable: bool = True
    problem: str = ""


def ground_truth(target: Target, *, duration_s: float | None, parser: str) -> GroundTruth:
    """Spans of a target.

    Raises:
        TargetError: not spans, negative, reversed, empty, or past the end of the video.
    """
    if isinstance(target, SpansTarget):
        check_times(target.spans, duration_s=duration_s, field="target.spans")
        if parser == "seed_train" and len(target.spans) > 1:
            return GroundTruth(target.spans, usable=False, problem="the preset knows one span")
        return GroundTruth(target.spans)
    if not isinstance(target, TextTarget):
        raise TargetError("target", "wanted spans or text for temporal_grounding")
    if parser == "seed_train":
        return seed_ground_truth(target.text)
    reading = read_spans(target.text)
    if not reading.spans:
        raise TargetError("target.text", f"found no time span in {target.text[:80]!r}")
    if reading.reversed:
        raise TargetError(
            "target.text", f"found a span that ends before it starts: {target.text[:80]!r}"
        )
    check_times(reading.spans, duration_s=duration_s, field="target.text")
    return GroundTruth(reading.spans)


def seed_ground_truth(text: str | None) -> GroundTruth:
    """Ground truth as the public code reads it, after its test for image boxes (SPEC A6)."""
    numbers = STANDALONE_NUMBER.findall(text or "")
    if len(numbers) >= IMAGE_BOX_NUMBERS:
        return GroundTruth(
            (), usable=False, problem="the preset takes four numbers for an image box"
        )
    spans = read_spans(text or "", parser="seed_train").used
    if not spans:
        return GroundTruth((), usable=False, problem="the target holds no time span")
    return GroundTruth(spans)


def bind(item: ScoreItem, request: ScoreRequest) -> ScoreOne:
    """A function that scores one response of this item.

    Raises:
        TargetError: as `ground_truth`.
    """
    truth = ground_truth(item.target, duration_s=item.duration_s, parser=request.parser)
    if not truth.usable:
        return lambda _response: _verdict(0.0, 0.0, 0.0, reward=0.0, parsed=None)
    read = PARSERS[request.parser]
    formatted = _format_check(item, request)
    shape, weight, target = score_shaper(request.shaping), request.format_weight, truth.spans

    def score(response: str) -> dict[str, Any]:
        reading = read(response)
        raw = union_iou(reading.used, target) if reading.used else 0.0
        shaped, form = shape(raw), float(formatted(response, reading))
        return _verdict(raw, shaped, form, reward=shaped + weight * form, parsed=_parsed(reading))

    return score


def answer(item_target: Target, *, duration_s: float | None, parser: str, decimals: int) -> str:
    """The ground truth as an answer (SPEC A6, `build_gt_response`).

    Raises:
        TargetError: as `ground_truth`, or the span vanishes at this number of decimals.
    """
    if parser == "seed_train" and isinstance(item_target, TextTarget):
        reading = read_spans(item_target.text, parser=parser)
        if not reading.used:
            raise TargetError("target.text", "the target holds no time span")
        return grounding_answer(reading.used, decimals=decimals)
    spans = ground_truth(item_target, duration_s=duration_s, parser=parser).spans
    for start, end in spans:
        if f"{start:.{decimals}f}" == f"{end:.{decimals}f}":
            raise TargetError(
                "target",
                f"the span {start} to {end} is empty at {decimals} decimals: raise decimals",
            )
    return grounding_answer(spans, decimals=decimals)


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


def _verdict(
    iou: float, shaped: float, form: float, *, reward: float, parsed: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "kind": "scored",
        "reward": reward,
        "parts": {"iou": iou, "iou_shaped": shaped, "format": form},
        "parsed": parsed,
    }


def _parsed(reading: Reading) -> dict[str, Any] | None:
    if not reading.spans:
        return None
    parsed: dict[str, Any] = {"spans": reading.spans}
    if reading.reversed:
        parsed["reversed"] = True
    if reading.used != reading.spans:
        parsed["used"] = reading.used
    return parsed
