"""Python's garbage collector, told to rest while much is made that stays."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def nothing_collected() -> Iterator[None]:
    """Everything lives to the end, and the collector would walk it again and again: a fifth of the
    time of 100,000 predictions, two fifths of that of 80,000 groups' summaries."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
