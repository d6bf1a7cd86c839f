"""Intervals cover in simulation, follow dependence, and say nothing where nothing can be said."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.analysis.intervals import bootstrap_interval, optimal_block, stationary_interval, stationary_rows


def autoregressive(rng: np.random.Generator, n: int, phi: float) -> np.ndarray:
    noise = rng.normal(size=n + 200)
    out = np.zeros(n + 200)
    for t in range(1, out.size):
        out[t] = phi * out[t - 1] + noise[t]
    return out[200:]


@pytest.mark.parametrize(("n", "least"), [(5, 0.89), (10, 0.92), (20, 0.92)])
def test_intervals_of_few_seeds_cover_the_mean(n: int, least: float) -> None:
    rng = np.random.default_rng(0)
    hits = sum(not bootstrap_interval(rng.normal(3.0, 1.0, n), resamples=1_000, seed=i).excludes(3.0)
               for i in range(400))
    assert least <= hits / 400 <= 0.985


def test_intervals_of_a_dependent_series_cover_the_mean_where_independent_ones_do_not() -> None:
    rng = np.random.default_rng(1)
    series = [autoregressive(rng, 1_500, 0.8) for _ in range(120)]
    covered = np.mean([not stationary_interval(s, resamples=400, seed=i).excludes(0.0)
                       for i, s in enumerate(series)])
    naive = np.mean([not stationary_interval(s, resamples=400, seed=i, block=1.0).excludes(0.0)
                     for i, s in enumerate(series)])
    assert covered >= 0.88
    assert naive <= 0.65


def test_the_block_grows_with_dependence_and_is_short_without() -> None:
    rng = np.random.default_rng(2)
    lengths = [optimal_block(autoregressive(rng, 20_000, phi)) for phi in (0.0, 0.5, 0.9)]
    assert lengths[0] < 6 < lengths[1] < lengths[2]
    assert optimal_block(np.ones(100)) == 1.0


def test_prefix_sums_give_what_resampling_row_by_row_gives() -> None:
    series = autoregressive(np.random.default_rng(3), 800, 0.6)
    fast = stationary_interval(series, resamples=6_000, block=15.0)
    slow = stationary_interval(series, resamples=6_000, block=15.0, statistic=lambda s: float(s.mean()))
    assert fast.estimate == slow.estimate
    width = slow.high - slow.low
    assert fast.low == pytest.approx(slow.low, abs=0.06 * width)
    assert fast.high == pytest.approx(slow.high, abs=0.06 * width)


@given(n=st.integers(2, 400), block=st.floats(1.0, 50.0), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_resample_is_made_of_blocks_of_the_series(n: int, block: float, seed: int) -> None:
    rows = stationary_rows(n, block, np.random.default_rng(seed))
    assert rows.shape == (n,)
    assert rows.min() >= 0
    assert rows.max() < n
    breaks = np.count_nonzero((rows[1:] - rows[:-1]) % n != 1)
    assert breaks <= n / block + 6.0 * np.sqrt(n / block) + 3


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12), shift=st.floats(-1e3, 1e3))
@settings(max_examples=40, deadline=None)
def test_intervals_lie_within_the_values_and_move_with_them(values: list[float], shift: float) -> None:
    held = np.array(values)
    found, moved = bootstrap_interval(held, resamples=200), bootstrap_interval(held + shift, resamples=200)
    slack = 1e-9 * (1.0 + np.abs(held).max() + abs(shift))
    assert held.min() - slack <= found.low <= found.high <= held.max() + slack
    assert moved.low == pytest.approx(found.low + shift, abs=10 * slack)


def test_the_same_seed_gives_the_same_interval_and_more_confidence_a_wider_one() -> None:
    series = np.random.default_rng(4).normal(size=3_000)
    assert stationary_interval(series, seed=5) == stationary_interval(series, seed=5)
    assert stationary_interval(series, seed=5) != stationary_interval(series, seed=6)
    narrow, wide = stationary_interval(series, 0.5), stationary_interval(series, 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_value_has_no_interval_and_nonsense_is_refused() -> None:
    alone = bootstrap_interval(np.array([0.7]))
    assert (alone.estimate, alone.low, alone.high) == (0.7, None, None)
    assert not alone.excludes(100.0)
    for bad in (np.array([]), np.array([1.0, np.nan]), np.zeros((2, 2))):
        with pytest.raises(ValueError, match="finite numbers"):
            bootstrap_interval(bad)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval(np.ones(3), confidence=1.0)
    with pytest.raises(ValueError, match="mean block"):
        stationary_interval(np.arange(5.0), block=6.0)
