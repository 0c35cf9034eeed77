"""Which rows to keep: columns of numbers → row indices. Pure numpy; `jobs.data.convert` calls it.

The two samplers of SPEC A2. The targets of `stratified` were measured on evaluation sets, so rows
drawn with it follow the benchmarks' distribution; it is never a default.
Shapes: N rows in the pool, B buckets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Strata = Literal["gt_len", "coverage", "joint"]

DIFFICULTY_BINS = 100
GT_LEN_EDGES_S = np.array([2.0, 5.0, 10.0, 20.0])
COVERAGE_EDGES = np.array([0.05, 0.1, 0.2, 0.4])
NUM_BANDS = len(GT_LEN_EDGES_S) + 1
"""Buckets of one quantity: below the first edge, between edges, from the last edge on."""

TARGETS: Mapping[Strata, Floats] = MappingProxyType(
    {
        "gt_len": np.array([0.1325, 0.3232, 0.1940, 0.1410, 0.2094]),
        "coverage": np.array([0.3454, 0.2075, 0.1831, 0.1236, 0.1405]),
        "joint": np.array(
            [
                [0.1217, 0.0102, 0.0006, 0.0, 0.0],
                [0.1560, 0.1069, 0.0536, 0.0066, 0.0001],
                [0.0644, 0.0364, 0.0482, 0.0410, 0.0039],
                [0.0033, 0.0525, 0.0339, 0.0267, 0.0246],
                [0.0, 0.0015, 0.0468, 0.0492, 0.1119],
            ]
        ).ravel(),
    }
)
"""Shares of the buckets on evaluation sets (SPEC A2); `joint` is gt_len x coverage, row by row."""


@dataclass(frozen=True)
class Stratified:
    """Drawn rows, and what the pool could not give."""

    indices: Indices
    """Shuffled; a row comes several times where its bucket was topped up."""
    short: Mapping[int, int]
    """Bucket → rows wanted there and not drawn: it was empty, or topping up was off."""


def gaussian(
    difficulties_N: Floats,
    k: int,
    *,
    rng: np.random.Generator,
    mean: float = 0.75,
    std: float = 0.2,
) -> Indices:
    """Draw `k` rows one after the other without replacement, favouring difficulties near `mean`.

    The weight of a row is exp(-(d - mean)^2 / 2 std^2) / p(d), p(d) the share of rows in d's of 100
    equal bins on [0, 1] (SPEC A2), so that the draw follows the bell and not the pool. Drawing
    is by the largest log weight plus Gumbel noise: the same law, and no weight underflows to 0.

    Args:
        difficulties_N: [N] in [0, 1].
        k: rows wanted; all rows, in their order, when there are no more.
        rng: where randomness comes from.
        mean: centre of the bell.
        std: its width, > 0.
    """
    if k >= len(difficulties_N):
        return np.arange(len(difficulties_N))
    bins_N = np.minimum((difficulties_N * DIFFICULTY_BINS).astype(np.int64), DIFFICULTY_BINS - 1)
    log_share_N = np.log(np.bincount(bins_N, minlength=DIFFICULTY_BINS)[bins_N])
    log_weight_N = -((difficulties_N - mean) ** 2) / (2 * std**2) - log_share_N
    keys_N = log_weight_N + rng.gumbel(size=len(log_weight_N))
    return np.argsort(-keys_N, kind="stable")[:k]


def stratified(
    gt_lens_s_N: Floats,
    coverages_N: Floats,
    k: int,
    *,
    by: Strata,
    rng: np.random.Generator,
    oversample: bool = True,
    difficulties_N: Floats | None = None,
    mean: float = 0.75,
    std: float = 0.2,
) -> Stratified:
    """Draw `k` rows whose lengths, coverages or both are distributed as in `TARGETS`.

    Args:
        gt_lens_s_N: [N] seconds, >= 0.
        coverages_N: [N] gt_len / duration, >= 0.
        k: rows wanted.
        by: what is distributed.
        rng: where randomness comes from.
        oversample: top short buckets up with replacement.
        difficulties_N: draw inside a bucket by `gaussian`; without it uniformly.
        mean: centre of that bell.
        std: its width.
    """

    def pick(members: Indices, count: int) -> Indices:
        if difficulties_N is None:
            return rng.choice(members, count, replace=False)
        return members[gaussian(difficulties_N[members], count, rng=rng, mean=mean, std=std)]

    buckets_N = bucket_of(gt_lens_s_N, coverages_N, by=by)
    drawn, short = [np.empty(0, dtype=np.int64)], {}
    for bucket, wanted in enumerate(target_counts(TARGETS[by], k)):
        chosen = _draw(
            np.flatnonzero(buckets_N == bucket),
            int(wanted),
            pick=pick,
            top_up=rng if oversample else None,
        )
        drawn.append(chosen)
        if len(chosen) < wanted:
            short[bucket] = int(wanted) - len(chosen)
    return Stratified(indices=rng.permutation(np.concatenate(drawn)), short=short)


def bucket_of(gt_lens_s_N: Floats, coverages_N: Floats, *, by: Strata) -> Indices:
    """[N] bucket of each row, as `TARGETS[by]` counts them; an edge belongs to the bucket above."""
    length_N: Indices = np.searchsorted(GT_LEN_EDGES_S, gt_lens_s_N, side="right")
    coverage_N: Indices = np.searchsorted(COVERAGE_EDGES, coverages_N, side="right")
    if by == "gt_len":
        return length_N
    joint_N: Indices = length_N * NUM_BANDS + coverage_N
    return coverage_N if by == "coverage" else joint_N


def bucket_name(bucket: int, *, by: Strata) -> str:
    """What a user calls a bucket, such as `gt_len [2, 5) s`."""
    if by == "joint":
        length, coverage = divmod(bucket, NUM_BANDS)
        return f"{bucket_name(length, by='gt_len')}, {bucket_name(coverage, by='coverage')}"
    inner = GT_LEN_EDGES_S if by == "gt_len" else COVERAGE_EDGES
    edges = [0.0, *inner.tolist(), np.inf]
    unit = " s" if by == "gt_len" else ""
    return f"{by} [{edges[bucket]:g}, {edges[bucket + 1]:g}){unit}"


def target_counts(shares_B: Floats, k: int) -> Indices:
    """[B] whole numbers that sum to `k`, by largest remainder; shares need not sum to 1."""
    exact_B = shares_B / shares_B.sum() * k
    counts_B: Indices = np.floor(exact_B).astype(np.int64)
    missing = k - int(counts_B.sum())
    largest = np.argsort(-(exact_B - counts_B), kind="stable")[:missing]
    counts_B[largest] += 1
    return counts_B


def _draw(
    members: Indices,
    wanted: int,
    *,
    pick: Callable[[Indices, int], Indices],
    top_up: np.random.Generator | None,
) -> Indices:
    """Up to `wanted` of a bucket's rows, more of the same where it has too few."""
    if wanted <= len(members):
        return pick(members, wanted)
    if top_up is None or len(members) == 0:
        return members
    more = top_up.choice(members, wanted - len(members), replace=True)
    return np.concatenate([members, more])
