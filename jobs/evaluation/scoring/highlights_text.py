"""A highlight answer as text → a score for every clip of the video (SPEC B5).

    "… timestamps are in the 4, 6 seconds. Their saliency scores are 2, 3" -> [0 0 2 3 …]

Clips that are not mentioned score 0, which is how published language models are compared with
detectors on QVHighlights. A perfect answer of this kind reaches 60.81 mAP and 95.68 HIT@1 at Very
Good: the scores are means of three raters, and each rater is a truth of its own. Used by
`jobs.evaluation.scoring.score`; the reader is `common.answers.reading.read_highlights`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from common.answers.reading import highlight_answer, read_highlights
from common.messages import Highlight
from jobs.evaluation.scoring.moment_detr import CLIP_S, LEVELS


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScores:
    """A text answer over the clips of its video."""

    scores: tuple[float, ...]
    """One a clip, `int(duration / 2)` of them; 0 where the answer says nothing."""
    outside: int
    """Timestamps past the end of the video, left out."""


def clip_scores(text: str, *, duration_s: float) -> ClipScores | None:
    """Spread an answer over the clips of its video; None if it cannot be read.

    A timestamp belongs to the clip it falls in; of two for one clip the first counts (SPEC B2).
    """
    highlights = read_highlights(text)
    if not highlights:
        return None
    num_clips = int(duration_s / CLIP_S)
    said: dict[int, float] = {}
    for highlight in highlights:
        said.setdefault(int(highlight.time_s // CLIP_S), highlight.score)
    return ClipScores(
        scores=tuple(said.get(clip, 0.0) for clip in range(num_clips)),
        outside=sum(clip >= num_clips for clip in said),
    )


def hits(scores: Sequence[float], *, ratings: Mapping[int, Sequence[float]]) -> bool:
    """Whether a rater found the clip with the highest score, of equals the first, Very Good."""
    top = max(range(len(scores)), key=scores.__getitem__, default=-1)
    return max(ratings.get(top, (0.0,))) >= LEVELS["VeryGood"]


def true_answer(clip_ids: Sequence[int], *, saliency: Sequence[Sequence[float]]) -> str:
    """The paper's text of an annotation: clip starts, the raters' mean to one decimal (SPEC B2)."""
    return highlight_answer(
        (
            Highlight(time_s=clip * CLIP_S, score=fmean(ratings))
            for clip, ratings in zip(clip_ids, saliency, strict=True)
        ),
        decimals=1,
    )
