"""Row text → chat messages; `<video>` in a row's text marks the clip's place.

The published rows carry their whole instruction (SPEC A1.1), so nothing is ever added to it (SPEC
A5: two prompt builders at once contradict each other). Examples are synthetic: the paper's
highlight example is a benchmark's true answer (SPEC A5, "Leak").
"""

from collections.abc import Mapping
from types import MappingProxyType

from common.messages import ChatMessage, ContentPart, Mode, TextPart, VideoPart

VIDEO_TAG = "<video>"

GROUNDING: dict[Mode, str] = {
    "answer": (
        '<video>To accurately pinpoint the event "{query}" in the video, determine the precise '
        "time period of the event. Provide the start and end times (in seconds, precise to two "
        'decimal places) in the format "start time to end time" within <answer> </answer> tags. '
        "For example: <answer> 12.5 to 17.8 </answer>."
    ),
    "think": (
        '<video>To accurately pinpoint the event "{query}" in the video, determine the precise '
        "time period of the event.\n\nFirst, analyze the video content and reason about when the "
        "described event happens inside <think> </think> tags. Then provide the start and end "
        "times (in seconds, precise to two decimal places) in the format "
        '"start time to end time" within <answer> </answer> tags. For example: '
        "<think> reasoning </think><answer> 12.54 to 17.83 </answer>."
    ),
}

_FIND_HIGHLIGHTS = (
    "<video>Please find the highlight contents in the video described by a sentence query, "
    "determining the highlight timestamps and its saliency score on a scale from 1 to 5. "
)
_HIGHLIGHTS_FORMAT = (
    " the highlight timestamps and its saliency score within the <answer> </answer> tags. "
    "The output format should be like: 'The highlight timestamps are in the 7, 11, 13, 29 seconds. "
    "Their saliency scores are 2.1, 3.4, 1.6, 2.8'. Now I will give you the sentence query: "
    "'{query}'. Please return the query-based highlight timestamps and salient scores."
)
HIGHLIGHTS: dict[Mode, str] = {
    "answer": f"{_FIND_HIGHLIGHTS}Provide{_HIGHLIGHTS_FORMAT}",
    "think": (
        f"{_FIND_HIGHLIGHTS}Output your thought process within the <think> </think> tags, "
        f"including analysis with highlight timestamps. Then, provide{_HIGHLIGHTS_FORMAT}"
    ),
}
"""The paper's words (SPEC A5). Its clips start at even seconds, so no true answer has odd ones."""

_PINPOINT = (
    '<video>To accurately pinpoint the event "{query}" in the video, determine the precise time '
    "period of the event. "
)
_ANSWER_FORMAT = (
    " the start and end times (in seconds, precise to two decimal places) in the format "
    '"start time to end time" within <answer> </answer> tags. For example: '
)
EVALUATION_PROMPTS: Mapping[str, Mapping[Mode, str]] = MappingProxyType(
    {
        "ours": {
            "answer": f"{_PINPOINT}Provide{_ANSWER_FORMAT}<answer> 12.54 to 17.83 </answer>.",
            "think": GROUNDING["think"],
        },
        "published": GROUNDING,
        "paper": {
            "answer": f'{_PINPOINT}Provide{_ANSWER_FORMAT}"12.54 to 17.83".',
            "think": (
                f"{_PINPOINT}Output your thought process within the <think> </think> tags, "
                "including analysis with either specific timestamps (xx.xx) or time ranges "
                "(xx.xx to xx.xx) in <timestep> </timestep> tags. Then, provide"
                f'{_ANSWER_FORMAT}"12.54 to 17.83".'
            ),
        },
        "timelens": {
            "answer": (
                "<video>Please find the visual event described by the sentence '{query}', "
                "determining its starting and ending times. The format should be: 'The event "
                "happens in <start time> - <end time> seconds'."
            )
        },
    }
)
"""Prompts to evaluate with, by protocol and mode (SPEC A5).

The example of `published` is the true span of a Charades-STA test query (BIQGN, 12.5 to 17.8): it
is what published rows carry and stays for them; `ours` differs from it in the example alone.
"""


def grounding_problem(query: str, *, mode: Mode) -> str:
    """The row text that asks when `query` happens."""
    return GROUNDING[mode].format(query=query)


def highlight_problem(query: str, *, mode: Mode) -> str:
    """The row text that asks which moments show `query`, and how much each stands out."""
    return HIGHLIGHTS[mode].format(query=query)


def chat_messages(problem: str) -> tuple[ChatMessage, ...]:
    """One user turn from a row's text, its `<video>` turned into the clip's place.

    Raises:
        ValueError: the text does not hold exactly one `<video>`.
    """
    text = problem.strip()
    count = text.count(VIDEO_TAG)
    if count != 1:
        raise ValueError(
            f"found {count} {VIDEO_TAG} tags in the row's problem, wanted exactly 1: {text[:80]!r}"
        )
    before, after = text.split(VIDEO_TAG)
    pieces: list[ContentPart] = [VideoPart()]
    if before:
        pieces.insert(0, TextPart(text=before))
    if after:
        pieces.append(TextPart(text=after))
    return (ChatMessage(role="user", content=tuple(pieces)),)
