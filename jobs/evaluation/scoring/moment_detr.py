"""The QVHighlights evaluator (SPEC B5): windows and clip scores → the numbers of its leaderboard.

    Truth + Submission per query -> evaluate() -> {"brief": …, "full": …, "HL-min-Fair": …}

Moment retrieval (MR) and highlight detection (HL) as moment_detr's public evaluator computes them,
key by key and to its two decimals; its own figures are the goldens. Figures are percentages. Two
things it does not define are defined here: a query answered with no window counts 0 (it stops with
an index error), and so does one whose clip scores are None because the answer could not be read.
`jobs.evaluation.scoring.score` calls this; `jobs.evaluation.scoring.highlights_text` makes clip
scores from text. Letters: P predicted windows, W true windows, T thresholds, C clips, L levels x
raters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from common.answers.spans import Span

Floats = npt.NDArray[np.float64]
Figures = dict[str, float]
Metrics = Mapping[str, Mapping[str, Any]]
"""`Figures` by level of highlight and by kind of moment, as the public evaluator nests them."""
Windows = Sequence[tuple[float, float, float]]
"""`(start_s, end_s, confidence)`, the one for R1 first."""

CLIP_S: Final = 2.0
"""QVHighlights rates clips of two seconds."""
NUM_RATERS: Final = 3
MAX_WINDOWS: Final = 10
"""Windows past this are not looked at for mAP; they are cut before they are ranked."""
THRESHOLDS: Final = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
LEVELS: Final[Mapping[str, int]] = {"Fair": 2, "Good": 3, "VeryGood": 4}
"""Smallest rating, 0 to 4, that makes a clip a highlight."""
LENGTHS_S: Final[Mapping[str, tuple[float, float]]] = {
    "short": (0, 10),
    "middle": (10, 30),
    "long": (30, 150),
}
"""Lengths above the first and up to the second number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What the annotators of one query wrote."""

    windows: Sequence[Span]
    """Relevant windows in seconds."""
    duration_s: float
    clip_ids: Sequence[int] = ()
    """Rated clips, `CLIP_S` seconds each, counted from 0."""
    saliency: Sequence[Sequence[float]] = ()
    """[len(clip_ids)][3] ratings, 0 to 4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What was predicted for one query."""

    windows: Windows = ()
    saliency: Sequence[float] | None = None
    """A score for each clip; missing clips count 0. None: there was no readable answer."""


def evaluate(
    truths: Mapping[str, Truth],
    *,
    submissions: Mapping[str, Submission],
    moments: bool,
    highlights: bool,
) -> Metrics:
    """Every figure of the public evaluator, in percent with two decimals.

    A range of lengths without true windows is left out.

    Args:
        truths: annotations by query id.
        submissions: predictions by query id, the same ids.
        moments: whether windows were predicted.
        highlights: whether clip scores were predicted.

    Raises:
        ValueError: the ids differ or there are none, a query has no true window, or an annotation
            rates a clip that its video has not.
    """
    if truths.keys() != submissions.keys() or not truths:
        raise ValueError(
            f"found {len(submissions)} submissions for {len(truths)} annotations, wanted the same "
            f"ids: {sorted(truths.keys() ^ submissions.keys())[:5]} have only one of the two"
        )
    by_length = _all_moments(truths, submissions) if moments else {}
    by_level = _highlights(truths, submissions) if highlights else {}
    return {"brief": _brief(by_length, by_level), **by_level, **dict(sorted(by_length.items()))}


def _all_moments(
    truths: Mapping[str, Truth], submissions: Mapping[str, Submission]
) -> dict[str, dict[str, Figures]]:
    if missing := [qid for qid, truth in truths.items() if not truth.windows]:
        raise ValueError(f"found no relevant window of qid {missing[0]}, wanted at least one")
    figures = {}
    for name in ("full", *LENGTHS_S):
        wanted = {qid: _windows_of_length(truth, name=name) for qid, truth in truths.items()}
        pairs = [
            (submissions[qid].windows, np.asarray(windows, dtype=np.float64))
            for qid, windows in wanted.items()
            if windows
        ]
        if pairs:
            figures[name] = _moments(pairs)
    return figures


def _moments(pairs: Sequence[tuple[Windows, Floats]]) -> dict[str, Figures]:
    """MR-mAP and MR-R1 of queries: predicted windows, best first, and `[W, 2]` true ones."""
    ap_T = np.mean([average_precision(windows, true_W2=true_W2) for windows, true_W2 in pairs], 0)
    best = np.array([_top_one_iou(windows, true_W2) for windows, true_W2 in pairs])
    names = [str(threshold) for threshold in THRESHOLDS]
    precision = {name: _percent(value) for name, value in zip(names, ap_T, strict=True)}
    precision["average"] = _percent(np.mean(ap_T))
    recall = {
        name: _percent(np.mean(best >= threshold))
        for name, threshold in zip(names, THRESHOLDS, strict=True)
    }
    return {"MR-mAP": precision, "MR-R1": recall}


def _windows_of_length(truth: Truth, *, name: str) -> list[Span]:
    if name == "full":
        return list(truth.windows)
    above_s, up_to_s = LENGTHS_S[name]
    return [(start, end) for start, end in truth.windows if above_s < end - start <= up_to_s]


def average_precision(windows: Windows, *, true_W2: Floats) -> Floats:
    """[T] AP of one query at each threshold, in [0, 1]; 0 without windows.

    The windows, best first, each take the free true window of the highest IoU at or above the
    threshold; precision is interpolated as in PASCAL VOC 2011.
    """
    if not windows:
        return np.zeros(len(THRESHOLDS))
    ranked = sorted(windows[:MAX_WINDOWS], key=lambda window: -window[2])
    iou_PW = window_ious(np.array([window[:2] for window in ranked]), true_W2=true_W2)
    by_iou = [
        list(zip(row.argsort()[::-1].tolist(), np.sort(row)[::-1].tolist(), strict=True))
        for row in iou_PW
    ]
    return np.array([_ap(_matches(by_iou, threshold), len(true_W2)) for threshold in THRESHOLDS])


def _matches(by_iou: Sequence[Sequence[tuple[int, float]]], threshold: float) -> list[bool]:
    """Whether each ranked window is a true positive."""
    taken: set[int] = set()
    hits = []
    for candidates in by_iou:
        free = next(
            (index for index, iou in candidates if iou >= threshold and index not in taken), None
        )
        hits.append(free is not None)
        if free is not None:
            taken.add(free)
    return hits


def _ap(hits: Sequence[bool], num_true: int) -> float:
    """Area under the interpolated precision-recall steps of a ranking."""
    num_hits = np.cumsum(hits)
    precision = num_hits / np.arange(1, len(hits) + 1)
    best_onwards = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_onwards[np.asarray(hits)].sum() / num_true)


def window_ious(windows_P2: Floats, *, true_W2: Floats) -> Floats:
    """[P, W] intersection over union of every pair; 0 where the union is 0."""
    first_P12, second_1W2 = windows_P2[:, None], true_W2[None]
    left = np.maximum(first_P12[..., 0], second_1W2[..., 0])
    right = np.minimum(first_P12[..., 1], second_1W2[..., 1])
    shared = np.clip(right - left, 0, None)
    lengths = (first_P12[..., 1] - first_P12[..., 0]) + (second_1W2[..., 1] - second_1W2[..., 0])
    union = lengths - shared
    ious: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union != 0)
    return ious


def _top_one_iou(windows: Windows, true_W2: Floats) -> float:
    """IoU over the hull of the first window with the true window it overlaps best (SPEC B5)."""
    if not windows:
        return 0.0
    start, end, _ = windows[0]
    ious_W = window_ious(np.array([[start, end]]), true_W2=true_W2)[0]
    true_start, true_end = true_W2[int(np.argmax(ious_W))].tolist()
    hull = max(end, true_end) - min(start, true_start)
    shared = max(0.0, min(end, true_end) - max(start, true_start))
    return shared / hull if hull != 0 else 0.0


def _highlights(
    truths: Mapping[str, Truth], submissions: Mapping[str, Submission]
) -> dict[str, Figures]:
    """HL-mAP and HL-Hit1 at every level."""
    scores_QL = np.zeros((len(truths), len(LEVELS) * NUM_RATERS))
    hits_QL = np.zeros_like(scores_QL)
    for row, (qid, truth) in enumerate(truths.items()):
        saliency = submissions[qid].saliency
        if saliency is not None:
            positive_CL = positive_clips(truth, qid=qid)
            scores_QL[row] = clip_average_precision(saliency, positive_CL=positive_CL)
            top = int(np.argmax(saliency)) if len(saliency) else len(positive_CL)
            hits_QL[row] = positive_CL[top] if top < len(positive_CL) else 0.0
    figures = {}
    for level, name in enumerate(LEVELS):
        raters = slice(level * NUM_RATERS, (level + 1) * NUM_RATERS)
        figures[f"HL-min-{name}"] = {
            "HL-mAP": _percent(np.mean(scores_QL[:, raters])),
            "HL-Hit1": _percent(np.mean(np.max(hits_QL[:, raters], axis=1))),
        }
    return figures


def positive_clips(truth: Truth, *, qid: str) -> npt.NDArray[np.bool_]:
    """[C, L] whether a rater gave a clip at least Fair, Good, VeryGood; raters vary fastest.

    Raises:
        ValueError: a rated clip lies outside the video, or a clip has not three ratings.
    """
    num_clips = int(truth.duration_s / CLIP_S)
    if any(not 0 <= clip < num_clips for clip in truth.clip_ids):
        raise ValueError(
            f"qid {qid}: found a rating for clip {max(truth.clip_ids)}, wanted clips 0 to "
            f"{num_clips - 1} of {truth.duration_s} s"
        )
    if any(len(ratings) != NUM_RATERS for ratings in truth.saliency):
        raise ValueError(f"qid {qid}: found a clip without {NUM_RATERS} ratings")
    rated_C3 = np.zeros((num_clips, NUM_RATERS))
    if len(truth.clip_ids):
        rated_C3[np.asarray(truth.clip_ids)] = np.asarray(truth.saliency, dtype=np.float64)
    return np.concatenate([rated_C3 >= minimum for minimum in LEVELS.values()], axis=1)


def clip_average_precision(
    saliency: Sequence[float], *, positive_CL: npt.NDArray[np.bool_]
) -> Floats:
    """[L] AP of a ranking of clips: mean interpolated precision where the recall rises.

    Scores are cut, or filled with zeros, to the number of clips. Clips of equal score enter
    together. A column without positives is 0; one with nothing else is 1.
    """
    num_clips = len(positive_CL)
    scores_C = np.zeros(num_clips)
    scores_C[: len(saliency)] = saliency[:num_clips]
    order = np.argsort(-scores_C, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(scores_C[order]) != 0, True))
    hits_KL = np.cumsum(positive_CL[order], axis=0)[last_of_tie]
    precision_KL = hits_KL / (last_of_tie + 1)[:, None]
    best_onwards_KL = np.maximum.accumulate(precision_KL[::-1])[::-1]
    rises_KL = np.diff(hits_KL, axis=0, prepend=0) > 0
    sums_L = np.where(rises_KL, best_onwards_KL, 0.0).sum(axis=0)
    average_L = sums_L / np.maximum(rises_KL.sum(axis=0), 1)
    return np.where(positive_CL.all(axis=0), 1.0, average_L)


def _brief(
    by_length: Mapping[str, Mapping[str, Figures]], by_level: Mapping[str, Figures]
) -> Figures:
    """The figures of the leaderboard."""
    brief: Figures = {}
    if full := by_length.get("full"):
        brief |= {f"MR-full-R1@{at}": full["MR-R1"][at] for at in ("0.5", "0.7")}
        brief["MR-full-mAP"] = full["MR-mAP"]["average"]
        brief |= {f"MR-full-mAP@{at}": full["MR-mAP"][at] for at in ("0.5", "0.75")}
    for name in LENGTHS_S:
        if name in by_length:
            brief[f"MR-{name}-mAP"] = by_length[name]["MR-mAP"]["average"]
    for level, figures in by_level.items():
        brief |= {f"{level}-{key.removeprefix('HL-')}": value for key, value in figures.items()}
    return brief


def _percent(share: float | np.floating[Any]) -> float:
    """To two decimals, by printing, as the public evaluator rounds."""
    return float(f"{100 * share:.2f}")
