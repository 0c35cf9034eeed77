"""Regimes: what the demo trains on. Name → clips, training rows, start checkpoint.

`write_split` writes what a run reads; `deploy/configs/regimes/<name>.toml` is its run file,
docs/compare.md has the rule of each in which methods are compared, written before its results;
`hybrid` is not compared, it shows answers and thoughts in one run. Clips of equal options are
shared: `few` and `noisy` have rows of their own over the demo's clips.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.answers.reading import grounding_answer
from common.answers.spans import Span
from jobs.toy import clips
from jobs.toy.clips import DEMO, NUM_CLIPS, ClipOptions, Split

LABEL_DECIMALS = 1
"""Of displaced labels, as of answers."""
LEAST_LABEL_S = 0.5
"""A displaced label is at least so long."""
NOISE_SEED = 21


@dataclass(frozen=True)
class StartRecipe:
    """A start checkpoint made from the shipped one (`jobs.toy.make_model`)."""

    warm_clips: int
    validation_clips: int
    start_miou: float
    """The first evaluation that reaches this validation mIoU gives the checkpoint."""
    thinks: bool = False
    """Whether every other update asks for a thought before the answer, and evaluations do."""


@dataclass(frozen=True)
class Regime:
    """One setting of the demo."""

    name: str
    options: ClipOptions = DEMO
    train_clips: int = NUM_CLIPS["train"]
    """Three rows each."""
    label_noise_s: float = 0.0
    """Standard deviation by which both ends of a training label are displaced; held-out labels stay
    exact."""
    start: StartRecipe | None = None
    """None: the shipped checkpoint."""

    @property
    def has_own_clips(self) -> bool:
        """Whether its clips are not the demo's."""
        return self.options != DEMO

    @property
    def has_own_rows(self) -> bool:
        """Whether its rows are not simply all rows of its clips."""
        return self.label_noise_s > 0 or self.train_clips != NUM_CLIPS["train"]

    def video_root(self, data: Path) -> Path:
        """Where its clips lie; `data` holds the demo's."""
        return data.with_name(f"{data.name}-{self.name}") if self.has_own_clips else data

    def rows(self, data: Path, split: Split) -> Path:
        """Its rows of a split; paths in them start at `video_root`."""
        root = self.video_root(data)
        return (root / self.name if self.has_own_rows else root) / split / "rows.jsonl"

    def described(self) -> dict[str, Any]:
        """Everything here that decides a run's result, as JSON."""
        return asdict(self)


REGIMES: Mapping[str, Regime] = {
    regime.name: regime
    for regime in (
        Regime("full"),
        Regime("few", train_clips=16),
        Regime("noisy", label_noise_s=1.2),
        Regime(
            "long",
            options=ClipOptions(duration_s=64.0, grid_s=0.1, min_span_s=1.5, max_span_s=4.0),
            start=StartRecipe(warm_clips=256, validation_clips=48, start_miou=0.05),
        ),
        Regime(
            "several",
            options=ClipOptions(max_span_s=3.5, most_spans=3),
            start=StartRecipe(warm_clips=256, validation_clips=48, start_miou=0.30),
        ),
        Regime(
            "hybrid",
            start=StartRecipe(warm_clips=256, validation_clips=48, start_miou=0.40, thinks=True),
        ),
    )
}


def write_split(data: Path, regime: Regime, split: Split, *, num_clips: int | None = None) -> Path:
    """Write the clips of a split that are not there yet and all its rows; returns the row file.

    Args:
        data: video root of the demo's clips.
        regime: what is written.
        split: which seed.
        num_clips: default: all of the regime.
    """
    count = num_clips or (regime.train_clips if split == "train" else NUM_CLIPS[split])
    root = regime.video_root(data)
    clips.write_clips(root, split, num_clips=count, options=regime.options)
    rows = [row for i in range(count) for row in _rows(regime, split, i)]
    return clips.write_rows(regime.rows(data, split), rows)


def _rows(regime: Regime, split: Split, index: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng([NOISE_SEED, index])
    for row in clips.clip_rows(split, index, options=regime.options):
        if regime.label_noise_s and split == "train":
            yield _displaced(row, rng, std_s=regime.label_noise_s)
        else:
            yield row


def _displaced(row: dict[str, Any], rng: np.random.Generator, *, std_s: float) -> dict[str, Any]:
    spans = [_displace((start, end), rng, std_s, row["duration"]) for start, end in row["spans"]]
    return {
        **row,
        "answer": grounding_answer(spans, decimals=LABEL_DECIMALS),
        "gt_len": round(sum(end - start for start, end in spans), 6),
        "spans": [list(span) for span in spans],
    }


def _displace(span: Span, rng: np.random.Generator, std_s: float, duration_s: float) -> Span:
    """Both ends moved by a normal, inside the clip, in order and `LEAST_LABEL_S` apart."""
    first, last = sorted(np.array(span) + rng.normal(0, std_s, 2))
    start = float(np.clip(first, 0, duration_s - LEAST_LABEL_S))
    end = float(np.clip(last, start + LEAST_LABEL_S, duration_s))
    return round(start, LABEL_DECIMALS), round(end, LABEL_DECIMALS)
