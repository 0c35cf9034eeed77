"""Adversarial texts: ten times the text may cost about ten times the time, never a hundred.

Processor time of this thread, so that other work on the machine does not count.
"""

import time

import pytest

from common.answers.reading import PARSERS, read_highlights, read_spans
from common.answers.tags import thought_of
from tests.fixtures.adversarial import ADVERSARIAL

SMALL, LARGE = 100_000, 1_000_000
QUADRATIC = LARGE / SMALL * 6
"""Growth that only a quadratic reading reaches; linear ones stay near 10, capped ones near 1."""
NOISE_S = 0.004
"""Below this a ratio says nothing."""


def best_s(parser: str, text: str) -> float:
    def once() -> float:
        started = time.thread_time()
        read_spans(text, parser=parser)
        return time.thread_time() - started

    return min(once() for _ in range(3))


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_reading_time_grows_linearly(parser: str, name: str) -> None:
    make = ADVERSARIAL[name]
    large_s = best_s(parser, make(LARGE))
    small_s = best_s(parser, make(SMALL))
    assert large_s < NOISE_S or large_s / max(small_s, NOISE_S / 10) < QUADRATIC


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_highlights_and_thoughts_of_a_megabyte_are_read_in_bounded_time(name: str) -> None:
    text = ADVERSARIAL[name](LARGE)
    started = time.thread_time()
    read_highlights(text)
    thought_of(text)
    assert time.thread_time() - started < 1.0
