"""Scores of unit runs by hand, the baselines, and the leak alarm."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.analysis import unit_baselines as baselines
from algospace.analysis.unit_score import (
    LeakError,
    UnitScore,
    block_standard_error,
    fraction_of_limit,
    leak_alarm,
    limit_score,
    next_returns,
    require_no_leak,
    score_unit_run,
    unit_pnl,
)
from algospace.errors import InternalError
from algospace.marketdata.synthetic import generate

TICK = 0.5e-4


@pytest.fixture(scope="module")
def easy():
    return generate("easy", seed=21, n_bars=200_000)


def test_pnl_by_hand():
    gains = np.array([2.0, -4.0, 6.0, 1.0]) * TICK
    positions = np.array([1, -1, 0, 1])
    np.testing.assert_allclose(unit_pnl(positions, gains, cost_ticks=1.0), [2 - 1, 4 - 2, 0 - 1])
    np.testing.assert_allclose(unit_pnl(positions, gains, [(1, 3)], cost_ticks=1.0), [4 - 1, 0 - 1])
    np.testing.assert_allclose(unit_pnl(positions, gains, [(0, 1), (1, 2)], cost_ticks=1.0), [2 - 1, 4 - 1])


def test_score_by_hand():
    close = 100.0 * np.cumprod([1.0, 1 + 2 * TICK, 1 - 4 * TICK, 1 + 6 * TICK])
    expected = np.array([1.0, -1.0, 2.0, 9.0]) * TICK
    score = score_unit_run(np.array([1, -1, -1, 0]), expected, close, cost_ticks=1.0)
    assert score.bars == 3
    assert score.score == pytest.approx((1 + 1 - 2 - 3) / 3)
    assert score.realised == pytest.approx((2 + 4 - 6 - 3) / 3)
    assert (score.trades, score.exposure, score.turnover) == (2, 1.0, 1.0)


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=30, max_size=80), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_cutting_into_segments_costs_only_the_new_entries(held, seed):
    positions, n = np.array(held), len(held)
    gains = np.random.default_rng(seed).normal(0, 1e-4, n)
    cut = n // 2
    whole, parts = unit_pnl(positions, gains), unit_pnl(positions, gains, [(0, cut), (cut, n - 1)])
    before, after = positions[cut - 1], positions[cut]
    expected = 1.18 * (abs(after) - abs(after - before))
    np.testing.assert_allclose(whole.sum() - parts.sum(), expected, atol=1e-9)


def test_wrong_shapes_values_and_segments_are_refused():
    close, expected = np.linspace(1, 2, 10), np.zeros(10)
    with pytest.raises(ValueError, match="equally long"):
        score_unit_run(np.zeros(9), expected, close)
    with pytest.raises(ValueError, match="finite"):
        score_unit_run(np.full(10, np.nan), expected, close)
    with pytest.raises(ValueError, match="no next bar"):
        score_unit_run(np.zeros(10), expected, close, [(0, 10)])


def test_block_errors_grow_with_dependence():
    noise = np.random.default_rng(1).normal(size=100_000)
    assert block_standard_error(noise) == pytest.approx(noise.std() / np.sqrt(noise.size), rel=0.25)
    sticky = np.repeat(noise[:2_000], 50)
    assert block_standard_error(sticky) > 4 * sticky.std() / np.sqrt(sticky.size)


def test_the_noise_free_score_is_less_noisy_and_agrees(easy):
    scores = baselines.score_baselines(easy.truth, easy.bars.close)
    limit = scores["bayes_limit"]
    for name, score in scores.items():
        if name == "clairvoyant":
            continue
        assert abs(score.realised - score.score) < 4 * score.noise_se, name
        assert score.score_se < score.realised_se / 2
        assert score.score <= limit.score
    assert fraction_of_limit(limit, limit) == 1.0
    assert 0.35 < fraction_of_limit(scores["ma_cross"], limit) < 0.5
    assert scores["clairvoyant"].score > 10 * limit.score
    assert scores["random"].turnover == pytest.approx(limit.turnover, rel=0.1)
    assert scores["random"].exposure == pytest.approx(limit.exposure, abs=0.05)


def test_the_alarm_is_silent_on_honest_positions(easy):
    limit = limit_score(easy.truth, easy.bars.close)
    for name, held in baselines.baseline_positions(easy.bars.close, easy.truth.limit_position).items():
        verdict = leak_alarm(score_unit_run(held, easy.truth.expected_return, easy.bars.close), limit)
        assert verdict.leaking == (name == "clairvoyant"), (name, verdict)
    assert not require_no_leak(limit, limit).leaking


def _peeking(easy, share):
    """The limit's position, but on a share of bars the sign of the next return."""
    future = np.nan_to_num(np.sign(next_returns(easy.bars.close)))
    peek = np.random.default_rng(0).random(future.size) < share
    return np.where(peek, future, easy.truth.limit_position)


def test_the_alarm_rings_on_a_peek_at_the_next_return(easy):
    limit = limit_score(easy.truth, easy.bars.close)
    score = score_unit_run(_peeking(easy, 0.02), easy.truth.expected_return, easy.bars.close)
    assert leak_alarm(score, limit).leaking
    with pytest.raises(LeakError, match="sees the future"):
        require_no_leak(score, limit)
    assert issubclass(LeakError, InternalError)


def test_the_alarm_rings_on_the_true_regime_and_on_an_early_slow_bar(easy):
    limit, close = limit_score(easy.truth, easy.bars.close), easy.bars.close
    regime = np.array([1, -1, 0, 0])[easy.truth.regime]
    assert leak_alarm(score_unit_run(regime, easy.truth.expected_return, close), limit).leaking
    slow_close = np.repeat(close[5::6], 6)[:close.size - 6]  # a 30-minute close visible from its first base bar on
    early = np.concatenate((np.sign(slow_close - close[:slow_close.size]), np.zeros(close.size - slow_close.size)))
    assert leak_alarm(score_unit_run(early, easy.truth.expected_return, close), limit).leaking


def test_alarm_needs_both_more_than_three_standard_errors_and_luck_free_agreement():
    def score(realised, expected):
        return UnitScore(1000, expected, 0.0, realised, 0.01, 0.01, 1.0, 10, 1.0, 0.1)

    limit = score(0.5, 0.5)
    assert not leak_alarm(score(0.525, 0.50), limit).leaking
    assert len(leak_alarm(score(0.54, 0.50), limit).reasons) == 2
    assert len(leak_alarm(score(0.54, 0.52), limit).reasons) == 1
    assert leak_alarm(score(0.40, 0.44), limit).disagreement_se == pytest.approx(-4.0)


def test_without_positions_nothing_is_scored_and_nothing_rings():
    market = generate("martingale", seed=1, n_bars=5_000)
    limit = limit_score(market.truth, market.bars.close)
    assert (limit.score, limit.realised, limit.sharpe, limit.trades) == (0.0, 0.0, 0.0, 0)
    assert fraction_of_limit(limit, limit) is None
    assert not leak_alarm(limit, limit).leaking


@pytest.mark.parametrize("rule", [baselines.buy_and_hold, baselines.momentum, baselines.ma_cross,
                                  baselines.ema_cross])
@given(cut=st.integers(1, 399), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_baselines_see_no_future(rule, cut, seed):
    noise = np.random.default_rng(seed)
    close = 5000.0 * np.exp(np.cumsum(noise.normal(0, 1e-3, 400)))
    changed = close.copy()
    changed[cut:] *= np.exp(np.cumsum(noise.normal(0, 1e-2, 400 - cut)))
    np.testing.assert_array_equal(rule(close)[:cut], rule(changed)[:cut])


def test_the_clairvoyant_is_the_best_of_all_sequences():
    noise = np.random.default_rng(3)
    for _ in range(5):
        close = 5000.0 * np.cumprod(1 + noise.normal(0, 1.5e-4, 8))
        gains = next_returns(close)
        best = max(unit_pnl(np.array([*held, 0]), gains).sum() for held in itertools.product((-1, 0, 1), repeat=7))
        assert unit_pnl(baselines.clairvoyant(close), gains).sum() == pytest.approx(best, abs=1e-9)


def test_averages_are_what_they_are_called():
    close = np.cumsum(np.random.default_rng(0).normal(size=300)) + 500
    fast, slow = (np.convolve(close, np.ones(n) / n, "valid") for n in (20, 100))
    np.testing.assert_array_equal(baselines.ma_cross(close)[99:], np.sign(fast[80:] - slow))
    assert not baselines.ma_cross(close)[:99].any()
    assert not baselines.momentum(close)[:24].any()
