"""Response text → spans or highlights: the parsers by name. Used by reward and evaluation.

`default` is the one to train with (`common.answers.grammar`); the others reproduce published code
(`common.answers.presets`). All are linear in the length of the text. `grounding_answer` prints what
every parser reads back.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from types import MappingProxyType

from common.answers.grammar import (
    NOTHING,
    Reading,
    read_default,
)
from common.answers.presets import (
    read_seed_eval,
    read_seed_train,
    read_timelens,
    read_timezero,
)
from common.answers.spans import Span
from common.answers.tags import find_answer
from common.answers.times import times
from common.messages import AnswerStyle, Highlight

__all__ = [
    "NOTHING",
    "PARSERS",
    "Reading",
    "answer_style",
    "find_answer",
    "grounding_answer",
    "highlight_answer",
    "read_highlights",
    "read_spans",
]

PARSERS: Mapping[str, Callable[[str], Reading]] = MappingProxyType(
    {
        "default": read_default,
        "seed_train": read_seed_train,
        "seed_eval": read_seed_eval,
        "timelens": read_timelens,
        "timezero": read_timezero,
    }
)

_PAIR = r"\[\s*+[0-9.eE+-]++\s*+,\s*+[0-9.eE+-]++\s*+\]"
_JSON_SPANS = re.compile(rf"\s*+\[\s*+{_PAIR}(?:\s*+,\s*+{_PAIR})*+\s*+\]\s*+")
_SCORE_WORD = re.compile("scor", re.IGNORECASE)


def read_spans(text: str, *, parser: str = "default") -> Reading:
    """Spans of a response.

    Raises:
        ValueError: unknown parser; names the known ones.
    """
    try:
        read = PARSERS[parser]
    except KeyError:
        raise ValueError(f"parser: found {parser!r}, wanted one of {', '.join(PARSERS)}") from None
    return read(text)


def read_highlights(text: str) -> tuple[Highlight, ...]:
    """Timestamps and saliency scores of a response, in the order of the text; empty if unreadable.

    Reads the paper's sentence (`The highlight timestamps are in the 82, 84 seconds. Their saliency
    scores are 1.3, 1.7`): numbers before the word score are times, numbers after it scores, and the
    longer list is cut (SPEC B2). When the word repeats, as in a JSON list of objects, times and
    scores alternate.
    """
    body = find_answer(text).text
    words = list(islice(_SCORE_WORD.finditer(body), 2))
    if not words:
        return ()
    if len(words) == 1:
        marks, scores = _seconds(body[: words[0].start()]), _seconds(body[words[0].end() :])
    else:
        numbers = _seconds(body)
        marks, scores = numbers[::2], numbers[1::2]
    return tuple(
        Highlight(time_s=time_s, score=score)
        for time_s, score in zip(marks, scores, strict=False)
        if time_s >= 0
    )


def answer_style(text: str) -> AnswerStyle | None:
    """How a true answer is written: a JSON list of pairs, in answer tags or not, or None."""
    found = find_answer(text)
    if _JSON_SPANS.fullmatch(found.text) is None:
        return None
    return "tagged_json_list" if found.tagged else "json_list"


def grounding_answer(
    spans: Iterable[Span], *, decimals: int = 2, style: AnswerStyle | None = None
) -> str:
    """`<answer> 7.00 to 11.00 </answer>`, several spans separated by commas; or as `style` says."""
    pairs = [(f"{start:.{decimals}f}", f"{end:.{decimals}f}") for start, end in spans]
    if style is not None:
        listed = f"[{', '.join(f'[{start}, {end}]' for start, end in pairs)}]"
        return listed if style == "json_list" else f"<answer> {listed} </answer>"
    return f"<answer> {', '.join(f'{start} to {end}' for start, end in pairs)} </answer>"


def highlight_answer(highlights: Iterable[Highlight], *, decimals: int = 2) -> str:
    """The paper's sentence (SPEC B2); numbers are rounded and printed without trailing zeros."""
    highlights = tuple(highlights)
    times = ", ".join(_short(highlight.time_s, decimals) for highlight in highlights)
    scores = ", ".join(_short(highlight.score, decimals) for highlight in highlights)
    return (
        f"<answer> The highlight timestamps are in the {times} seconds. "
        f"Their saliency scores are {scores} </answer>"
    )


def _seconds(text: str) -> list[float]:
    return [time.seconds for time in times(text)]


def _short(number: float, decimals: int) -> str:
    text = f"{number:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
