"""Conservation: equity is cash plus position value minus costs, whatever orders, gaps and rolls do."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.execution.mechanics import FillCause
from algospace.execution.replay import run_precomputed
from algospace.execution.result import slippage_paid
from algospace.execution.venue import SimulatedVenue
from algospace.instruments import instrument
from tests.session_market import random_orders, random_table

MULTIPLIER = 50.0


def cash_ledger(table, result):
    """Equity by bookkeeping of cash flows alone: every contract bought costs its price, a roll sells the old
    contract at its last close and buys the new one at the rescaled price."""
    cash, held, equity, position = result.initial_equity, 0.0, [], []
    fills = {row: result.fills[result.fills["row"] == row] for row in np.unique(result.fills["row"])}
    for row in result.rows:
        for fill in fills.get(row, ()):
            if fill["cause"] == FillCause.ROLL:
                old = table.close[row - 1]
                cash += held * old * MULTIPLIER
                cash -= held * (old * table.roll[row]) * MULTIPLIER
                cash -= 2.0 * abs(held) * 0.25 * MULTIPLIER
            cash -= fill["quantity"] * fill["price"] * MULTIPLIER + fill["commission"]
            held += fill["quantity"]
        equity.append(cash + held * table.close[row] * MULTIPLIER)
        position.append(held)
    return np.array(equity), np.array(position)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), rolls=st.integers(0, 6), gaps=st.sampled_from([0.0, 0.1, 0.5]))
def test_equity_is_cash_plus_position_value_minus_costs(seed, rolls, gaps):
    table = random_table(seed, n=200, rolls=rolls, gaps=gaps, missing=0.03)
    orders = random_orders(seed + 1, table, 0, 200)
    result = run_precomputed(table, 0, 200, orders, SimulatedVenue(instrument("ES")))
    equity, position = cash_ledger(table, result)
    np.testing.assert_allclose(result.equity, equity, rtol=0.0, atol=1e-5)
    np.testing.assert_array_equal(result.position, position)
    assert result.fills["commission"].sum() == np.float64(result.account["costs"][0]) or np.isclose(
        result.fills["commission"].sum(), result.account["costs"][0])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), rolls=st.integers(0, 6))
def test_trades_add_up_to_the_equity_curve(seed, rolls):
    table = random_table(seed, n=200, rolls=rolls, missing=0.03)
    orders = random_orders(seed + 1, table, 0, 200)
    result = run_precomputed(table, 0, 200, orders, SimulatedVenue(instrument("ES")))
    account = result.account[0]
    open_pnl = account["equity"] - account["trade_start"] if account["position"] else 0.0
    np.testing.assert_allclose(result.trades["net_pnl"].sum() + open_pnl,
                               result.equity[-1] - result.initial_equity, rtol=0.0, atol=1e-5)
    assert result.trades.size == account["trades"]
    if result.trades.size and not account["position"]:
        np.testing.assert_allclose(result.trades["net_pnl"][-1], account["last_trade"], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100_000), rolls=st.integers(0, 3))
def test_slippage_paid_is_the_difference_to_a_venue_without_it(seed, rolls):
    """Same fills at unslipped prices: without brackets nothing else depends on slippage."""
    table = random_table(seed, n=200, rolls=rolls, missing=0.03)
    orders = random_orders(seed + 1, table, 0, 200)
    orders.stop_distance[:] = 0.0
    orders.target_distance[:] = 0.0
    with_slippage = run_precomputed(table, 0, 200, orders, SimulatedVenue(instrument("ES")))
    without = run_precomputed(table, 0, 200, orders, SimulatedVenue(instrument("ES"), slippage_ticks=0.0))
    np.testing.assert_allclose(without.equity[-1] - with_slippage.equity[-1], slippage_paid(with_slippage),
                               atol=1e-5)
