"""Adversarial texts: ten times the text may cost about ten times the time, never a hundred.

Processor time of this thread, so that other work on the machine does not count.
"""

import time

import pytest

from common.answers.reading import PARSERS, read_highlights, read_spans
from common.answers.tags import MAX_READ_CHARS, thought_of
from tests.fixtures.adversarial import ADVERSARIAL

SMALL, LARGE = MAX_READ_CHARS // 10, MAX_READ_CHARS
"""What lies beyond is not read: there nothing would be seen to grow."""
MEGABYTE, MEGABYTE_S = 1_000_000, 1.0
QUADRATIC = LARGE / SMALL * 6
"""Growth that only a quadratic reading reaches; linear ones stay near 10."""
NOISE_S = 0.004
"""Below this a ratio says nothing."""


REPEATS = 3


def reading_s(parser: str, text: str) -> float:
    started = time.thread_time()
    read_spans(text, parser=parser)
    return time.thread_time() - started


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_reading_time_grows_linearly(parser: str, name: str) -> None:
    make = ADVERSARIAL[name]
    small, large = make(SMALL), make(LARGE)
    small_s = min(reading_s(parser, small) for _ in range(REPEATS))
    most_s = max(NOISE_S, QUADRATIC * max(small_s, NOISE_S / 10))
    # The large one again only where a reading was too slow: it costs ten times as much.
    assert any(reading_s(parser, large) < most_s for _ in range(REPEATS))


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_a_megabyte_is_read_in_bounded_time(name: str) -> None:
    text = ADVERSARIAL[name](MEGABYTE)
    for parser in PARSERS:
        assert reading_s(parser, text) < MEGABYTE_S, parser
    started = time.thread_time()
    read_highlights(text)
    thought_of(text)
    assert time.thread_time() - started < MEGABYTE_S
