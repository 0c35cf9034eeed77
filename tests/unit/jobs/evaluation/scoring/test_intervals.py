"""Bootstrap intervals agree with SciPy's and with theory."""

import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from jobs.evaluation.scoring.intervals import mean_interval, paired_difference

RNG = np.random.default_rng(7)
IOUS = RNG.beta(0.6, 0.8, size=400)


def test_interval_agrees_with_scipys_percentile_bootstrap() -> None:
    found = mean_interval(IOUS, resamples=4000)
    wanted = bootstrap(
        (IOUS,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    ).confidence_interval

    width = wanted.high - wanted.low
    assert found.mean == IOUS.mean()
    assert abs(found.low - wanted.low) < 0.06 * width
    assert abs(found.high - wanted.high) < 0.06 * width


def test_share_is_drawn_as_resampling_its_ones_and_zeros_would() -> None:
    hits = IOUS >= 0.5

    share = mean_interval(hits, resamples=4000)
    drawn = mean_interval(hits.astype(np.float64), resamples=4000)

    width = drawn.high - drawn.low
    assert share.mean == drawn.mean
    assert abs(share.low - drawn.low) < 0.06 * width
    assert abs(share.high - drawn.high) < 0.06 * width


def test_interval_is_as_wide_as_theory_says() -> None:
    values = RNG.normal(size=2000)

    found = mean_interval(values, resamples=2000)

    wanted = 2 * norm.ppf(0.975) * values.std() / np.sqrt(len(values))
    assert found.high - found.low == pytest.approx(wanted, rel=0.1)


def test_paired_difference_is_narrower_than_two_runs_apart() -> None:
    better = np.clip(IOUS + 0.02, 0, 1)

    difference = paired_difference(IOUS, second=better)

    assert 0 < difference.low < difference.mean < difference.high < 0.03
    assert mean_interval(IOUS).high > mean_interval(better).low


def test_seed_repeats_the_interval() -> None:
    assert mean_interval(IOUS, seed=3) == mean_interval(IOUS, seed=3)
    assert mean_interval(IOUS, seed=3) != mean_interval(IOUS, seed=4)


def test_the_order_of_answers_does_not_move_an_interval() -> None:
    one, other = mean_interval(IOUS), mean_interval(IOUS[::-1])
    assert (one.low, one.high) == (other.low, other.high)


def test_nothing_and_unequal_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])
    with pytest.raises(ValueError, match="found 2 and 3 values"):
        paired_difference([0.1, 0.2], second=[0.1, 0.2, 0.3])
