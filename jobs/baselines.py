"""What an answer is worth that never looks at the clip: the best constant span, a random span.

The constant is chosen on training rows and scored on the evaluated ones, so it is a prediction, not
a bound fitted to the test. Both draw from the same grid of spans. Shapes: C candidates, Q queries.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.spans import Span
from jobs.grounding import Record, Row

GRID_S = 0.5
"""Starts and ends of candidate spans are multiples of this."""
GOOD_IOU = 0.5

Floats = npt.NDArray[np.float64]


class Baselines(Record):
    """Scores over the evaluated rows, in [0, 1]."""

    constant_span: Span
    """Seconds; the candidate with the highest mean IoU over the training rows."""
    constant_miou: float
    constant_r1_at_0_5: float
    random_miou: float
    """Expected mean IoU of a span drawn uniformly from the grid, computed exactly."""
    random_r1_at_0_5: float


def blind_baselines(
    train_rows: Sequence[Row], *, eval_rows: Sequence[Row], grid_s: float = GRID_S
) -> Baselines:
    """Score both baselines.

    Args:
        train_rows: choose the constant; none of them is scored.
        eval_rows: are scored; they choose nothing.
        grid_s: step of the grid of candidates in seconds.
    """
    constant = best_constant([row.true_span for row in train_rows], grid_s=grid_s)
    true_Q2 = np.array([row.true_span for row in eval_rows])
    constant_Q = iou_matrix(np.array([constant]), true_Q2)[0]
    random_2 = np.mean([_expected(row, grid_s) for row in eval_rows], axis=0)
    return Baselines(
        constant_span=constant,
        constant_miou=float(constant_Q.mean()),
        constant_r1_at_0_5=float((constant_Q >= GOOD_IOU).mean()),
        random_miou=float(random_2[0]),
        random_r1_at_0_5=float(random_2[1]),
    )


def best_constant(true_spans: Sequence[Span], *, grid_s: float = GRID_S) -> Span:
    """The grid span with the highest mean IoU: exhaustive search up to the last true end.

    Of equal candidates the earliest, then the shortest, is taken.
    """
    true_Q2 = np.array(true_spans)
    candidates_C2 = grid_spans(float(true_Q2[:, 1].max()), grid_s=grid_s)
    means = [iou_matrix(one[None], true_Q2).mean() for one in candidates_C2]
    start_s, end_s = candidates_C2[int(np.argmax(means))]
    return float(start_s), float(end_s)


def grid_spans(duration_s: float, *, grid_s: float = GRID_S) -> Floats:
    """[C, 2] seconds: every span of positive length whose ends lie on the grid, in the clip."""
    cells = max(1, round(duration_s / grid_s))
    edges = np.array([(i, j) for i in range(cells) for j in range(i + 1, cells + 1)])
    return edges * grid_s


def iou_matrix(candidates_C2: Floats, true_Q2: Floats) -> Floats:
    """[C, Q] IoU of spans, as `common.spans.iou`."""
    start_C1, end_C1 = candidates_C2[:, :1], candidates_C2[:, 1:]
    start_1Q, end_1Q = true_Q2[:, 0][None], true_Q2[:, 1][None]
    overlap_CQ = np.maximum(0.0, np.minimum(end_C1, end_1Q) - np.maximum(start_C1, start_1Q))
    hull_CQ = np.maximum(end_C1, end_1Q) - np.minimum(start_C1, start_1Q)
    ious_CQ: Floats = overlap_CQ / hull_CQ
    return ious_CQ


def _expected(row: Row, grid_s: float) -> tuple[float, float]:
    """Mean IoU and share of IoUs >= 0.5 over all candidates for one row."""
    ious_C = iou_matrix(grid_spans(row.duration_s, grid_s=grid_s), np.array([row.true_span]))[:, 0]
    return float(ious_C.mean()), float((ious_C >= GOOD_IOU).mean())
