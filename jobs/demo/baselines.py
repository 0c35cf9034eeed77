"""What an answer is worth that never looks at the clip: the best constant span, a random span.

The constant is chosen on training questions and scored on the evaluated ones, so it is a
prediction, not a bound fitted to the test. Both draw from the same grid of spans. A query may have
several true spans, an answer here has one. Shapes: C candidates, Q queries, S most true spans of a
query; fewer are padded with spans of length 0.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.answers.spans import Span, merge
from jobs.demo.figures import Record
from jobs.evaluation.scoring.matching import Question

GRID_S = 0.5
"""Starts and ends of candidate spans are multiples of this."""
GOOD_IOU = 0.5

Floats = npt.NDArray[np.float64]


class Baselines(Record):
    """Scores over the evaluated questions, in [0, 1]."""

    constant_span: Span
    """Seconds; the candidate with the highest mean IoU over the training questions."""
    constant_miou: float
    constant_r1_at_0_5: float
    random_miou: float
    """Expected mean IoU of a span drawn uniformly from the grid, computed exactly."""
    random_r1_at_0_5: float


def blind_baselines(
    train: Sequence[Question], *, evaluated: Sequence[Question], grid_s: float = GRID_S
) -> Baselines:
    """Score both baselines.

    Args:
        train: choose the constant; none of them is scored.
        evaluated: are scored; they choose nothing.
        grid_s: step of the grid of candidates in seconds.

    Raises:
        ValueError: an evaluated question has no duration.
    """
    constant = best_constant([question.spans for question in train], grid_s=grid_s)
    true_QS2 = padded([question.spans for question in evaluated])
    constant_Q = iou_matrix(np.array([constant]), true_QS2)[0]
    random_2 = np.mean([_expected(question, grid_s) for question in evaluated], axis=0)
    return Baselines(
        constant_span=constant,
        constant_miou=float(constant_Q.mean()),
        constant_r1_at_0_5=float((constant_Q >= GOOD_IOU).mean()),
        random_miou=float(random_2[0]),
        random_r1_at_0_5=float(random_2[1]),
    )


def best_constant(truths: Sequence[Sequence[Span]], *, grid_s: float = GRID_S) -> Span:
    """The grid span with the highest mean IoU: exhaustive search up to the last true end.

    Of equal candidates the earliest, then the shortest, is taken.
    """
    true_QS2 = padded(truths)
    candidates_C2 = grid_spans(float(true_QS2[..., 1].max()), grid_s=grid_s)
    means = [iou_matrix(one[None], true_QS2).mean() for one in candidates_C2]
    start_s, end_s = candidates_C2[int(np.argmax(means))]
    return float(start_s), float(end_s)


def padded(truths: Sequence[Sequence[Span]]) -> Floats:
    """[Q, S, 2] seconds: the true spans of each query, merged."""
    merged = [merge(spans) for spans in truths]
    most = max(map(len, merged))
    return np.array([[*spans, *[(0.0, 0.0)] * (most - len(spans))] for spans in merged])


def grid_spans(duration_s: float, *, grid_s: float = GRID_S) -> Floats:
    """[C, 2] seconds: every span of positive length whose ends lie on the grid, in the clip."""
    cells = max(1, round(duration_s / grid_s))
    edges = np.array([(i, j) for i in range(cells) for j in range(i + 1, cells + 1)])
    return edges * grid_s


def iou_matrix(candidates_C2: Floats, true_QS2: Floats) -> Floats:
    """[C, Q] IoU of a span with all true spans of a query, as `common.answers.spans.union_iou`."""
    start_C11, end_C11 = candidates_C2[:, :1, None], candidates_C2[:, 1:, None]
    start_1QS, end_1QS = true_QS2[None, ..., 0], true_QS2[None, ..., 1]
    overlap_CQS = np.minimum(end_C11, end_1QS) - np.maximum(start_C11, start_1QS)
    overlap_CQ = np.maximum(0.0, overlap_CQS).sum(-1)
    length_CQ = (end_C11 - start_C11)[..., 0] + (end_1QS - start_1QS).sum(-1)
    ious_CQ: Floats = overlap_CQ / (length_CQ - overlap_CQ)
    return ious_CQ


def _expected(question: Question, grid_s: float) -> tuple[float, float]:
    """Mean IoU and share of IoUs >= 0.5 over all candidates for one question."""
    if question.duration_s is None:
        raise ValueError(f"{question.id}: found no duration, wanted it to draw a random span")
    candidates_C2 = grid_spans(question.duration_s, grid_s=grid_s)
    ious_C = iou_matrix(candidates_C2, padded([question.spans]))[:, 0]
    return float(ious_C.mean()), float((ious_C >= GOOD_IOU).mean())
