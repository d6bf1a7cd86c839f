"""The precomputed backtest equals the trading session bit for bit, and both equal a literal bar loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algospace.clock import ReplayClock
from algospace.execution.journal import MemoryJournal
from algospace.execution.mechanics import (
    ACCOUNT_DTYPE,
    FILL_DTYPE,
    MAX_FILLS_PER_BAR,
    FillCause,
    advance,
    open_account,
    pass_bar,
)
from algospace.execution.replay import OrderArrays, run_precomputed
from algospace.execution.session import Session, TableFeed
from algospace.execution.venue import SimulatedVenue
from algospace.instruments import instrument
from algospace.risk.limits import LimitsConfig
from tests.session_market import ReplayPolicy, finer_bars, random_orders, random_table


def run_session(table, start, stop, orders, venue, limits, reverse=True):
    session = Session(ReplayClock(), TableFeed(table, start, stop), venue, ReplayPolicy(orders, start), limits,
                      MemoryJournal(), reverse=reverse)
    return session.run()


def assert_equal_results(left, right):
    for name in ("rows", "ts_close", "day", "equity", "position", "fills", "trades", "decisions", "account"):
        a, b = getattr(left, name), getattr(right, name)
        assert a.dtype == b.dtype, name
        assert a.tobytes() == b.tobytes(), f"{name} differs"
    assert left.reason_counts() == right.reason_counts()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), intrabar=st.sampled_from(["pessimistic", "infer"]), reverse=st.booleans(),
       limited=st.booleans(), finer=st.booleans())
def test_precomputed_run_equals_session(seed, intrabar, reverse, limited, finer):
    table = random_table(seed, rolls=3, missing=0.05)
    orders = random_orders(seed + 1, table, 10, 290)
    bars = finer_bars(table, 5, seed) if finer else None
    venue = SimulatedVenue(instrument("ES"), intrabar=intrabar, finer=bars)
    limits = LimitsConfig() if limited else None
    slow = run_session(table, 10, 290, orders, venue, limits, reverse)
    fast = run_precomputed(table, 10, 290, orders, venue, limits, reverse=reverse)
    assert_equal_results(slow, fast)
    assert slow.trades.size > 0


@pytest.mark.parametrize("seed", range(4))
def test_session_equals_a_literal_loop_over_the_mechanics(seed):
    table = random_table(seed, rolls=2, missing=0.05)
    orders = random_orders(seed + 1, table, 0, 300, rate=0.8)
    venue = SimulatedVenue(instrument("ES"))
    result = run_precomputed(table, 0, 300, orders, venue)
    accounts, fills = np.zeros(1, ACCOUNT_DTYPE), np.zeros(MAX_FILLS_PER_BAR, FILL_DTYPE)
    account = accounts[0]
    open_account(account, 100_000.0, table.close[0], int(table.day[0]))
    equity, order, none = [100_000.0], None, (False, 0.0, 0.0, 0.0)
    waited = 0
    for k in range(300):
        if k > 0:
            if table.filled[k]:
                pass_bar(account, venue.venues[0], table.close[k], table.roll[k], int(table.day[k]), fills)
                waited += order is not None
            else:
                advance(account, venue.venues[0], *(order or none), table.open[k], table.high[k], table.low[k],
                        table.close[k], table.roll[k], int(table.day[k]), fills)
                order = None
            equity.append(float(account["equity"]))
        held, want = account["position"], orders.want[k]
        if orders.has_order[k] and held * want <= 0.0 and (want != 0.0 or held != 0.0):
            order = (True, want, orders.stop_distance[k], orders.target_distance[k])
    assert waited > 0, "no order waited: the market must hold such cases"
    np.testing.assert_array_equal(result.equity, np.array(equity))


def two_sided_market(side: int, target_first: bool):
    """Row 2 reaches stop and target of a position opened at the open of row 1 (at 4000); finer bars know how."""
    table = random_table(0, n=4)
    for name in ("open", "high", "low", "close"):
        getattr(table, name)[:] = 4000.0
    table.high[2], table.low[2], table.roll[:] = 4010.0, 3990.0, 1.0
    finer = finer_bars(table, 2, 0)
    up_first = target_first == (side > 0)
    finer.high[4:6] = [4010.0, 4000.0] if up_first else [4000.0, 4010.0]
    finer.low[4:6] = [4000.0, 3990.0] if up_first else [3990.0, 4000.0]
    finer.open[4:6] = finer.close[4:6] = 4000.0
    want = np.array([side, 0.0, 0.0, 0.0], np.float64)
    orders = OrderArrays.build(want, want != 0.0, 5.0, 5.0)
    table.decision[:] = True
    return table, finer, orders


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("target_first", [False, True])
@pytest.mark.parametrize("intrabar", ["pessimistic", "infer"])
def test_finer_bars_decide_which_level_came_first(side, target_first, intrabar):
    table, finer, orders = two_sided_market(side, target_first)
    venue = SimulatedVenue(instrument("ES"), intrabar=intrabar, finer=finer)
    result = run_precomputed(table, 0, 4, orders, venue)
    entry = 4000.0 + 0.25 * side
    level = entry + 5.0 * side if target_first else entry - 5.0 * side - 0.25 * side
    assert FillCause(result.trades["cause"][0]) == (FillCause.TARGET if target_first else FillCause.STOP)
    assert result.trades["exit_price"][0] == level
    assert result.account["mark"][0] == 4000.0
    plain = run_precomputed(table, 0, 4, orders, SimulatedVenue(instrument("ES")))
    assert FillCause(plain.trades["cause"][0]) == FillCause.STOP


def test_run_precomputed_refuses_orders_where_nobody_may_decide():
    table = random_table(1)
    table.decision[7] = False
    has_order = np.zeros(300, bool)
    has_order[7] = True
    orders = OrderArrays.build(np.ones(300), has_order)
    with pytest.raises(ValueError, match="order at row 7"):
        run_precomputed(table, 0, 300, orders, SimulatedVenue(instrument("ES")))
    with pytest.raises(ValueError, match="order arrays hold 300 rows"):
        run_precomputed(table, 0, 200, orders, SimulatedVenue(instrument("ES")))
