"""Samplers: the laws of SPEC A2, checked on pools with known numbers."""

import numpy as np
import pytest

from jobs.data.row_sampling import (
    TARGETS,
    Strata,
    bucket_name,
    bucket_of,
    gaussian,
    stratified,
    target_counts,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_gaussian_draws_without_replacement_and_repeats_with_the_seed() -> None:
    pool = rng().uniform(size=1000)
    drawn = gaussian(pool, 200, rng=rng(3))
    assert len(set(drawn.tolist())) == 200
    assert drawn.tolist() == gaussian(pool, 200, rng=rng(3)).tolist()
    assert drawn.tolist() != gaussian(pool, 200, rng=rng(4)).tolist()


def test_gaussian_follows_the_bell_and_not_the_pool() -> None:
    """The pool is skewed: p(d) ~ 1 - d. Few rows of many are drawn, so the bell comes out."""
    pool = 1 - np.sqrt(rng().uniform(size=200_000))
    drawn = pool[gaussian(pool, 4000, rng=rng(1), mean=0.5, std=0.1)]
    assert drawn.mean() == pytest.approx(0.5, abs=0.006)
    assert drawn.std() == pytest.approx(0.1, abs=0.006)


def test_gaussian_first_draw_has_the_weights_of_the_formula() -> None:
    """Two bins: 3 rows at 0.705, 1 at 1.0 (the last bin is closed). Weights by hand."""
    pool = np.array([0.705, 0.705, 0.705, 1.0])
    bell = np.exp(-((pool - 0.75) ** 2) / (2 * 0.2**2))
    weights = bell / np.array([0.75, 0.75, 0.75, 0.25])
    generator = rng(5)
    first = np.array([gaussian(pool, 1, rng=generator)[0] for _ in range(20_000)])
    found = np.bincount(first, minlength=4) / len(first)
    np.testing.assert_allclose(found, weights / weights.sum(), atol=0.012)


def test_gaussian_draws_even_where_every_weight_underflows() -> None:
    drawn = gaussian(np.linspace(0, 0.1, 50), 10, rng=rng(), mean=0.9, std=0.001)
    assert sorted(drawn.tolist()) == list(range(40, 50))


@pytest.mark.parametrize("k", [3, 4])
def test_gaussian_gives_all_rows_in_order_when_there_are_no_more(k: int) -> None:
    assert gaussian(np.array([0.9, 0.1, 0.5]), k, rng=rng()).tolist() == [0, 1, 2]


def test_bucket_edges_belong_to_the_bucket_above() -> None:
    lengths = np.array([0.0, 1.99, 2.0, 5.0, 9.99, 10.0, 20.0, 1e9])
    coverages = np.array([0.0, 0.05, 0.1, 0.2, 0.39, 0.4, 1.0, 1.0])
    assert bucket_of(lengths, coverages, by="gt_len").tolist() == [0, 0, 1, 2, 2, 3, 4, 4]
    assert bucket_of(lengths, coverages, by="coverage").tolist() == [0, 1, 2, 3, 3, 4, 4, 4]
    assert bucket_of(lengths, coverages, by="joint").tolist() == [0, 1, 7, 13, 13, 19, 24, 24]


def test_bucket_names_say_their_ranges() -> None:
    assert bucket_name(1, by="gt_len") == "gt_len [2, 5) s"
    assert bucket_name(4, by="coverage") == "coverage [0.4, inf)"
    assert bucket_name(9, by="joint") == "gt_len [2, 5) s, coverage [0.4, inf)"


def test_targets_are_shares_that_nearly_sum_to_one() -> None:
    assert TARGETS["joint"].reshape(5, 5).sum(axis=1) == pytest.approx(TARGETS["gt_len"], abs=3e-4)
    assert TARGETS["joint"].reshape(5, 5).sum(axis=0) == pytest.approx(
        TARGETS["coverage"], abs=3e-4
    )


@pytest.mark.parametrize("k", [1, 7, 100, 2000])
@pytest.mark.parametrize("by", ["gt_len", "coverage", "joint"])
def test_counts_sum_to_k_and_are_within_one_of_the_shares(by: Strata, k: int) -> None:
    shares = TARGETS[by] / TARGETS[by].sum()
    counts = target_counts(TARGETS[by], k)
    assert counts.sum() == k
    assert np.abs(counts - shares * k).max() < 1


def test_largest_remainders_are_rounded_up() -> None:
    assert target_counts(np.array([0.5, 0.3, 0.2]), 4).tolist() == [2, 1, 1]


def test_stratified_has_the_target_counts_and_no_repeats_in_a_rich_pool() -> None:
    lengths, durations = rng().uniform(0.1, 30, 50_000), rng(1).uniform(30, 200, 50_000)
    drawn = stratified(lengths, lengths / durations, 500, by="gt_len", rng=rng(2))
    counts = np.bincount(bucket_of(lengths, lengths, by="gt_len")[drawn.indices], minlength=5)
    assert counts.tolist() == target_counts(TARGETS["gt_len"], 500).tolist()
    assert len(set(drawn.indices.tolist())) == 500
    assert not drawn.short
    assert drawn.indices.tolist() != sorted(drawn.indices.tolist())


def test_short_bucket_is_topped_up_with_its_own_rows() -> None:
    lengths = np.array([1.0] * 5 + [3.0] * 100 + [7.0] * 100 + [15.0] * 100)
    drawn = stratified(lengths, lengths / 100, 100, by="gt_len", rng=rng())
    short_rows = [index for index in drawn.indices.tolist() if index < 5]
    assert len(short_rows) == 13
    assert set(short_rows) == set(range(5))
    assert dict(drawn.short) == {4: 21}


def test_without_oversampling_a_short_bucket_stays_short() -> None:
    lengths = np.array([1.0] * 5 + [3.0] * 100 + [7.0] * 100 + [15.0] * 100)
    drawn = stratified(lengths, lengths / 100, 100, by="gt_len", rng=rng(), oversample=False)
    assert len(set(drawn.indices.tolist())) == len(drawn.indices) == 100 - 8 - 21
    assert dict(drawn.short) == {0: 8, 4: 21}


def test_rows_of_a_bucket_can_be_drawn_by_difficulty() -> None:
    lengths = np.full(10_000, 3.0)
    hard = rng(7).uniform(size=10_000)
    bell = stratified(lengths, lengths / 100, 1000, by="gt_len", rng=rng(8), difficulties_N=hard)
    uniform = stratified(lengths, lengths / 100, 1000, by="gt_len", rng=rng(8))
    assert hard[bell.indices].mean() == pytest.approx(0.71, abs=0.03)
    assert hard[uniform.indices].mean() == pytest.approx(0.5, abs=0.05)
