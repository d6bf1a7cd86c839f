"""Figures of joined days: what is summed stays whole, luck is called luck, no edge is claimed without one."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.analysis.overfitting import (
    deflated_sharpe_of_count,
    expected_best_of,
    expected_best_sharpe,
    probabilistic_sharpe,
    random_p_value,
)
from algospace.instruments import instrument
from training.walk_forward.contenders import TEAM
from training.walk_forward.report import verdict
from training.walk_forward.statistics import (
    Days,
    Judgement,
    against_random,
    days_per_year,
    difference,
    join,
    join_draws,
    judge,
    overfitting,
)

RULE = Judgement(initial_equity=100_000.0, days_per_year=252.0, trials=1, samples=400, seed=3)


def series(profit: Any, first: int = 18_000) -> Days:
    values = np.asarray(profit, np.float64)
    return Days(np.arange(first, first + values.size), values)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), shared=st.booleans(), seed=st.integers(0, 999))
def test_joining_windows_loses_no_profit_and_counts_a_shared_day_once(sizes: list[int], shared: bool,
                                                                      seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts, first = [], 18_000
    for size in sizes:
        parts.append(series(np.round(rng.normal(0.0, 500.0, size)), first))
        first += size - 1 if shared else size
    joined = join(parts)
    assert joined.profit.sum() == sum(part.profit.sum() for part in parts)
    assert (np.diff(joined.day) > 0).all()
    assert joined.day.size == sum(sizes) - (len(sizes) - 1 if shared else 0)


def test_random_traders_are_joined_like_the_others() -> None:
    rng = np.random.default_rng(0)
    parts = [series(rng.normal(size=5), 10), series(rng.normal(size=4), 14)]
    draws = [np.stack([part.profit, 2.0 * part.profit]) for part in parts]
    joined = join_draws([part.day for part in parts], draws)
    np.testing.assert_allclose(joined[0], join(parts).profit)
    np.testing.assert_allclose(joined[1], 2.0 * join(parts).profit)


def test_a_judgement_says_what_the_days_say() -> None:
    profit = np.random.default_rng(1).normal(50.0, 1_000.0, 756)
    found = judge(series(profit), RULE)
    assert found["net"] == pytest.approx(profit.sum())
    assert found["sharpe"] == pytest.approx(profit.mean() / profit.std(ddof=1) * math.sqrt(252))
    assert found["net_low"] < found["net"] < found["net_high"]
    assert found["sharpe_low"] < found["sharpe"] < found["sharpe_high"]
    curve = np.concatenate([[0.0], np.cumsum(profit)])
    assert found["max_drawdown"] == pytest.approx(max(curve[:i + 1].max() - curve[i] for i in range(curve.size)))
    assert found["probabilistic_sharpe"] == probabilistic_sharpe(profit / 100_000.0)
    assert found["deflated_sharpe"] == pytest.approx(found["probabilistic_sharpe"])


def test_intervals_hold_zero_for_luck_and_not_for_an_edge() -> None:
    luck = judge(series(np.random.default_rng(2).normal(0.0, 1_000.0, 1_000)), RULE)
    edge = judge(series(np.random.default_rng(2).normal(200.0, 1_000.0, 1_000)), RULE)
    assert luck["net_low"] < 0.0 < luck["net_high"]
    assert edge["net_low"] > 0.0


def test_who_never_trades_has_no_ratio_and_no_chance_to_be_called_lucky() -> None:
    idle = series(np.zeros(300))
    found = judge(idle, RULE)
    assert [found[name] for name in ("net", "max_drawdown", "sharpe", "deflated_sharpe")] == [0.0, 0.0, None, None]
    against = against_random(idle, np.random.default_rng(0).normal(-1.0, 5.0, (20, 300)), RULE)
    assert against["p_sharpe"] is None
    assert against["p_net"] is None


def test_more_trials_deflate_more() -> None:
    returns = np.random.default_rng(4).normal(0.001, 0.01, 500)
    ratios = [deflated_sharpe_of_count(returns, trials) for trials in (1, 2, 10, 1000)]
    assert ratios[0] == probabilistic_sharpe(returns)
    assert all(a > b for a, b in pairwise(ratios))  # type: ignore[operator]


def test_the_spread_of_luck_is_one_over_the_root_of_the_periods() -> None:
    trials = np.random.default_rng(5).normal(size=(2000, 250))
    sharpes = trials.mean(axis=1) / trials.std(axis=1, ddof=1)
    assert expected_best_of(2000, 1.0 / math.sqrt(249)) == pytest.approx(expected_best_sharpe(sharpes), rel=0.05)
    assert sharpes.max() == pytest.approx(expected_best_of(2000, 1.0 / math.sqrt(249)), rel=0.25)


def test_the_p_value_counts_the_trader_among_the_random_ones() -> None:
    draws = np.array([1.0, 2.0, 3.0, np.nan])
    assert random_p_value(2.5, draws) == 2 / 5
    assert random_p_value(9.0, draws) == 1 / 5
    assert random_p_value(-1.0, draws) == 1.0
    assert random_p_value(None, draws) is None
    assert random_p_value(1.0, np.zeros(0)) is None


def test_p_values_of_a_random_trader_are_uniform() -> None:
    rng = np.random.default_rng(7)
    found = [against_random(series(rng.normal(size=60)), rng.normal(size=(19, 60)), RULE)["p_sharpe"]
             for _ in range(200)]
    assert np.mean(found) == pytest.approx(0.525, abs=0.06)
    assert 0.02 < np.mean(np.array(found) <= 0.1) < 0.19


def test_a_difference_is_of_the_same_days() -> None:
    rng = np.random.default_rng(8)
    market = rng.normal(0.0, 2_000.0, 500)  # shared, so that it cancels
    mine, theirs = series(market + rng.normal(60.0, 100.0, 500)), series(market)
    found = difference(mine, theirs, RULE)
    assert found["sure"]
    assert found["net"] == pytest.approx((mine.profit - theirs.profit).sum())
    assert found["low"] < found["net"] < found["high"]
    assert not difference(theirs, theirs, RULE)["sure"]


def test_overfitting_leaves_out_who_never_trades() -> None:
    rng = np.random.default_rng(9)
    contenders = {"good": series(rng.normal(300.0, 1_000.0, 400)), "luck": series(rng.normal(0.0, 1_000.0, 400)),
                  "idle": series(np.zeros(400))}
    found = overfitting(contenders, 10)
    assert found["contenders"] == ["good", "luck"]
    assert found["pbo"] < 0.1
    assert overfitting({"good": contenders["good"], "idle": contenders["idle"]}, 10)["pbo"] is None
    assert overfitting({name: series(days.profit[:15]) for name, days in contenders.items()}, 10)["pbo"] is None


def test_a_test_of_a_single_day_proves_nothing_and_says_so() -> None:
    figures = {**judge(series([250.0]), RULE), "trades": 1, "windows": [250.0], "windows_won": 1}
    document: dict[str, Any] = {
        "joined": dict.fromkeys(TEAM, figures), "currency": "USD", "trials": 1,
        "against": {team: {} for team in TEAM}, "random": {team: {} for team in TEAM},
        "overfitting": {"pbo": None}}
    assert verdict(document)[0] == (
        "The policy made 250 USD after costs in 1 trades, 1 of 1 tests with a profit; too few days for an "
        "interval: no edge is proven.")


def test_days_of_a_year_are_the_sessions() -> None:
    assert days_per_year(instrument("NQ")) == 252.0
    assert days_per_year(instrument("BTCUSD")) == 365.0
