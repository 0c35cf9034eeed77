"""Temporal grounding: IoU between the spans of a response and those of the target (SPEC A6).

    reward = shape(IoU) + format_weight * format

One or several spans: IoU of the unions; a single span on both sides is plain IoU.
"""

from collections.abc import Callable
from typing import Any

from common.answers.presets import STANDALONE_NUMBER
from common.answers.reading import PARSERS, Reading, grounding_answer, read_spans
from common.answers.spans import Span, union_iou
from common.answers.tags import MAX_READ_CHARS
from common.messages import SpansTarget, Target, TextTarget
from common.rest.reward_api import ScoreItem, ScoreRequest
from services.reward.scorers.formatting import has_format, has_seed_format, has_timezero_format
from services.reward.scorers.targets import (
    ScoreOne,
    TargetError,
    UnrenderableTarget,
    check_times,
)
from services.reward.shaping import score_shaper

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
    if not truth:
        return lambda _response: _verdict(0.0, 0.0, 0.0, reward=0.0, parsed=None)
    read = PARSERS[request.parser]
    formatted = _format_check(item, request)
    shape, weight = score_shaper(request.shaping), request.format_weight

    def score(response: str) -> dict[str, Any]:
        reading = read(response)
        raw = union_iou(reading.used, truth) if reading.used else 0.0
        shaped, form = shape(raw), float(formatted(response, reading))
        return _verdict(raw, shaped, form, reward=shaped + weight * form, parsed=_parsed(reading))

    return score


def answer(target: Target, *, duration_s: float | None, parser: str, decimals: int) -> str:
    """The ground truth as an answer (SPEC A6, `build_gt_response`).

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
