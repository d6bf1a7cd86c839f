"""Metrics against literal statements of their formulas, and their values where a run is degenerate."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from algospace.analysis.metrics import (
    bar_returns,
    bootstrap_indices,
    daily_returns,
    max_drawdown,
    measure,
    stationary_bootstrap,
)
from algospace.analysis.overfitting import (
    deflated_sharpe,
    deflated_sharpe_of_count,
    expected_best_sharpe,
    probabilistic_sharpe,
    probability_of_overfitting,
)
from algospace.execution.replay import OrderArrays, run_precomputed
from algospace.execution.venue import SimulatedVenue
from algospace.instruments import instrument
from algospace.risk.measures import expected_shortfall, kelly_bet, kelly_fraction, value_at_risk
from tests.session_market import random_orders, random_table

ES = instrument("ES")


def run(seed=1, n=600, rate=0.3):
    table = random_table(seed, n=n)
    return run_precomputed(table, 0, n, random_orders(seed, table, 0, n, rate), SimulatedVenue(ES))


def test_metrics_equal_their_formulas():
    result = run()
    metrics, equity, trades = measure(result), result.equity.tolist(), result.trades
    returns = [(b - a) / 100_000.0 for a, b in itertools.pairwise(equity)]
    mean = sum(returns) / len(returns)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in returns) / (len(returns) - 1))
    downside = math.sqrt(sum(min(r, 0.0) ** 2 for r in returns) / len(returns))
    peak, fall = -math.inf, 0.0
    for value in equity:
        peak = max(peak, value)
        fall = max(fall, (peak - value) / peak)
    wins = [p for p in trades["net_pnl"].tolist() if p > 0]
    losses = [p for p in trades["net_pnl"].tolist() if p < 0]
    assert metrics.sharpe == pytest.approx(mean / deviation * math.sqrt(69_552))
    assert metrics.sortino == pytest.approx(mean / downside * math.sqrt(69_552))
    assert metrics.max_drawdown == pytest.approx(fall)
    assert metrics.calmar == pytest.approx(mean * 69_552 / fall)
    assert metrics.win_rate == pytest.approx(len(wins) / len(trades))
    assert metrics.profit_factor == pytest.approx(sum(wins) / -sum(losses))
    assert metrics.exposure == pytest.approx(sum(p != 0 for p in result.position) / len(equity))
    assert metrics.gross_pnl - metrics.costs == pytest.approx(metrics.net_pnl)
    assert metrics.turnover == pytest.approx(sum(abs(q) for q in result.fills["quantity"]) / 10)
    assert sum(metrics.exits.values()) == metrics.trades == len(trades)


def test_daily_returns_are_changes_between_last_closes_of_days():
    result = run()
    last = [result.equity[result.day == day][-1] for day in np.unique(result.day)]
    expected = np.diff([100_000.0, *last]) / 100_000.0
    np.testing.assert_allclose(daily_returns(result), expected, rtol=1e-12)
    assert measure(result).var_95 == pytest.approx(-np.percentile(expected, 5))


def test_a_run_without_trades_has_nulls_not_numbers():
    table = random_table(1)
    orders = OrderArrays.build(np.zeros(300), np.zeros(300, bool))
    metrics = measure(run_precomputed(table, 0, 300, orders, SimulatedVenue(ES)))
    for name in ("sharpe", "sortino", "calmar", "win_rate", "profit_factor", "average_trade",
                 "average_bars_in_trade"):
        assert getattr(metrics, name) is None, name
    assert metrics.net_pnl == metrics.costs == metrics.exposure == metrics.max_drawdown == 0.0
    assert metrics.trades == 0
    assert metrics.exits == {}


def test_a_run_of_one_bar_is_defined():
    table = random_table(1)
    orders = OrderArrays.build(np.zeros(1), np.zeros(1, bool))
    metrics = measure(run_precomputed(table, 5, 6, orders, SimulatedVenue(ES)))
    assert metrics.sharpe is None
    assert metrics.var_95 is None
    assert metrics.bars == 1


def test_a_run_into_debt_keeps_defined_metrics():
    table = random_table(1)
    orders = OrderArrays.build(np.full(300, 50.0), table.decision)
    falling = run_precomputed(table, 0, 300, orders, SimulatedVenue(ES), initial_equity=1000.0)
    values = measure(falling).as_dict()
    assert all(math.isfinite(v) for v in values.values() if isinstance(v, float))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=300), st.sampled_from([0.95, 0.99]))
def test_expected_shortfall_is_never_below_value_at_risk(returns, level):
    sample = np.array(returns)
    var, es = value_at_risk(sample, level), expected_shortfall(sample, level)
    assert es >= var - 1e-15
    assert var == pytest.approx(-np.quantile(sample, 1 - level))
    assert es <= -sample.min() + 1e-15


def test_kelly():
    assert kelly_bet(0.6, 1.0) == pytest.approx(0.2)
    assert kelly_bet(0.4, 1.0) == 0.0
    sample = np.array([0.01, -0.005, 0.02, 0.0])
    assert kelly_fraction(sample) == pytest.approx(sample.mean() / sample.var(ddof=1))
    assert kelly_fraction(np.zeros(5)) is None
    with pytest.raises(ValueError, match="probability"):
        kelly_bet(1.2, 1.0)


def test_max_drawdown_of_a_known_curve():
    share, money = max_drawdown(np.array([100.0, 120.0, 90.0, 110.0, 130.0, 104.0]))
    assert share == pytest.approx(0.25)
    assert money == pytest.approx(30.0)


def test_bootstrap_is_stationary_and_seeded():
    """Blocks have geometric length of the mean asked for, every element is equally likely, seeds repeat."""
    n, out, steps, counts = 200, np.empty(200, np.int64), 0, np.zeros(200)
    for sample in range(400):
        bootstrap_indices(n, 0.1, np.uint64(3), sample, out)
        steps += int(np.sum((np.diff(out) % n) == 1))
        counts += np.bincount(out, minlength=n)
    assert steps / (400 * (n - 1)) == pytest.approx(0.9 + 0.1 / n, abs=0.01)
    assert counts.std() / counts.mean() < 0.3
    returns = np.random.default_rng(0).normal(0.001, 0.01, 250)
    assert stationary_bootstrap(returns, 252.0, seed=1) == stationary_bootstrap(returns, 252.0, seed=1)
    assert stationary_bootstrap(returns, 252.0, seed=1) != stationary_bootstrap(returns, 252.0, seed=2)


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_promise():
    rng, covered = np.random.default_rng(1), 0
    for trial in range(200):
        returns = rng.normal(0.0, 0.01, 300)
        interval = stationary_bootstrap(returns, 1.0, samples=300, level=0.9, seed=trial)["mean"]
        covered += interval.low <= 0.0 <= interval.high
    assert 0.80 <= covered / 200 <= 0.96


def test_bootstrap_matches_a_literal_resample():
    returns = np.random.default_rng(4).normal(0.0, 1.0, 50)
    indices, draws = np.empty(50, np.int64), []
    for sample in range(100):
        bootstrap_indices(50, 1.0 / 5.0, np.uint64(9), sample, indices)
        drawn = returns[indices]
        draws.append(drawn.mean() / drawn.std(ddof=1))
    interval = stationary_bootstrap(returns, 1.0, samples=100, mean_block=5.0, seed=9)["sharpe"]
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_bootstrap_of_nothing_and_of_no_variance():
    assert stationary_bootstrap(np.zeros(1), 252.0)["sharpe"].estimate is None
    flat = stationary_bootstrap(np.zeros(30), 252.0)
    assert flat["sharpe"].low is None
    assert flat["mean"].low == flat["mean"].high == 0.0


def test_probabilistic_sharpe_equals_its_formula():
    returns = np.random.default_rng(2).standard_t(4, 500) * 0.01 + 0.0005
    sharpe = returns.mean() / returns.std(ddof=1)
    centred = returns - returns.mean()
    skew = (centred**3).mean() / (centred**2).mean() ** 1.5
    kurtosis = (centred**4).mean() / (centred**2).mean() ** 2
    z = (sharpe - 0.01) * math.sqrt(499) / math.sqrt(1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe**2)
    assert probabilistic_sharpe(returns, 0.01) == pytest.approx(0.5 * (1 + math.erf(z / math.sqrt(2))))
    assert probabilistic_sharpe(np.zeros(10)) is None


def test_deflated_sharpe_reproduces_the_published_example():
    """Bailey and López de Prado 2014, section "A numerical example": SR 2.5 annual over 1250 days, skew -3,
    kurtosis 10, N = 100 trials with variance 0.5 of annual Sharpe ratios: SR0 = 0.1132 daily, DSR = 0.9004."""
    trials = np.random.default_rng(0).normal(size=100)
    trials = (trials - trials.mean()) / trials.std(ddof=1) * math.sqrt(0.5 / 250)
    assert expected_best_sharpe(trials) == pytest.approx(0.1132, abs=5e-5)
    sharpe = 2.5 / math.sqrt(250)
    z = (sharpe - 0.1132) * math.sqrt(1249) / math.sqrt(1 + 3 * sharpe + 9 / 4 * sharpe**2)
    assert stats.norm.cdf(z) == pytest.approx(0.9004, abs=1e-3)
    returns = np.random.default_rng(1).normal(0.001, 0.01, 300)
    assert deflated_sharpe(returns, trials) == probabilistic_sharpe(returns, expected_best_sharpe(trials))
    assert deflated_sharpe(returns, trials[:1]) == probabilistic_sharpe(returns)
    unscored = deflated_sharpe(returns, trials, trials.size + 20)  # tried, but failed before they were scored
    assert unscored is not None
    assert unscored < (deflated_sharpe(returns, trials) or 0.0)
    assert deflated_sharpe(returns, trials[:1], 8) == deflated_sharpe_of_count(returns, 8)


def test_expected_best_sharpe_is_about_the_mean_maximum_of_luck():
    draws = np.random.default_rng(5).normal(size=(4000, 50))
    unit = draws[0] / draws[0].std(ddof=1)
    assert expected_best_sharpe(unit) == pytest.approx(draws.max(axis=1).mean(), abs=0.05)


def test_overfitting_tells_luck_from_skill():
    rng = np.random.default_rng(6)
    luck = rng.normal(0.0, 0.01, (600, 20))
    skill = luck.copy()
    skill[:, 7] += 0.004
    assert probability_of_overfitting(skill).pbo < 0.05
    by_luck = probability_of_overfitting(luck)
    assert by_luck.splits == math.comb(10, 5)
    assert by_luck.pbo > 0.2


def test_overfitting_equals_a_literal_cscv():
    from itertools import combinations
    returns = np.random.default_rng(8).normal(0.0, 1.0, (40, 3))
    blocks, below, total = returns.reshape(4, 10, 3), 0, 0
    for chosen in combinations(range(4), 2):
        rest = [b for b in range(4) if b not in chosen]
        inside, outside = np.vstack(blocks[list(chosen)]), np.vstack(blocks[rest])
        winner = np.argmax(inside.mean(0) / inside.std(0, ddof=1))
        ratio = outside.mean(0) / outside.std(0, ddof=1)
        rank = np.sum(ratio <= ratio[winner]) / 4
        below += math.log(rank / (1 - rank)) <= 0.0
        total += 1
    assert probability_of_overfitting(returns, 4).pbo == pytest.approx(below / total)
    with pytest.raises(ValueError, match="even number of blocks"):
        probability_of_overfitting(returns, 3)


def test_bar_returns_sum_to_the_total_return():
    result = run(3)
    assert bar_returns(result).sum() == pytest.approx(measure(result).total_return)
