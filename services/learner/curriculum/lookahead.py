"""Clips of the rows that come next, found out beside the steps: `expect(rows)`, `clip_of(row)`.

A video that is asked for the first time is read whole once, for its digest and its index. On a
network disk that takes as long as a step, so it must not happen between two of them.

Neighbours: `services.learner.feed` asks; `common.video.loader` reads.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from common.messages import ClipRef
from common.rows import Row
from common.video.loader import ClipLoader

FILES_AT_ONCE = 2


class LookAhead:
    """Reads files in threads of its own; called from one thread."""

    def __init__(self, loader: ClipLoader) -> None:
        self._loader = loader
        self._threads = ThreadPoolExecutor(FILES_AT_ONCE, "lookahead")
        self._expected: dict[str, Future[ClipRef]] = {}
        """By row id."""

    def expect(self, rows: Sequence[Row]) -> None:
        """Begin with these, in this order; what was expected before and is not among them is
        forgotten."""
        before = self._expected
        self._expected = {}
        for row in rows:
            known = before.pop(row.row_id, None)
            self._expected[row.row_id] = known or self._threads.submit(
                self._loader.sample, row.video, row.window
            )
        for forgotten in before.values():
            forgotten.cancel()

    def clip_of(self, row: Row) -> ClipRef:
        """What was found out of an expected row, once it is; of any other, now.

        Raises:
            VideoError: the file cannot be used.
        """
        found = self._expected.pop(row.row_id, None)
        return found.result() if found else self._loader.sample(row.video, row.window)

    def close(self) -> None:
        """Begin with nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
